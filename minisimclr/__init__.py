"""SimCLR from scratch, in NumPy and CuPy: to read, to check, to run.

The files, in the order in which they are best read; each uses only what came before it.

    backend      NumPy or CuPy, and the threads
    kept         what a recorded graph keeps: found, guarded, counted
    autograd     Tensor, the recorded graph, and the way back through it
    gradcheck    three ways to see that a gradient is right
    ops/         one function at a time: the value, and below it the derivative
    ntxent/      the loss of SimCLR and its gradient by hand (loss), in little memory (tiled)
    op_table     every operation beside an independent reference
    gradchecks   `minisimclr gradcheck`: all of that table, checked
    nn           layers: parameters with names
    resnet       the encoder f: images to representation h
    simclr       the projection head g: h to embedding z; and one step of Algorithm 1
    transforms   resize, blur, colour: what can be done to a whole batch of images
    augment      the two random views
    data/        the doodles; your own images
    memory       what a step frees is kept for the next
    optim        SGD, LARS, and the learning rate of each step
    precision    float32, TF32, or half precision where it does no harm
    config       the settings of a run, and what is built from them
    views        the views of each step, also ahead of it by worker processes
    checkpoint   one file, replaced atomically
    run          a run's folder: kept, stopped, resumed
    meter        a step's numbers, and when they are read
    train        the loop
    evaluate     nearest neighbours and a linear probe on the frozen h
    report       the table and the pictures
    cli          `minisimclr demo`, `pretrain`, `evaluate` …
"""

from . import ops
from .augment import to_float, two_views
from .autograd import Tensor, no_grad, primitive, saved_bytes
from .backend import set_threads
from .checkpoint import CheckpointError
from .config import Config
from .data import DataError, Dataset, load_dataset
from .evaluate import embed, knn_accuracy, linear_probe
from .gradcheck import GradcheckError, check_direction, check_path, gradcheck
from .ntxent import contrastive_accuracy, nt_xent, nt_xent_value_and_grad
from .optim import LARS, SGD, warmup_cosine
from .resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152, resnet_small
from .run import Interrupted, Run, load_run
from .simclr import ProjectionHead, SimCLR
from .train import NonFiniteError, pretrain

__version__ = "0.1.0"

__all__ = [
    "LARS", "SGD", "CheckpointError", "Config", "DataError", "Dataset", "GradcheckError", "Interrupted",
    "NonFiniteError", "ProjectionHead", "ResNet", "Run", "SimCLR", "Tensor", "check_direction", "check_path",
    "contrastive_accuracy", "embed", "gradcheck", "knn_accuracy", "linear_probe", "load_dataset", "load_run",
    "no_grad", "nt_xent", "nt_xent_value_and_grad", "ops", "pretrain", "primitive", "resnet18", "resnet34",
    "resnet50", "resnet101", "resnet152", "resnet_small", "saved_bytes", "set_threads", "to_float", "two_views",
    "warmup_cosine",
]

"""SimCLR from scratch, in NumPy and CuPy: to read, to check, to run.

In every room `plain` is the form that one reads; the other forms equal it, and are faster or more exact.
`Config.method` and `--method plain` run what was read. The lines that are counted are neither blank nor only comments.
-----

"""

from . import ops
from .checks.gradcheck import GradcheckError, check_direction, check_path, gradcheck
from .data import DataError, Dataset, load_dataset
from .engine.autograd import Tensor, no_grad, primitive
from .engine.ledger import saved_bytes
from .evaluation.embed import embed
from .evaluation.knn import knn_accuracy
from .evaluation.probe import linear_probe
from .ntxent import contrastive_accuracy, nt_xent, nt_xent_value_and_grad
from .processor import set_threads
from .resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152, resnet_small
from .simclr import ProjectionHead, SimCLR
from .training.checkpoint import CheckpointError
from .training.config import Config
from .training.optim import LARS, SGD, warmup_cosine
from .training.run import Interrupted, Run, load_run
from .training.train import NonFiniteError, pretrain
from .views import to_float, two_views

__version__ = "0.1.0"

__all__ = [
    "LARS",
    "SGD",
    "CheckpointError",
    "Config",
    "DataError",
    "Dataset",
    "GradcheckError",
    "Interrupted",
    "NonFiniteError",
    "ProjectionHead",
    "ResNet",
    "Run",
    "SimCLR",
    "Tensor",
    "check_direction",
    "check_path",
    "contrastive_accuracy",
    "embed",
    "gradcheck",
    "knn_accuracy",
    "linear_probe",
    "load_dataset",
    "load_run",
    "no_grad",
    "nt_xent",
    "nt_xent_value_and_grad",
    "ops",
    "pretrain",
    "primitive",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet_small",
    "saved_bytes",
    "set_threads",
    "to_float",
    "two_views",
    "warmup_cosine",
]

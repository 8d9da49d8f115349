"""SimCLR from scratch, in NumPy and CuPy: to read, to check, to run.

Where a folder has several forms of one thing, `plain` is the one to read; the other forms equal it.
`Config.method` and `--method plain` run what was read. The lines that are counted are neither blank nor only comments.
-----

First reading, 2,600 lines: the whole of SimCLR, in the order in which one thing needs another.

    backend.py                92  Arrays and the devices on which they live: NumPy or CuPy
    engine/autograd.py       190  Reverse-mode automatic differentiation: the whole engine
    ops/basic.py             176  Arithmetic, functions with a kink, and reductions; each is one primitive
    ops/shapes.py             83  Changes of shape and dtype: elements are moved, picked, joined or rounded
    ops/loss.py               34  Softmax cross-entropy: how surprised a classifier is by the right answers
    ops/conv/plain.py         36  The plain form of convolution: pad, then one shifted product for each tap
    ops/conv/__init__.py      53  Convolution of feature maps: the operation, its checks, and the choice among its forms
    ops/norm/plain.py         36  The plain form of batch norm: each channel's statistics, the formula, its gradient
    ops/norm/__init__.py     106  Normalization: batch norm over all but the last axis, and rows scaled to unit length
    ops/pool/plain.py         33  The plain form of max-pooling: pad with −∞, then take the largest value below the taps
    ops/pool/__init__.py      36  Max-pooling of feature maps: the operation, its checks, and the choice of a form
    ops/__init__.py           11  The functions that a ResNet is made of, each with its derivative right below its value
    ntxent/plain.py           60  NT-Xent, the loss of SimCLR, in its plain form: composed first, then by hand
    ntxent/__init__.py       133  NT-Xent in several forms of one function, and the choice between them
    checks/gradcheck.py      189  Three checks of a gradient, each of which finds errors that the others miss
    module.py                139  Modules: layers and networks whose parameters have names, and can be saved and moved
    nn.py                    138  Layers, and the one setting that says in which form each operation of a network runs
    resnet.py                174  Residual networks (He et al. 2016): ResNet-18 to 152, and a small one for CPUs
    simclr.py                101  SimCLR itself: an encoder f, a projection head g, and Algorithm 1 of the paper
    views/parameters.py      101  All that is random about a view, drawn on the host before any pixel is touched
    views/plain.py            60  The plain form of a view: one image, one step after the other, as in appendix A
    views/__init__.py          9  Two random views of every image: what a SimCLR network learns to see as one thing
    data/dataset.py           23  The class Dataset, and the error for data that cannot be used
    training/optim.py        178  SGD and LARS with momentum, and the learning rate of each step
    training/config.py       144  Every setting of a run, with its unit and its range, and what is built from it
    training/batches.py       87  The two views of each step, made when the step asks for them or ahead of time
    training/train.py         74  Pre-training, Algorithm 1 of the paper: images go in, and a trained SimCLR comes out
    evaluation/embed.py       39  Representations of images: the outputs of the frozen encoder and of the head
    evaluation/knn.py         65  Nearest neighbours: in a good representation, images of one class lie close together

Second reading, 14,552 lines: the exact, fast, safe and resumable forms of the same, and what goes with them.

    values/settings.py       173  Settings that users give, and the words in which one is refused
    values/methods.py         34  The setting `method`: one form for every operation, or one for each kind of operation
    values/arrays.py         180  Arrays that users give: taken as plain arrays, or refused in one line
    values/__init__.py        76  Values that users give: taken as plain ones, or refused in one line
    cores.py                  41  The cores that this process may use
    processor.py             191  The processor: threads, BLAS, and memory that is kept for the next step
    storage.py               190  Files that are written whole or not at all, and looked at before they are read
    collective.py             74  Collectives: what the processes that share a batch tell each other
    engine/guard.py          185  The guard: arrays that a recorded graph still needs are read-only
    engine/surface.py        150  The surface of a tensor and of an operation: what Python, NumPy and help() see
    engine/ledger.py          96  The ledger: how much memory a recorded graph keeps for its backward pass, op by op
    engine/drawing.py        151  The drawing of a recorded graph, as SVG: boxes from the leaves above to the loss below
    ops/conv/products.py      59  Products of a long matrix with a small one, cut into pieces that BLAS need not pack
    ops/conv/slabs.py        157  Convolution slab by slab: the plain form's products, cut to fit a core's cache
    ops/conv/cublas.py        53  Add a matrix product to an array, in one launch if CuPy gives access to cuBLAS
    ops/conv/padded.py       141  Convolution in few large products: the form for a GPU
    ops/conv/winograd.py     244  Winograd's 3×3 convolution: fewer multiplications, for stride 1, padding 1 and float32
    ops/norm/fused.py        149  Batch norm, shortcut and ReLU in one pass over memory
    ops/norm/shared.py        38  Batch norm of a batch that several processes share
    ops/pool/threaded.py      46  Max-pooling on threads: the plain form uses one core, and makes and keeps a padded map
    ops/operators.py          73  The operators and methods of Tensor: x + y, x @ y, x[index], x.sum() …
    ntxent/exact.py          123  NT-Xent to the last digit: cures for the four places where the plain form loses digits
    ntxent/few.py             73  NT-Xent of few images: the whole matrix in one piece
    ntxent/tiled.py          299  NT-Xent in O(N·D) memory: the fast form on a CPU
    ntxent/cuda.py           120  NT-Xent in three kernels for an NVIDIA GPU
    ntxent/shared.py         127  NT-Xent of a batch that processes share: own rows against all columns
    objectives/pairs.py       35  The parts that objectives share: unit embeddings, and the negatives of each anchor
    objectives/logistic.py    40  NT-logistic, of the paper's Table 4: a classifier says of each pair if it is positive
    objectives/hinge.py       39  The margin triplet, of the paper's Table 4: a positive is nearer by a margin
    objectives/dcl.py         42  The decoupled loss (Yeh et al. 2021): NT-Xent without the positive in its denominator
    objectives/supervised.py  50  SupCon, the supervised loss (Khosla et al. 2020): all images of a class are positives
    objectives/__init__.py    62  Objectives beside NT-Xent, and the choice by name
    checks/table.py          452  Every operation beside a reference: sample inputs, and inputs that it must refuse
    checks/report.py         123  `minisimclr gradcheck`: each operation against its reference and three checks
    interop.py               181  Weights in and out: encoders under torchvision's names, in files of safetensors
    heads/__init__.py         76  Projection heads by name, and h from a layer of the head
    views/transforms.py      172  Operations on the pixels of a whole stack of images at once
    views/colours.py          85  Changes of colour by name: torchvision's jitter, and those of Google's TensorFlow code
    views/changes.py         134  Every change that the paper studied, each in two forms beside what is drawn for it
    views/named.py           150  Views by name, in the order in which they are written: "crop,flip,colour,cutout"
    views/augment.py         169  Two random views of every image, and their fast form: a whole batch at a time
    data/doodles/raster.py   114  From curves to polygons, and from polygons to pixels, the same on every computer
    data/doodles/styles.py    87  The paint of a doodle: its colours, and the styles that make layers of its parts
    data/doodles/things.py   332  The sixteen things of the doodles: from random proportions to coloured parts
    data/doodles/__init__.py  87  Doodles: a data set that is drawn, not downloaded; sixteen things in five styles
    data/reading.py           69  The way in which a source is read, where its names leave a choice
    data/splits.py           154  The names that people give to splits: train, Training, val, seg_test, test1 …
    data/names.py            194  From the names of image files to the split and the class of each
    data/classes.py           56  The classes of a source: one for each name, however that is written
    data/left_out.py          71  The files of a source that are no data, each with its cause
    data/zip_names.py         89  The names in a zip file as text
    data/archive.py          203  The images in a zip file: listed from its directory, unpacked one at a time
    data/labels.py           192  Labels from file names or from a CSV file, when they are asked for; and lists of files
    data/find.py             181  The images of a folder or a zip file: found, and parted into splits and classes
    data/exif.py              41  The orientation of a photo: one tag of its EXIF data, whatever else is broken
    data/jpeg.py              77  The size, scans and orientation of a JPEG file, and the bytes that matter
    data/png.py              113  The size and orientation of a PNG file, and the bytes that matter, checked
    data/headers.py          152  The format of an image file, and what it declares, before any decoder sees it
    data/memory.py            43  A limit to the memory that all threads together spend on decoding
    data/colours.py           91  From any kind of pixels to RGB, strip by strip: whole copies would double the memory
    data/decode.py           183  From the bytes of an image file to its pixels; the file is untrusted
    data/stores.py           106  The pixels of photos: how one is kept, and where it is found when it is wanted
    data/stream.py           163  Photos: images in files, of any size, that are decoded when they are asked for
    data/cache.py            159  A cache: one file with the pixels of all photos, for a set that is larger than memory
    data/files.py            194  Images from a folder or a zip file: which can be used, and where they are kept
    data/pickled.py           80  CIFAR's Python files: pickles, of which nothing but plain data is let through
    data/binaries.py         122  The files of CIFAR-10, CIFAR-100, STL-10 and the MNIST family, as they are published
    data/formats.py          190  Data sets that are arrays: NumPy files, and those that binaries.py reads
    data/__init__.py         130  The images: built-in doodles, or your own from a folder or a zip file
    training/large_batch.py  161  Gradient caching: the loss of a whole batch, and a graph of one chunk of it at a time
    training/photos.py       102  The two views of photos: decoded, cropped from their own pixels, and resized once
    training/parcels.py       32  Parcels: what a worker puts into a slot of the memory that it shares with the training
    training/signals.py       54  Signals that ask a run to stop: the first waits for the end of the step
    training/workers.py      206  Worker processes that make the views of coming steps ahead of time
    training/precision.py    127  Number formats: float32, TF32, or half precision with float32 where that matters
    training/archive.py      142  Reading a NumPy archive (.npz) from an untrusted file
    training/checkpoint.py    94  Checkpoints: one file, replaced atomically, that a run resumes from bit for bit
    training/stored.py       115  The checkpoint of a run, compared with the configuration that it names
    training/record.py        96  The record of a run, metrics.jsonl: one JSON object per step
    training/folders.py       88  Folders of runs: which are ours, which are free, and which hold files of somebody else
    training/trained.py       48  A trained model in use: images embedded, images like them found, views as in training
    training/run.py          202  A run and its folder: what is kept of it, and how it is found again
    training/distributed.py  186  Data parallelism through MPI: processes, on one machine or many, share each batch
    training/begin.py         61  The beginning of a run: its network, loss and optimizer, new or from a checkpoint
    training/session.py      181  A session of training: it records the steps of a run, saves, and stops when asked
    training/presets.py       97  Presets: the settings of the paper, of our own run on a CPU, and for few images
    evaluation/probe.py      130  A linear classifier on the frozen representation h
    evaluation/duplicates.py  72  Near duplicates: pairs of images whose representations point almost the same way
    evaluation/scores.py      51  Scores of predictions: accuracy, its uncertainty, and which classes are confused
    evaluation/measures.py    61  Measures that need no labels: alignment, uniformity, effective rank and spread
    protocols/sgd_probe.py    58  A linear classifier that SGD trains, as in the paper's linear evaluation
    protocols/compare.py     140  The table of a run: raw pixels, colours, the untrained encoder, SimCLR's h and z
    protocols/table.py        98  A table of representations: for each image a row with its file, class and split
    protocols/embeddings.py   56  Embeddings in a file: what `minisimclr embed` wrote, read as from an untrusted file
    protocols/monitor.py     104  A monitor of training: kNN on held-out images, measures without labels, and advice
    protocols/finetune.py    202  Fine-tuning: encoder and linear layer are trained on a few labels, or from scratch
    protocols/sklearn.py      74  The encoder of a run as a transformer of scikit-learn: images go in, and h comes out
    report/sheet.py           44  Sheets of images: pictures with their neighbours, and a grid; both as PNG files
    report/table.py           75  The table of accuracies: as text, and as it was kept
    report/findings.py       190  The findings on a run: all that its page and its pictures show, computed once
    report/thumbs.py          48  Thumbnails: many small images on one sheet, of which a page shows cells
    report/pictures.py       126  Three pictures of a run, as PNG files; its page shows the same, and more
    report/svg.py            122  Curves and maps as SVG, to stand within a page whose style sheet says how they look
    report/words.py          142  The words of a run's page: what each figure means, and where the book says more
    report/label_curve.py     45  The label-efficiency curve: accuracy against labels, from SimCLR and from scratch
    report/markup.py          74  Pieces of HTML, of which the sections of a run's page are made
    report/numbers.py        161  The sections of a run's page with numbers: curves, accuracies, settings
    report/images.py         126  The sections of a run's page with images: views, the map, neighbours, mistakes
    report/page.py            56  The page of a run: one HTML file that needs nothing else, neither files nor a network
    display.py                85  Displays of a run, a data set and a model: in a line of text, and in a notebook
    cli/streams.py            77  Standard streams that cannot spoil a command, be they closed, full or not there at all
    cli/console.py           165  The lines that a command shows: progress and notes on stderr, one line for an error
    cli/sources.py           157  The options that say how a source is read, and the splits that an evaluation takes
    cli/common.py             78  The parts that several commands share: options, the splits of a run, and a free folder
    cli/demo.py               65  `minisimclr demo`: draw images, pre-train on them, and show what was learned
    cli/pretrain.py          224  `minisimclr pretrain`: pre-train an encoder on images without labels
    cli/evaluate.py          115  `minisimclr evaluate`: measure how well h, and z, tell the classes apart
    cli/finetune.py          142  `minisimclr finetune`: train a classifier on few labels, from a run or from scratch
    cli/report.py             25  `minisimclr report`: make the page and the pictures of a run again
    cli/embed.py              41  `minisimclr embed`: write h and z of every image, with its file, class and split
    cli/export.py             34  `minisimclr export`: write the encoder of a run to a file that PyTorch reads, too
    cli/neighbours.py         96  `minisimclr neighbours`: find the images that look most like a picture
    cli/duplicates.py         30  `minisimclr duplicates`: name the pairs of images that are almost the same
    cli/data.py              128  `minisimclr data`: show what is read from a folder or an archive, and what is left out
    cli/gradcheck.py          16  `minisimclr gradcheck`: compare every operation with independent references
    cli/__init__.py          101  The command line, one file a command
"""

from . import display as display  # it says what a notebook shows of the classes below
from . import ops
from .checks.gradcheck import GradcheckError, check_direction, check_path, gradcheck
from .data import DataError, Dataset, Reading, load_dataset
from .engine.autograd import Tensor, no_grad, primitive
from .engine.drawing import draw
from .engine.ledger import saved_bytes
from .evaluation.duplicates import duplicates
from .evaluation.embed import embed
from .evaluation.knn import knn_accuracy
from .evaluation.probe import linear_probe
from .interop import load_torchvision, save_torchvision
from .ntxent import contrastive_accuracy, nt_xent, nt_xent_value_and_grad
from .processor import set_threads
from .protocols.finetune import finetune
from .protocols.monitor import Monitor
from .protocols.sklearn import SimCLRTransformer
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
    "Monitor",
    "NonFiniteError",
    "ProjectionHead",
    "Reading",
    "ResNet",
    "Run",
    "SimCLR",
    "SimCLRTransformer",
    "Tensor",
    "check_direction",
    "check_path",
    "contrastive_accuracy",
    "draw",
    "duplicates",
    "embed",
    "finetune",
    "gradcheck",
    "knn_accuracy",
    "linear_probe",
    "load_dataset",
    "load_run",
    "load_torchvision",
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
    "save_torchvision",
    "saved_bytes",
    "set_threads",
    "to_float",
    "two_views",
    "warmup_cosine",
]

"""Weights in and out: encoders under torchvision's names, in files of safetensors.

A file holds the parameters and running statistics of one encoder, in torchvision's layout. So torchvision reads ours
with `strict=True`, and its ResNets are read here. A file may also say which stem it has: of a 3×3 convolution the
stride is in no shape. There is no pickle in it.

A file is untrusted. Its table of contents is read first, and may be no longer than a megabyte. Names, shapes and dtypes
are then compared with those of the network that they imply, which is made only if the file has as many weights.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .module import IGNORED, Module
from .resnet import STEMS, BasicBlock, Bottleneck, ResNet
from .storage import one_line, open_regular, shown, write
from .values import drawing_zeros, instance, one_of

LARGEST = 4 << 30  # size of a file, bytes; a ResNet-152 of four times the width is 3.7 GB
LONGEST_HEADER = 1 << 20  # size of the table of contents, bytes; ResNet-152's has 930 tensors in a tenth of that
SPARE = 4_000_000  # number of weights that a file may lack, and be told their names: 16 MB are taken for them
DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}  # as safetensors names them
# The networks that torchvision has a function for, by block and depths; and our small one, which it lacks.
KNOWN: dict[type[BasicBlock] | type[Bottleneck], dict[tuple[int, ...], str]] = {
    BasicBlock: {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34", (1, 1, 1): "resnet_small"},
    Bottleneck: {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"},
}


# ── Out ───────────────────────────────────────────────────────────────────────────────────────────


def save_torchvision(encoder: ResNet, path: str | Path, *, dtype: str = "float32") -> None:
    """Write an encoder under torchvision's names; `dtype` is that of the file: float32, or float16 for half the size.

    >>> import tempfile, minisimclr as ms
    >>> encoder = ms.resnet_small(base=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ms.save_torchvision(encoder, f"{folder}/encoder.safetensors")
    ...     ms.load_torchvision(f"{folder}/encoder.safetensors").features
    32

    Raises: OSError if the file cannot be written; ValueError for a weight that is not finite, or not in that dtype.
    """
    from safetensors.numpy import save

    stored = np.dtype(one_of("dtype", dtype, ("float32", "float16")))
    tensors = {}
    for name, array in instance("encoder", encoder, ResNet).state_dict().items():
        with np.errstate(over="ignore"):  # looked at in the next line
            # The library writes the memory of an array as it lies there, whatever its strides are.
            tensors[name] = np.ascontiguousarray(array, dtype=stored)
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"{name} holds numbers that are not finite in {dtype}; nothing was written")
        if name.endswith("running_var"):  # torch has one more buffer in each batch norm
            tensors[name.removesuffix("running_var") + IGNORED] = np.zeros((), np.int64)
    write(Path(path), save(tensors, metadata={"format": "pt", "minisimclr": json.dumps({"stem": encoder.stem})}))


def torch_lines(encoder: ResNet, path: str | Path) -> str:
    """Return the lines of PyTorch that load a file of this encoder: three, if torchvision has a function for it."""
    stages = [list(vars(getattr(encoder, f"layer{k + 1}")).values()) for k in range(encoder.stages)]  # of blocks
    block, depths, base = type(stages[0][0]), tuple(map(len, stages)), encoder.conv1.weight.shape[3]
    kernel, stride = STEMS[encoder.stem]
    lines = ["import safetensors.torch, torch, torchvision"]
    name = KNOWN[block].get(depths, "")
    if base == 64 and len(depths) == 4 and name:  # torchvision fixes the channels of its stem
        lines.append(f"net = torchvision.models.{name}(); net.fc = torch.nn.Identity()  # its output is h")
    else:
        lines += [
            f"block = torchvision.models.resnet.{block.__name__}",
            f"net = torchvision.models.ResNet(block, [1, 1, 1, 1]); net.inplanes = {base}",
            f"net.bn1 = torch.nn.BatchNorm2d({base}); net.layer4 = net.fc = torch.nn.Identity()  # its output is h",
        ]
        lines += [
            f"net.layer{k + 1} = net._make_layer(block, {base << k}, {depth}, stride={1 if k == 0 else 2})"
            for k, depth in enumerate(depths)
        ]
    if encoder.stem != "imagenet" or base != 64:
        shape = f"3, {base}, {kernel}, stride={stride}, padding={kernel // 2}, bias=False"
        lines.append(f"net.conv1 = torch.nn.Conv2d({shape})")
    if encoder.stem != "imagenet":
        lines.append("net.maxpool = torch.nn.Identity()")
    return "\n".join([*lines, f"net.load_state_dict(safetensors.torch.load_file({str(path)!r}))"])


# ── In ────────────────────────────────────────────────────────────────────────────────────────────


def load_torchvision(path: str | Path, *, stem: str = "", classifier: bool = False) -> ResNet:
    """Make the encoder whose weights are in a file, torchvision's or ours. It computes in float32.

    stem        which stem it has, if the file does not say so: needed for a first convolution of 3×3
    classifier  True keeps torchvision's last layer, so that the network returns logits and not h

    torchvision's own weights expect images whose channels were normalized: (x − mean) / std of ImageNet.

    >>> import tempfile, minisimclr as ms
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ms.save_torchvision(ms.resnet18(base=4), f"{folder}/encoder.safetensors")
    ...     load_torchvision(f"{folder}/encoder.safetensors").stem
    'imagenet'

    Raises: FileNotFoundError; ValueError, in one line that names the file and the tensors that are missing, misshapen
            or unknown, for a file that is not such an encoder's.
    """
    with _opened(path) as file:
        encoder = _implied({name: shape for name, (shape, _) in file.contents.items()}, stem or file.stem, classifier)
        encoder.load_state_dict(file.state_of(encoder))
    return encoder


def load_into(encoder: Module, path: str | Path) -> None:
    """Put the weights of a file into an encoder that is there; its classifier, if it has one, is left out.

    Raises: what `load_torchvision` raises; the encoder is then as it was.
    """
    with _opened(path) as file:
        encoder.load_state_dict(file.state_of(encoder))


def _implied(shapes: Mapping[str, tuple[int, ...]], stem: str, classifier: bool) -> ResNet:
    """Make the network that names and shapes imply, with weights of zero; what is missing is found afterwards."""
    first = shapes.get("conv1.weight", ())
    if len(first) != 4:
        raise ValueError("it is no ResNet's: it has no conv1.weight (D,3,K,K)")
    fitting = [name for name, (kernel, _) in STEMS.items() if first[2:] == (kernel, kernel)]
    if not stem and len(fitting) > 1:
        raise ValueError("its first convolution is 3×3, of which the stride is not known: say stem='cifar' or 'small'")
    stem = one_of("stem", stem or "".join(fitting), fitting)
    block: Any = Bottleneck if any(name.endswith("conv3.weight") for name in shapes) else BasicBlock
    numbers = [re.match(r"layer([1-9])\.(\d{1,3})\.", name) for name in shapes]
    stages = [(int(found[1]), int(found[2])) for found in numbers if found]
    there = [1 + max((k for stage, k in stages if stage == s), default=-1) for s in (1, 2, 3, 4)]
    # Of the networks that exist, the nearest: what it has and the file lacks is then told by name.
    depths = min(KNOWN[block], key=lambda depths: sum(abs(a - b) for a, b in zip([*depths, 0], there)))
    classes = shapes["fc.weight"][0] if classifier and shapes.get("fc.weight") else None
    weights = sum(map(math.prod, shapes.values()))
    zeros = drawing_zeros(2 * weights + SPARE)  # a network of many more weights than there are is not made
    return ResNet(block, depths, base=first[0], stem=stem, num_classes=classes, rng=zeros)


class _File:
    """An open file of weights: what it says that it holds, and its tensors when they are asked for."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self.contents, described = _contents(path)  # by name: shape and dtype
        self.stem = _stem_of(described)
        self._file: Any = safe_open(path, framework="numpy")  # it compares the table with the size of the file

    def state_of(self, module: Module) -> dict[str, Any]:
        """Return the state of a module that is made of the file's tensors, in the module's own dtypes.

        Raises: ValueError, before a tensor is read, if the file lacks a name, has one more, or has another shape.
        """
        wanted = {name: array.shape for name, array in module.state_dict().items()}
        left_out = () if any(name.startswith("fc.") for name in wanted) else ("fc.weight", "fc.bias")
        given = {k: v for k, v in self.contents.items() if not k.endswith(IGNORED) and k not in left_out}
        for verb, names in (("misses", wanted.keys() - given.keys()), ("has the unknown", given.keys() - wanted)):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise ValueError(f"it {verb} {one_line(', '.join(sorted(names)[:3]), most=100)}{more}")
        for name, shape in wanted.items():
            if given[name][0] != shape:
                raise ValueError(f"{name} has shape {given[name][0]}, expected {shape}")
        return {name: self._read(name) for name in wanted}

    def _read(self, name: str) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = self._file.get_tensor(name).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")
        if name.endswith("running_var") and array.min(initial=0) < 0:
            raise ValueError(f"{name} holds a negative variance")
        return array


@contextmanager
def _opened(path: str | Path) -> Iterator[_File]:
    """Open a file of weights, and name it in what goes wrong."""
    path = Path(path)
    try:
        yield _File(path)
    except (FileNotFoundError, ImportError, MemoryError):
        raise
    except Exception as error:  # the library, too, refuses damaged files, in words of its own
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(one_line(f"{shown(path)} holds no encoder: {reason}", most=300)) from None


def _contents(path: Path) -> tuple[dict[str, tuple[tuple[int, ...], str]], Any]:
    """Read a file's table of contents: the shape and dtype of each tensor by name, and its description.

    Raises: ValueError for a table that is too long, or is none, or has a tensor that is not made of floats.
    """
    with os.fdopen(open_regular(path, LARGEST), "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError("its table of contents is too long, or it is no file of safetensors")
        try:
            table = json.loads(file.read(length))
            described = table.pop("__metadata__", {})
            found = {name: (tuple(map(int, item["shape"])), str(item["dtype"])) for name, item in table.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise ValueError("it is cut off, or no file of safetensors") from None
    for name, (_, dtype) in found.items():
        if dtype not in DTYPES and not name.endswith(IGNORED):
            raise ValueError(f"{name} has dtype {dtype}, expected one of {', '.join(DTYPES)}")
    return found, described


def _stem_of(described: Any) -> str:
    """Return the stem that a file names, or "" if it names none that exists."""
    try:
        stem = json.loads(described["minisimclr"])["stem"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
    return stem if isinstance(stem, str) and stem in STEMS else ""

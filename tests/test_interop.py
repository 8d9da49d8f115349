"""Weights in and out: torchvision's names and shapes, and files that are damaged or hostile."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import minisimclr as ms
from minisimclr import interop
from minisimclr.cli import main
from minisimclr.values import drawing_zeros

pytestmark = pytest.mark.host  # files are read and written on the host

# Of https://pytorch.org/vision: parameters with the 1000-class head, in millions of its documentation, written out.
COUNTS = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160}
DEPTHS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3], "resnet50": [3, 4, 6, 3], "resnet101": [3, 4, 23, 3]}


def torchvisions(name: str, classes: int = 0) -> dict[str, tuple[int, ...]]:
    """The names and shapes of torchvision's state dict, written from He et al.'s Table 1 and its naming."""
    found: dict[str, tuple[int, ...]] = {}

    def norm(prefix: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{prefix}.{part}"] = (channels,)
        found[f"{prefix}.num_batches_tracked"] = ()

    deep = name not in ("resnet18", "resnet34")
    found["conv1.weight"] = (64, 3, 7, 7)
    norm("bn1", 64)
    before = 64
    for stage, depth in enumerate(DEPTHS[name]):
        inside, after = 64 * 2**stage, 64 * 2**stage * (4 if deep else 1)
        for k in range(depth):
            prefix = f"layer{stage + 1}.{k}"
            sizes = [(inside, before, 1), (inside, inside, 3), (after, inside, 1)] if deep else [
                (inside, before, 3), (inside, inside, 3)]  # fmt: skip
            for number, (out, into, kernel) in enumerate(sizes, 1):
                found[f"{prefix}.conv{number}.weight"] = (out, into, kernel, kernel)
                norm(f"{prefix}.bn{number}", out)
            if k == 0 and (stage > 0 or deep):
                found[f"{prefix}.downsample.0.weight"] = (after, before, 1, 1)
                norm(f"{prefix}.downsample.1", after)
            before = after
    if classes:
        found |= {"fc.weight": (classes, before), "fc.bias": (classes,)}
    return found


def trained(seed: int = 0, **options: Any) -> ms.ResNet:
    """A small encoder whose weights and running statistics are not those of a fresh one."""
    encoder = ms.resnet_small(**{"base": 4, **options})
    rng = np.random.default_rng(seed)
    encoder.load_state_dict({name: abs(rng.standard_normal(a.shape)) for name, a in encoder.state_dict().items()})
    return encoder


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return dict(json.loads(data[8 : 8 + length]))


def write_raw(path: Path, header: Any, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


# ── Names, shapes, values ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_a_file_holds_exactly_torchvisions_names_and_shapes(name: str, tmp_path: Path) -> None:
    encoder = getattr(ms, name)(rng=drawing_zeros(10**9))  # random weights would take their time
    ms.save_torchvision(encoder, tmp_path / "e.safetensors", dtype="float16")
    header = header_of(tmp_path / "e.safetensors")
    described = header.pop("__metadata__")
    assert {key: tuple(item["shape"]) for key, item in header.items()} == torchvisions(name)
    assert {item["dtype"] for key, item in header.items() if key.endswith("tracked")} == {"I64"}
    assert described["format"] == "pt"  # PyTorch's readers ask for it


@pytest.mark.parametrize("name", COUNTS)
def test_the_oracle_of_names_counts_torchvisions_documented_parameters(name: str) -> None:
    shapes = torchvisions(name, classes=1000)
    weights = {key: shape for key, shape in shapes.items() if key.rpartition(".")[2] in ("weight", "bias")}
    assert sum(map(math.prod, weights.values())) == COUNTS[name]


def test_torchvisions_file_is_read_with_its_classifier(tmp_path: Path) -> None:
    state = {name: np.zeros(shape, np.float16) for name, shape in torchvisions("resnet18", 7).items()}
    for number, name in enumerate(("conv1.weight", "bn1.running_var", "layer4.1.bn2.bias", "fc.weight")):
        state[name] = abs(np.random.default_rng(number).standard_normal(state[name].shape)).astype(np.float16)
    save_file(state, tmp_path / "resnet18.safetensors")
    network = ms.load_torchvision(tmp_path / "resnet18.safetensors", classifier=True)
    for name, array in network.state_dict().items():
        np.testing.assert_array_equal(array, state[name])
    assert (network.features, network.stem) == (512, "imagenet")


def test_a_classifier_is_left_out_unless_it_is_asked_for(tmp_path: Path) -> None:
    ms.save_torchvision(trained(num_classes=7), tmp_path / "e")
    images = np.zeros((1, 16, 16, 3), np.float32)
    assert ms.load_torchvision(tmp_path / "e", classifier=True)(images).shape == (1, 7)
    assert ms.load_torchvision(tmp_path / "e")(images).shape == (1, 16)


@pytest.mark.parametrize(("stem", "base"), [("small", 4), ("cifar", 3), ("imagenet", 5)])
def test_weights_come_back_bit_for_bit_with_the_stem_that_they_had(stem: str, base: int, tmp_path: Path) -> None:
    encoder = trained(base=base, stem=stem)
    ms.save_torchvision(encoder, tmp_path / "e.safetensors")
    again = ms.load_torchvision(tmp_path / "e.safetensors")
    assert again.stem == stem
    images = np.random.default_rng(1).random((2, 32, 32, 3), dtype=np.float32)
    np.testing.assert_array_equal(again(images).data, encoder(images).data)


def test_float16_halves_the_file_and_rounds_to_eleven_bits(tmp_path: Path) -> None:
    encoder = trained(base=16)
    sizes = {}
    for dtype in ("float32", "float16"):
        ms.save_torchvision(encoder, tmp_path / dtype, dtype=dtype)
        sizes[dtype] = sum(array.nbytes for array in load_file(tmp_path / dtype).values() if array.ndim)
    assert sizes["float16"] * 2 == sizes["float32"]
    for name, array in ms.load_torchvision(tmp_path / "float16").state_dict().items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, encoder.state_dict()[name].astype(np.float16))


def test_the_library_gets_contiguous_arrays(tmp_path: Path) -> None:
    """Its writer copies memory as it lies there: a transposed array would come back scrambled."""
    encoder = trained()
    ms.save_torchvision(encoder, tmp_path / "e")
    with safe_open(tmp_path / "e", framework="numpy") as file:
        kernel = file.get_tensor("layer2.0.conv1.weight")  # (D,C,K,K)
    inside = encoder.layer2.named_parameters()[0][1].data  # (K,K,C,D)
    for d, c, i, j in [(0, 0, 0, 0), (1, 2, 0, 2), (7, 3, 2, 1)]:
        assert kernel[d, c, i, j] == inside[i, j, c, d]


def test_a_weight_that_the_dtype_cannot_hold_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    encoder = trained()
    encoder.bn1.weight.data = np.full(4, 1e5, np.float32)
    with pytest.raises(ValueError, match=r"bn1.weight holds numbers that are not finite in float16"):
        ms.save_torchvision(encoder, tmp_path / "e", dtype="float16")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="dtype must be one of"):
        ms.save_torchvision(encoder, tmp_path / "e", dtype="int8")
    with pytest.raises(TypeError, match="encoder must be a ResNet"):
        ms.save_torchvision("resnet18", tmp_path / "e")  # type: ignore[arg-type]


# ── What does not fit is named ────────────────────────────────────────────────────────────────────


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(ValueError, match="holds no encoder: ") as error:
        ms.load_torchvision(path, **options)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)
    return str(error.value).partition("no encoder: ")[2]


def changed(path: Path, **tensors: Any) -> Path:
    """A file of a small encoder, some tensors replaced, and those that are None left out."""
    ms.save_torchvision(trained(), path)
    state = load_file(path) | {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({k: v for k, v in state.items() if v is not None}, path, {"minisimclr": '{"stem": "small"}'})
    return path


def test_missing_misshapen_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "e"
    assert refused(changed(path, bn1__bias=None)) == "it misses bn1.bias"
    four = ("weight", "bias", "running_mean", "running_var")
    says = refused(changed(path, **{f"layer1__0__bn2__{name}": None for name in four}))
    assert says == "it misses layer1.0.bn2.bias, layer1.0.bn2.running_mean, layer1.0.bn2.running_var and 1 more"
    assert refused(changed(path, head__bias=np.ones(2, np.float32))) == "it has the unknown head.bias"
    says = refused(changed(path, layer1__0__conv1__weight=np.ones((4, 4, 3, 1), np.float32)))
    assert says == "layer1.0.conv1.weight has shape (4, 4, 3, 1), expected (4, 4, 3, 3)"
    assert "no conv1.weight" in refused(changed(path, conv1__weight=None))
    says = refused(changed(path, bn1__weight=np.ones(4, np.int32)))
    assert says == "bn1.weight has dtype I32, expected one of F16, F32, F64"
    assert "NaN or infinity" in refused(changed(path, bn1__weight=np.full(4, np.nan, np.float32)))
    assert "negative variance" in refused(changed(path, bn1__running_var=np.full(4, -1, np.float32)))


def test_a_whole_stage_too_few_is_missed_and_another_network_refused(tmp_path: Path) -> None:
    state = {k: np.zeros(s, np.float16) for k, s in torchvisions("resnet18").items() if "layer4.1" not in k}
    save_file(state, tmp_path / "e")
    assert refused(tmp_path / "e").startswith("it misses layer4.1.bn1.bias, layer4.1.bn1.running_mean")


def test_the_stride_of_a_small_stem_must_be_said(tmp_path: Path) -> None:
    ms.save_torchvision(trained(), tmp_path / "e")
    save_file(load_file(tmp_path / "e"), tmp_path / "e")  # without our description
    assert refused(tmp_path / "e").endswith("say stem='cifar' or 'small'")
    assert ms.load_torchvision(tmp_path / "e", stem="cifar").stem == "cifar"
    assert "stem must be one of cifar, small" in refused(tmp_path / "e", stem="imagenet")


def test_weights_of_another_network_do_not_get_into_one_that_is_there(tmp_path: Path) -> None:
    ms.save_torchvision(trained(), tmp_path / "e")
    encoder = ms.resnet_small(base=8)
    before = encoder.state_dict()
    with pytest.raises(ValueError, match=r"bn1.bias has shape|conv1.weight has shape"):
        interop.load_into(encoder, tmp_path / "e")
    for name, array in encoder.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


# ── A file is untrusted ───────────────────────────────────────────────────────────────────────────


def test_a_file_that_is_cut_off_at_any_byte_is_refused_in_one_line(tmp_path: Path) -> None:
    ms.save_torchvision(trained(base=2), tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    for size in [*range(40), *range(40, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:size])
        refused(path)


@pytest.mark.parametrize("seed", range(30))
def test_random_bytes_in_a_file_are_refused_or_read_as_numbers(seed: int, tmp_path: Path) -> None:
    ms.save_torchvision(trained(base=2), tmp_path / "e")
    data = bytearray((tmp_path / "e").read_bytes())
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, 4000, 5):
        data[place] = rng.integers(0, 256)
    (tmp_path / "e").write_bytes(data)
    try:
        ms.load_torchvision(tmp_path / "e")
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) <= 300  # noqa: PT017


def entry(shape: list[int], end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"[" * 100_000, "cut off"),
        (b"{}" + b" " * (1 << 20), "too long"),
        ([1, 2], "cut off"),
        ({"conv1.weight": 3}, "cut off"),
        ({"conv1.weight": entry([1 << 40, 3, 7, 7], 4)}, ""),
        ({"conv1.weight": entry([-1, 3, 7, 7], 4)}, ""),
        ({"conv1.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 50]}}, ""),
        ({"conv1.weight": entry([1], 4), "__metadata__": {"minisimclr": "[" * 9000}}, ""),
        ({"a\n\x1b[2J": entry([1], 4)}, "no conv1.weight"),
    ],
)
def test_a_hostile_table_of_contents_is_refused_before_memory_is_taken(header: Any, says: str, tmp_path: Path) -> None:
    write_raw(tmp_path / "e", header, bytes(4))
    assert says in refused(tmp_path / "e")


def test_a_declared_network_is_not_made_unless_the_file_has_its_weights(tmp_path: Path) -> None:
    """One convolution of 4,096 channels implies a network of 10⁹ weights."""
    save_file({"conv1.weight": np.zeros((4096, 3, 7, 7), np.float16)}, tmp_path / "e")
    assert "more weights than there are" in refused(tmp_path / "e")


def test_a_pipe_a_folder_and_a_missing_file_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe, not a file" in refused(tmp_path / "pipe")
    assert "a folder, not a file" in refused(tmp_path)
    with pytest.raises(FileNotFoundError):
        ms.load_torchvision(tmp_path / "none")


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "e").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    refused(tmp_path / "e")
    assert not Path("ran").exists()


# ── Commands ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    ms.pretrain(ms.Config(size=16, batch=4, epochs=1), images, folder=folder)
    return folder


def test_export_writes_the_encoder_of_a_run_and_shows_the_lines_of_pytorch(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "encoder.safetensors"
    assert main(["export", str(run_folder), str(file)]) == 0
    shown = capsys.readouterr().out
    code = shown.partition("in PyTorch:\n\n")[2]
    compile(code, "shown", "exec")
    assert str(file) in code
    expected = ms.load_run(run_folder).model.encoder.state_dict()
    for name, array in ms.load_torchvision(file).state_dict().items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_three_lines_of_pytorch_are_enough_for_a_resnet_that_torchvision_names(name: str) -> None:
    lines = interop.torch_lines(getattr(ms, name)(rng=drawing_zeros(10**9)), "e.safetensors").splitlines()
    assert len(lines) == 3
    assert f"torchvision.models.{name}()" in lines[1]
    small = interop.torch_lines(ms.resnet_small(), "e.safetensors")
    assert "net.inplanes = 32" in small
    assert "stride=2, padding=1, bias=False" in small


def test_pretraining_begins_with_the_same_bits_as_a_file_of_weights_holds(run_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "encoder.safetensors"
    ms.save_torchvision(ms.load_run(run_folder).model.encoder, file)
    images = np.random.default_rng(1).integers(0, 256, (8, 16, 16, 3), np.uint8)
    config = ms.Config(size=16, batch=4, epochs=1, lr=1e-30, momentum=0, weight_decay=0, init=str(file))
    run = ms.pretrain(config, images, folder=tmp_path / "run")
    expected = ms.load_torchvision(file).state_dict()
    for name, array in run.model.encoder.state_dict().items():
        if "running" not in name:  # one step of 1e-30 moves no weight
            np.testing.assert_array_equal(array, expected[name])
    file.unlink()  # a run that is loaded or resumed does not need the file any more
    assert ms.load_run(tmp_path / "run").config.init == str(file)
    ms.pretrain(config, images, folder=tmp_path / "run", resume=True)


def test_a_file_that_does_not_fit_ends_pretraining_before_a_folder_is_made(tmp_path: Path) -> None:
    ms.save_torchvision(ms.resnet_small(base=8), tmp_path / "e")
    images = np.zeros((8, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="expected"):
        ms.pretrain(ms.Config(size=16, batch=4, init=str(tmp_path / "e")), images, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()

"""Data sets that are arrays, lists of files, labels from names and tables, and the command that shows what is read."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minisimclr.cli import main
from minisimclr.data import DataError, Reading, binaries, load_dataset, pickled, splits_of

pytestmark = pytest.mark.host

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(i))
    return root


def shades(dataset: object) -> list[int]:
    return dataset.images[:, 0, 0, 0].tolist()


# ── Arrays ────────────────────────────────────────────────────────────────────────────────────────


def test_a_numpy_file_holds_images(tmp_path):
    np.save(tmp_path / "x.npy", PIXELS)
    data = load_dataset(tmp_path / "x.npy")
    np.testing.assert_array_equal(data.images, PIXELS)
    assert data.class_names == ("unlabelled",)
    assert load_dataset(tmp_path / "x.npy", size=8, limit=5).images.shape == (5, 8, 8, 3)


@pytest.mark.parametrize("keys", ["{0}_images {0}_labels", "x_{0} y_{0}"])
def test_medmnist_and_keras_keep_their_splits_in_one_file(tmp_path, keys):
    arrays = {}
    for split, grey in (("train", PIXELS[:20, ..., 0]), ("test", PIXELS[20:, ..., 0])):
        images, labels = keys.format(split).split()
        arrays |= {images: grey, labels: LABELS[: len(grey), None]}
    np.savez(tmp_path / "x.npz", **arrays)
    train, test = (load_dataset(tmp_path / "x.npz", split) for split in ("train", "test"))
    np.testing.assert_array_equal(test.images, np.repeat(PIXELS[20:, ..., :1], 3, axis=-1))
    assert (train.labels.tolist(), test.class_names) == (LABELS[:20].tolist(), ("0", "1", "2"))


def test_of_images_and_labels_a_tenth_is_held_out(tmp_path):
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=LABELS)
    assert splits_of(tmp_path / "x.npz") == {"train": ("train", True), "test": ("test", True)}
    train, test = (load_dataset(tmp_path / "x.npz", split) for split in ("train", "test"))
    assert len(train) + len(test) == 30
    assert 0 < len(test) < 10


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": PIXELS.astype(np.float32), "labels": LABELS}, "images must be uint8, not float32"),
        ({"images": PIXELS, "labels": LABELS[:7]}, "labels in split|boolean index"),
        ({"images": PIXELS, "labels": np.eye(30)}, "labels must be one whole number"),
        ({"pictures": PIXELS}, "needs arrays called images and labels, .*it has pictures"),
        ({"images": PIXELS[..., :2], "labels": LABELS}, r"must have the shape \(N,H,W\)"),
        ({"images": np.array([{}], object), "labels": LABELS[:1]}, "Python objects are not read"),
    ],
)
def test_arrays_that_are_no_images_are_refused_in_one_line(tmp_path, arrays, says):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=says):
        load_dataset(tmp_path / "x.npz")


def test_cifar_in_binary_files(tmp_path):
    def records(pixels: np.ndarray, labels: np.ndarray) -> bytes:
        planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        return np.concatenate([labels.reshape(len(pixels), -1).astype(np.uint8), planes], axis=1).tobytes()

    ten, hundred = tmp_path / "cifar-10-batches-bin", tmp_path / "cifar-100-binary"
    ten.mkdir()
    hundred.mkdir()
    (ten / "data_batch_1.bin").write_bytes(records(PIXELS[:10], LABELS[:10]))
    (ten / "data_batch_2.bin").write_bytes(records(PIXELS[10:20], LABELS[10:20]))
    (ten / "test_batch.bin").write_bytes(records(PIXELS[20:], LABELS[20:]))
    (ten / "batches.meta.txt").write_text("plane\ncar\nbird\n\n")
    for split, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
        both = np.stack([LABELS[part] * 0, LABELS[part]], axis=1)
        (hundred / f"{split}.bin").write_bytes(records(PIXELS[part], both))
    (hundred / "fine_label_names.txt").write_text("plane\ncar\nbird\n")
    for source in (ten, hundred):
        train, test = (load_dataset(source, split) for split in ("train", "test"))
        np.testing.assert_array_equal(train.images, PIXELS[:20])
        assert test.labels.tolist() == LABELS[20:].tolist()
        assert test.class_names == ("plane", "car", "bird")
    (ten / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"test_batch\.bin is cut off"):
        load_dataset(ten, "test")


class Harmful:
    def __reduce__(self) -> object:
        return os.system, ("touch harmed",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_in_python_files_and_nothing_but_plain_data(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINISIMCLR_DATA", str(tmp_path))
    source = tmp_path / "cifar-10-batches-py"
    source.mkdir()
    planes = PIXELS.transpose(0, 3, 1, 2).reshape(30, -1)

    def put(name: str, value: object) -> None:
        (source / name).write_bytes(pickle.dumps(value, protocol))

    put("data_batch_1", {b"data": planes[:20], b"labels": LABELS[:20].tolist()})
    put("test_batch", {b"data": planes[20:], b"labels": LABELS[20:].tolist()})
    put("batches.meta", {"label_names": ["plane", "car", "bird"]})
    data = load_dataset("cifar10", "test")  # found by its name below $MINISIMCLR_DATA
    np.testing.assert_array_equal(data.images, PIXELS[20:])
    assert (data.class_names, data.labels.tolist()) == (("plane", "car", "bird"), LABELS[20:].tolist())
    for bad in (Harmful(), np.array([{}], object)):
        put("test_batch", {b"data": bad, b"labels": [0]})
        with pytest.raises(DataError, match="test_batch cannot be read"):
            load_dataset(source, "test")
    assert not (tmp_path / "harmed").exists()


def test_a_published_file_must_have_its_checksum_and_another_is_said_to_have_none(tmp_path, monkeypatch):
    planes = PIXELS.transpose(0, 3, 1, 2).reshape(30, -1)
    content = {b"data": planes, b"fine_labels": LABELS.tolist()}
    for name, value in {"train": content, "test": content, "meta": {"fine_label_names": ["a", "b", "c"]}}.items():
        (tmp_path / name).write_bytes(pickle.dumps(value, 4))
    said: list[str] = []
    data = load_dataset(tmp_path, "train", report=said.append)
    assert said == [f"{tmp_path}: train: not as published, without a checksum; read as plain data"]
    own = (tmp_path / "train").read_bytes()
    monkeypatch.setattr(pickled, "PUBLISHED", {len(own): hashlib.md5(own).hexdigest()})
    monkeypatch.setattr(binaries, "PUBLISHED", pickled.PUBLISHED)
    said.clear()
    np.testing.assert_array_equal(load_dataset(tmp_path, "train", report=said.append).images, data.images)
    assert said == []
    (tmp_path / "train").write_bytes(own.replace(planes[0].tobytes()[:50], bytes(50)))  # a disk lost a block
    with pytest.raises(DataError, match="train is as long as the published file, but its checksum is wrong"):
        load_dataset(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.npz", b"junk", "cut off, or damaged"),
        ("x.npy", b"junk", "no NumPy file of numbers"),
        ("train-images-idx3-ubyte.gz", b"not packed", "cut off, or damaged"),
        ("train-images-idx3-ubyte.gz", gzip.compress(bytes(9), mtime=0)[:12], "cut off, or damaged"),
        ("train_X.bin", b"short", "cut off"),
    ],
)
def test_a_damaged_file_of_arrays_is_refused_in_one_line_that_names_the_source(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    source = tmp_path / name if name.startswith("x.") else tmp_path
    for ask in (load_dataset, splits_of):
        if ask is splits_of and name != "x.npz":
            continue  # it does not look at the images
        with pytest.raises(DataError, match=says) as caught:
            ask(source)
        assert str(caught.value).startswith(f"{source}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("lacking", ["data", "labels", "label_names"])
def test_a_pickle_that_lacks_something_is_refused_in_one_line(tmp_path, lacking):
    planes = PIXELS.transpose(0, 3, 1, 2).reshape(30, -1)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        content = {"data": planes, "labels": LABELS.tolist(), "label_names": [b"a", b"b", b"c"]}
        if (name == "batches.meta") == (lacking == "label_names"):
            del content[lacking]
        (tmp_path / name).write_bytes(pickle.dumps(content, 4))
    with pytest.raises(DataError, match=f"it lacks {lacking}, and is no data set of its kind"):
        load_dataset(tmp_path, report=lambda line: None)


def test_names_of_classes_that_are_bytes_are_text(tmp_path):
    planes = PIXELS.transpose(0, 3, 1, 2).reshape(30, -1)
    for name in ("data_batch_1", "test_batch", "batches.meta"):
        content = {b"data": planes, b"labels": LABELS.tolist(), b"label_names": [b"plane", b"car", "bird"]}
        (tmp_path / name).write_bytes(pickle.dumps(content, 4))
    assert load_dataset(tmp_path, report=lambda line: None).class_names == ("plane", "car", "bird")


def test_one_image_is_not_read_as_many_rows(tmp_path):
    np.save(tmp_path / "x.npy", PIXELS[0])
    with pytest.raises(DataError, match="may be one image"):
        load_dataset(tmp_path / "x.npy")


def test_several_data_sets_in_one_folder_are_not_mixed(tmp_path):
    images = struct.pack(">4B3I", 0, 0, 8, 3, 2, 4, 4) + bytes(32)
    for name in ("emnist-letters-train", "emnist-digits-test"):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(images)
    with pytest.raises(DataError, match="several data sets: emnist-digits, emnist-letters; move"):
        load_dataset(tmp_path)


def test_a_folder_that_holds_one_data_set_stands_for_it(tmp_path):
    pixels = RNG.integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    (tmp_path / "stl10_binary").mkdir()
    (tmp_path / "stl10_binary" / "train_X.bin").write_bytes(pixels.transpose(0, 3, 2, 1).tobytes())
    (tmp_path / "stl10_binary.tar.gz").touch()
    np.testing.assert_array_equal(load_dataset(tmp_path, size=96).images, pixels)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    images = struct.pack(">4B3I", 0, 0, 8, 3, 2, 5, 5) + bytes(50)
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(images)
    with pytest.raises(DataError, match="several data sets: MNIST, stl10_binary; name one of them"):
        load_dataset(tmp_path)
    assert len(load_dataset(tmp_path / "MNIST")) == 2


def test_no_random_bytes_in_a_published_file_are_taken_for_its_own(tmp_path, monkeypatch):
    planes, rng = PIXELS.transpose(0, 3, 1, 2).reshape(30, -1), np.random.default_rng(0)
    own = pickle.dumps({"data": planes, "fine_labels": LABELS.tolist()}, 4)
    monkeypatch.setattr(pickled, "PUBLISHED", {len(own): hashlib.md5(own).hexdigest()})
    for place in rng.integers(0, len(own), 20).tolist():
        flipped = bytearray(own)
        flipped[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "train").write_bytes(flipped)
        with pytest.raises(ValueError, match="checksum is wrong"):
            pickled.unpickled(tmp_path / "train")


def test_the_command_refuses_what_is_no_file_of_arrays_in_one_line(tmp_path, capsys):
    for name in ("x.npz", "x.npy", "train-images-idx3-ubyte.gz"):
        (tmp_path / name).write_bytes(b"junk")
        source = tmp_path / name if name.startswith("x.") else tmp_path
        assert main(["data", str(source), "--sheet", str(tmp_path / "sheet.png")]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_stl10_keeps_columns_first_and_counts_from_one(tmp_path):
    pixels = RNG.integers(0, 256, (4, 96, 96, 3), dtype=np.uint8)
    columns = pixels.transpose(0, 3, 2, 1).tobytes()
    for split in ("train", "test", "unlabeled"):
        (tmp_path / f"{split}_X.bin").write_bytes(columns)
    for split in ("train", "test"):
        (tmp_path / f"{split}_y.bin").write_bytes(bytes([1, 10, 2, 1]))
    data = load_dataset(tmp_path, "train", size=96)
    np.testing.assert_array_equal(data.images, pixels)
    assert data.labels.tolist() == [0, 9, 1, 0]
    assert load_dataset(tmp_path, "unlabelled").class_names == ("unlabelled",)
    assert splits_of(tmp_path)["unlabeled"] == ("unlabeled", False)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_of_the_mnist_family(tmp_path, packed):
    def put(name: str, values: np.ndarray) -> None:
        data = struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape) + values.astype(np.uint8).tobytes()
        (tmp_path / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)

    for split, part in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        put(f"{split}-images-idx3-ubyte", PIXELS[part, :28, :28, 0])
        put(f"{split}-labels-idx1-ubyte", LABELS[part])
    data = load_dataset(tmp_path, "test", size=28)
    np.testing.assert_array_equal(data.images, np.repeat(PIXELS[20:, :28, :28, :1], 3, axis=-1))
    assert data.labels.tolist() == LABELS[20:].tolist()
    put("t10k-images-idx3-ubyte", PIXELS[:1, :, :, 0])
    name = next(path for path in tmp_path.iterdir() if path.name.startswith("t10k-images"))
    name.write_bytes(gzip.compress(b"\0\0\x08\3" + b"\0\0\xff\xff" * 3) if packed else b"\0\0\x08\3" + b"\0\0\1\1" * 3)
    with pytest.raises(DataError, match=r"declares|cut off"):
        load_dataset(tmp_path, "test")


def test_a_data_set_that_is_not_there_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MINISIMCLR_DATA", raising=False)
    with pytest.raises(DataError, match=r"stl10: not found; looked for stl10_binary, data/stl10_binary; --data-dir"):
        load_dataset("stl10")


# ── Lists, and labels that are asked for ──────────────────────────────────────────────────────────


def test_a_list_of_files_is_read_below_its_folder(tmp_path):
    folder(tmp_path, ["cat/1.png", "dog/1.png", "cat/2.png"])
    (tmp_path / "list.txt").write_text(f"cat/1.png\ndog/1.png\n{tmp_path}/cat/2.png\n../x.png\n/etc/1.png\ncat/9.png\n")
    lines: list[str] = []
    data = load_dataset(tmp_path / "list.txt", size=8, report=lines.append, reading=Reading(layout="flat"))
    assert sorted(shades(data)) == [0, 1, 2]
    assert "2 names that point out of the source" in lines[0]
    assert "1 listed, but not there" in lines[0]


def test_labels_come_from_file_names_when_asked_for(tmp_path):
    named = [f"train/{kind}.{i}.png" for kind in ("cat", "dog") for i in range(5)]
    folder(tmp_path, [*named, "test1/1.png", "test1/2.png"])
    assert load_dataset(tmp_path, size=8).class_names == ("unlabelled",)
    data = load_dataset(tmp_path, size=8, reading=Reading(labels="names"))
    assert (data.class_names, data.labels.tolist()) == (("cat", "dog"), [0] * 5 + [1] * 5)
    assert splits_of(tmp_path, Reading(labels="names"))["test1"] == ("test", False)


def test_names_that_tell_no_classes_are_refused(tmp_path):
    folder(tmp_path, ["001.png", "002.png"])
    with pytest.raises(DataError, match="file names tell no classes"):
        load_dataset(tmp_path, reading=Reading(labels="names"))


@pytest.mark.parametrize(
    "text",
    [
        "file_name,label\n1.png,cat\n2.png,dog\n3.png,cat\n",
        "id;breed\r\n1;cat\r\n2;dog\r\n3;cat\r\n",
        "\ufefflabel\tpath\ncat\tphotos/1.png\ndog\tphotos/2.png\ncat\tphotos/3.png\n",
    ],
    ids=["hugging face", "kaggle", "spreadsheet"],
)
def test_labels_come_from_a_table_when_asked_for(tmp_path, text):
    folder(tmp_path, [f"photos/{i}.png" for i in (1, 2, 3, 4)])
    (tmp_path / "metadata.csv").write_text(text)
    reading, labels = Reading(labels="metadata.csv"), {}
    lines: list[str] = []
    for split in splits_of(tmp_path, reading):
        try:
            data = load_dataset(tmp_path, split, size=8, reading=reading, report=lines.append)
        except DataError:  # no image of this split
            continue
        labels |= {shade: data.class_names[label] for shade, label in zip(shades(data), data.labels)}
    assert labels == {0: "cat", 1: "dog", 2: "cat"}
    assert "1 without a label" in lines[0]


@pytest.mark.parametrize(
    ("text", "says"), [("a,b,c\n1,2,3\n", "needs columns file_name and label, not a, b, c"), (None, "no such table")]
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, text, says):
    folder(tmp_path, ["1.png", "2.png"])
    if text:
        (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        load_dataset(tmp_path, reading=Reading(labels="t.csv"))


# ── The command ───────────────────────────────────────────────────────────────────────────────────


def test_the_command_names_all_that_is_read_and_left_out(tmp_path, monkeypatch, capsys):
    root = folder(tmp_path / "photos", ["train/cat/1.png", "train/dog/1.png", "val/cat/1.png"])
    (root / "val/cat/2.png").write_bytes((root / "train/dog/1.png").read_bytes())
    (root / "train/cat/bad.png").write_bytes(b"<html>")
    (root / "train/cat/notes.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    assert main(["data", "photos", "--sheet", "sheet.png"]) == 0
    said = capsys.readouterr().out
    for line in (
        "photos: 5 images",
        "train                3  cat 2, dog 1",
        "val                  2  cat 2, dog 0",
        "1 file is in more than one split",
        "train/dog/1.png = val/cat/2.png",
        "1 cannot be read",
        "train/cat/bad.png: not a PNG",
        "1 left out: of other formats",
        "  train/cat/notes.txt",
        "sheet.png: 4 of the images",
    ):
        assert line in said
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_the_command_shows_arrays_and_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", images=PIXELS, labels=LABELS)
    assert main(["data", "x.npz"]) == 0
    assert "x.npz" in capsys.readouterr().out
    assert (tmp_path / "minisimclr-contact-sheet.png").is_file()
    assert main(["data", "nowhere"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

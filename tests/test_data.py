"""Data sets: layouts, odd images, hostile files, and the order of an epoch."""

from __future__ import annotations

import io
import os
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minisimclr.data import DataError, Dataset, archive, decode, doodles, files, find, load_dataset, taken
from minisimclr.training.batches import epoch_order

pytestmark = pytest.mark.host

LIMITS = {"train": 40, "test": 16, "unseen": 16}


def picture(shade: int = 0, width: int = 8, height: int = 8) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), shade, np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_that_declares(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises any size."""
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))  # noqa: E731
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def write(root: Path, contents: dict[str, int | bytes]) -> Path:
    """A folder of files; a number stands for a PNG of that shade."""
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(picture(content)) if isinstance(content, int) else content)
    return root


def write_zip(path: Path, contents: dict[str, int | bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, encoded(picture(content)) if isinstance(content, int) else content)
    return path


@pytest.fixture(params=["folder", "zip"])
def make(request, tmp_path):
    """Both kinds of source, of the same contents."""
    if request.param == "folder":
        return lambda contents: write(tmp_path / "images", contents)
    return lambda contents: write_zip(tmp_path / "images.zip", contents)


def shades(dataset: Dataset) -> list[int]:
    return dataset.images[:, 0, 0, 0].tolist()


def quiet(line: str) -> None:
    raise AssertionError(f"unexpected report: {line}")


# ── Layouts ───────────────────────────────────────────────────────────────────────────────────────


def test_split_folders_decide_and_classes_agree_between_splits(make):
    source = make({"train/dog/2.png": 20, "train/dog/1.png": 10, "train/ant/1.png": 5, "Test/dog/1.png": 99})
    train, test = (load_dataset(source, split, size=8, report=quiet) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("ant", "dog")
    assert shades(train) == [5, 10, 20]  # sorted by name
    assert train.labels.tolist() == [0, 1, 1]
    assert shades(test) == [99]
    assert test.labels.tolist() == [1]
    assert train.images.dtype == np.uint8
    assert train.images.shape == (3, 8, 8, 3)
    assert train.labels.dtype == np.int64
    assert len(train) == 3


def test_without_split_folders_a_tenth_is_held_out_for_good(make):
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(60)]
    source = make({name: shade for shade, name in enumerate(names)})
    train, test = (load_dataset(source, split, size=8, report=quiet) for split in ("train", "test"))
    assert sorted(shades(train) + shades(test)) == list(range(120))
    assert 4 <= len(test) <= 24
    assert train.class_names == test.class_names == ("cat", "dog")
    assert shades(test)[:3] == [13, 28, 52]  # by name alone: the same on every machine


def test_new_images_move_no_old_one_into_the_test_split(tmp_path):
    small = write(tmp_path / "a", {f"{kind}/{i}.png": i for kind in "xy" for i in range(40)})
    large = write(tmp_path / "b", {f"{kind}/{i}.png": i for kind in "wxyz" for i in range(60)})
    held = {name: load_dataset(source, "test", size=8) for name, source in (("small", small), ("large", large))}
    for kind in "xy":
        old = [s for s, k in zip(shades(held["small"]), held["small"].labels) if "xy"[k] == kind]
        new = [s for s, k in zip(shades(held["large"]), held["large"].labels) if "wxyz"[k] == kind and s < 40]
        assert old == new


def test_images_without_classes_are_for_pretraining_only(make):
    source = make({"a.png": 1, "b.JPG": encoded(picture(200), "JPEG")})
    dataset = load_dataset(source, size=8, report=quiet)
    assert dataset.class_names == ("unlabelled",)
    assert dataset.labels.tolist() == [0, 0]
    assert len(dataset) == 2
    with pytest.raises(DataError, match=r"no split 'test': .*nothing to evaluate; there are: train$"):
        load_dataset(source, "test", size=8)


def test_one_folder_around_everything_says_nothing(make):
    assert load_dataset(make({"photos/cat/1.png": 1, "photos/dog/2.png": 2}), size=8).class_names == ("cat", "dog")


def test_one_folder_of_images_is_a_folder_of_images(make):
    assert load_dataset(make({"photos/1.png": 1, "photos/2.png": 2}), size=8).class_names == ("unlabelled",)


def test_an_unlabelled_split_beside_labelled_ones(make):
    source = make({"train/cat/1.png": 1, "train/dog/1.png": 2, "unlabelled/1.png": 3})
    assert load_dataset(source, "unlabelled", size=8).class_names == ("unlabelled",)
    assert load_dataset(source, "train", size=8).class_names == ("cat", "dog")


def test_splits_without_classes(make):
    source = make({"train/1.png": 1, "val/1.png": 3})
    assert shades(load_dataset(source, "val", size=8)) == [3]


def test_a_class_may_be_called_train(make):
    dataset = load_dataset(make({"bus/1.png": 1, "car/1.png": 2, "train/1.png": 3}), size=8)
    assert dataset.class_names == ("bus", "car", "train")


def test_folders_inside_a_class_belong_to_it(make):
    dataset = load_dataset(make({"train/cat/old/1.png": 1, "train/cat/2.png": 2, "train/dog/1.png": 3}), size=8)
    assert dataset.labels.tolist() == [0, 0, 1]


def test_hidden_and_stray_images_are_left_out(make):
    lines: list[str] = []
    source = make({"train/a/1.png": 1, "train/b/1.png": 2, "train/stray.png": 3, "more/1.png": 4, "5.png": 5,
                   "__MACOSX/train/a/1.png": b"?", "train/a/._1.png": b"?", ".cache/x.png": b"?"})  # fmt: skip
    assert shades(load_dataset(source, size=8, report=lines.append)) == [1, 2]
    assert [line.removeprefix(f"{source}: ") for line in lines] == [
        "2 images (train 2); left out: 3 hidden, 2 outside the split folders, 1 outside the class folders"
    ]


def test_limit_takes_evenly(make):
    source = make({f"train/{kind}/{i}.png": 10 * k + i for k, kind in enumerate("abcd") for i in range(10)})
    dataset = load_dataset(source, size=8, limit=8)
    assert dataset.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(load_dataset(source, size=8, limit=1000)) == 40


@pytest.mark.parametrize(
    ("contents", "split", "says"),
    [
        ({"train/a/1.png": 1, "val/a/1.png": 1}, "test", "no split 'test'; there are: train, val"),
        ({"a/1.png": 1, "b/1.png": 1}, "val", "no split 'val': it has no split folders; there are: train, test"),
        ({"a/2.png": 1, "b/2.png": 1}, "test", "no images in split 'test'"),
        ({"notes.txt": b"hello"}, "train", "no images found"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(make, contents, split, says):
    source = make(contents)
    with pytest.raises(DataError, match=says) as caught:
        load_dataset(source, split)
    assert str(caught.value).startswith(str(source))
    assert "\n" not in str(caught.value)


def test_a_source_that_is_missing_or_empty_or_no_zip_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder or zip file"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no images found"):
        load_dataset(tmp_path)
    (tmp_path / "x.zip").write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"x\.zip: neither a folder nor a readable zip"):
        load_dataset(tmp_path / "x.zip")
    for wrong in ({"size": 0}, {"limit": 0}):
        with pytest.raises(ValueError, match="must be at least 1, not 0"):
            load_dataset(tmp_path, **wrong)


# ── Images of every kind ──────────────────────────────────────────────────────────────────────────


def load_one(tmp_path: Path, name: str, content: bytes, size: int = 8) -> np.ndarray:
    write(tmp_path, {name: content})
    return load_dataset(tmp_path, size=size, report=quiet).images[0]


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "JPEG"])
def test_an_image_of_the_right_size_is_not_touched(tmp_path, form):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(pixels), form, **({"lossless": True} if form == "WEBP" else {}))
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(load_one(tmp_path, f"1.{form.lower()}", content), expected)


@pytest.mark.parametrize(("width", "height"), [(40, 16), (16, 40), (17, 31), (3, 2), (1, 50)])
def test_the_central_square_is_resized(tmp_path, width, height):
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    got = load_one(tmp_path, "1.png", encoded(Image.fromarray(ramp)), 8).astype(float)
    side = min(width, height)
    assert abs(got[..., 0].mean() - ramp[..., 0].mean()) < 2  # centred
    assert abs(got[..., 1].mean() - ramp[..., 1].mean()) < 2
    span = 255 * side / max(width, 2) * 7 / 8
    if side > 8:
        np.testing.assert_allclose(np.ptp(got[..., 0]), span, atol=0.12 * span)


def test_shrinking_averages(tmp_path):
    checks = np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)
    got = load_one(tmp_path, "1.png", encoded(Image.fromarray(np.stack([checks] * 3, -1).astype(np.uint8))))
    assert abs(got.astype(int) - 128).max() <= 2


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    x, y = np.meshgrid(np.linspace(0, 6, 400), np.linspace(0, 4, 300))
    image = Image.fromarray(np.stack([127 + 100 * np.sin(x), 127 + 100 * np.cos(y), 127 + 0 * x], -1).astype(np.uint8))
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR, box=(50, 0, 350, 300)))
    got = load_one(tmp_path, "1.jpg", encoded(image, "JPEG", quality=95), 16)
    assert abs(got.astype(int) - expected).max() <= 8


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("L", (8, 8), 100), (100, 100, 100)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.new("P", (8, 8), 0), (0, 0, 0)),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 51)), (244, 204, 204)),
        (Image.new("LA", (8, 8), (0, 0)), (255, 255, 255)),
        (Image.fromarray(np.full((8, 8), 257 * 77, np.uint16)), (77, 77, 77)),
        (Image.new("I;16", (8, 8), 65535), (255, 255, 255)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_every_mode_becomes_rgb(tmp_path, image, colour):
    np.testing.assert_array_equal(load_one(tmp_path, "1.png", encoded(image))[3, 3], colour)


def test_cmyk_and_a_transparent_palette_become_rgb(tmp_path):
    cyan = load_one(tmp_path / "a", "1.jpg", encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"))[4, 4]
    assert cyan[0] < 40
    assert cyan[1:].min() > 120
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9] * 2)
    content = encoded(palette, transparency=1)
    np.testing.assert_array_equal(load_one(tmp_path / "b", "1.png", content)[4, 4], [255, 255, 255])


def test_photographs_are_turned_upright(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:, :4] = 255  # bright on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: left goes up
    got = load_one(tmp_path, "1.png", encoded(Image.fromarray(pixels), exif=exif))
    assert got[:4].min() == 255
    assert got[4:].max() == 0


def test_nonsense_about_the_orientation_does_not_lose_the_image(tmp_path):
    content = encoded(picture(7), exif=b"Exif\0\0garbage!")
    np.testing.assert_array_equal(load_one(tmp_path, "1.png", content), 7)


def test_the_same_with_one_thread_and_with_four(tmp_path, monkeypatch):
    write(tmp_path, {f"{i:02}.png": i for i in range(40)})
    loaded = []
    for threads in ("1", "4"):
        monkeypatch.setenv("MINISIMCLR_THREADS", threads)
        loaded.append(load_dataset(tmp_path, size=8).images)
    np.testing.assert_array_equal(*loaded)


# ── Untrusted files ───────────────────────────────────────────────────────────────────────────────

DAMAGED = {
    "text": b"I am no image",
    "empty": b"",
    "cut": encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))[:3000],
    "bomb": png_that_declares(30_000, 30_000),
    "large": png_that_declares(10_000, 9_000),  # above our limit, below Pillow's error
    "page": b"<!DOCTYPE html><p>Not found",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_an_unreadable_image_is_named_and_skipped(make, kind):
    lines: list[str] = []
    source = make({"train/a/1.png": 1, "train/a/2.png": DAMAGED[kind], "train/b/3.png": 3})
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        dataset = load_dataset(source, size=8, report=lines.append)
    assert not warned  # Pillow warns of large images; we name them
    assert shades(dataset) == [1, 3]
    assert dataset.labels.tolist() == [0, 1]
    assert len(lines) == 1
    assert f"{source}: skipped train/a/2.png: " in lines[0]
    assert "object at" not in lines[0]
    assert len(lines[0].split(": ", 2)[2]) > 5  # says why


def test_the_declared_size_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # Pillow's own guard off: ours alone
    with pytest.raises(ValueError, match="10000×9000 pixels, more than 64 megapixels"):
        decode.decode_image(io.BytesIO(DAMAGED["large"]), 8)


def test_by_default_the_skipped_are_named_on_stderr(make, capsys):
    load_dataset(make({"a.png": 1, "b.png": b"?"}), size=8)
    out, err = capsys.readouterr()
    assert out == ""
    assert "skipped b.png: not a PNG, JPEG, WebP, BMP, GIF, TIFF, AVIF or HEIC image" in err


def test_many_unreadable_images_are_refused(make):
    good, bad = {f"g{i}.png": 1 for i in range(20)}, {f"b{i:02}.png": b"?" for i in range(11)}
    with pytest.raises(DataError, match="more than 10 of 31 images cannot be read, such as b0"):
        load_dataset(make(good | bad), size=8)


def test_ten_may_be_unreadable_and_are_all_named(make):
    lines: list[str] = []
    source = make({f"g{i}.png": 1 for i in range(20)} | {f"b{i:02}.png": b"?" for i in range(10)})
    assert len(load_dataset(source, size=8, report=lines.append)) == 20
    assert [line.split(": ")[1] for line in lines] == [f"skipped b{i:02}.png" for i in range(10)]


def test_beyond_ten_the_skipped_are_counted(make, monkeypatch):
    monkeypatch.setattr(files, "NAMED", 2)
    lines: list[str] = []
    load_dataset(make({"g.png": 1} | {f"b{i}.png": b"?" for i in range(5)}), size=8, report=lines.append)
    assert len(lines) == 3
    assert lines[-1].endswith("skipped 3 more")


def test_nothing_readable_is_refused(make):
    with pytest.raises(DataError, match=r"all of 2 images cannot be read, such as a\.png: not a PNG"):
        load_dataset(make({"a.png": b"?", "b.png": b"?"}), size=8)


def test_names_cannot_drive_the_terminal(make):
    lines: list[str] = []
    source = make({"a\x1b[2J/1.png": 1, "b/1.png": 2, "b/\x1b]0;x.png": b"?"})
    dataset = load_dataset(source, size=8, report=lines.append)
    assert "\x1b" not in lines[0] + dataset.class_names[0]


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    write(tmp_path / "secret", {"s.png": 9, "t.png": 9})
    root = write(tmp_path / "images", {"a/1.png": 1, "b/1.png": 2})
    (root / "a" / "out.png").symlink_to(tmp_path / "secret" / "s.png")
    (root / "c").symlink_to(tmp_path / "secret")
    (root / "a" / "in.png").symlink_to(root / "b" / "1.png")  # inside is fine
    lines: list[str] = []
    train = load_dataset(root, size=8, report=lines.append)
    assert train.class_names == ("a", "b")
    assert 9 not in shades(train)
    assert "left out: 2 links (--follow-links" in lines[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path):
    write(tmp_path, {"a.png": 1})
    os.mkfifo(tmp_path / "b.png")
    lines: list[str] = []
    assert len(load_dataset(tmp_path, size=8, report=lines.append)) == 1
    assert "left out: 1 pipes or devices" in lines[0]


def test_an_unreadable_folder_is_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    root = write(tmp_path, {"a/1.png": 1, "b/1.png": 2})
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda p: scan(p) if os.path.basename(p) != "b" else scan("/nonexistent"))
    with pytest.raises(OSError, match="nonexistent"):
        load_dataset(root, size=8)


def test_zip_members_that_point_outside_are_ignored(tmp_path):
    lines: list[str] = []
    source = write_zip(tmp_path / "x.zip", {"../evil.png": 9, "/abs.png": 9, "a/../../b.png": 9, "ok.png": 1})
    assert shades(load_dataset(source, size=8, report=lines.append)) == [1]
    assert "left out: 3 names that point out" in lines[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.zip"]


def test_encrypted_members_are_named(tmp_path):
    source = write_zip(tmp_path / "x.zip", {"a.png": 1, "b.png": 2})
    raw = bytearray(source.read_bytes())
    raw[raw.rindex(b"PK\x01\x02") + 8] |= 1  # the flag in the directory entry of b.png
    source.write_bytes(raw)
    lines: list[str] = []
    assert shades(load_dataset(source, size=8, report=lines.append)) == [1]
    assert lines[0].endswith("skipped b.png: encrypted")


def test_a_member_that_is_damaged_is_named(tmp_path):
    source = write_zip(tmp_path / "x.zip", {"a.png": 1, "b.png": 2})
    raw = bytearray(source.read_bytes())
    raw[raw.rindex(b"IEND") + 2] ^= 255  # its checksum no longer holds
    source.write_bytes(raw)
    lines: list[str] = []
    assert shades(load_dataset(source, size=8, report=lines.append)) == [1]
    assert "its checksum (CRC-32) is wrong" in lines[0]


def test_what_unpacks_to_too_much_is_refused(make, monkeypatch):
    lines: list[str] = []
    source = make({"a.png": 1, "b.bmp": encoded(picture(2, 40, 40), "BMP")})
    for module in (find, archive):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    assert shades(load_dataset(source, size=8, report=lines.append)) == [1]
    assert re.search(r"b\.bmp: (it is )?larger than", lines[0])
    if source.suffix == ".zip":
        monkeypatch.setattr(archive, "MAX_ZIP_BYTES", 4000)
        with pytest.raises(DataError, match="unpack to"):
            load_dataset(source, size=8)


def test_an_archive_inside_an_archive_is_no_image_and_backslashes_are_folders(tmp_path):
    inner = write_zip(tmp_path / "inner.zip", {"a.png": 9}).read_bytes()
    source = write_zip(tmp_path / "x.zip", {"inner.zip": inner, "train\\cat\\1.png": 1, "train\\dog\\1.png": 2})
    dataset = load_dataset(source, size=8)
    assert shades(dataset) == [1, 2]
    assert dataset.class_names == ("cat", "dog")


# ── Doodles, and the order of an epoch ────────────────────────────────────────────────────────────


def test_doodle_splits_differ_and_repeat(monkeypatch):
    monkeypatch.setattr(doodles, "SPLITS", {k: (LIMITS[k], *v[1:]) for k, v in doodles.SPLITS.items()})
    loaded = {split: load_dataset("doodles", split) for split in LIMITS}
    for split, dataset in loaded.items():
        assert dataset.images.shape == (LIMITS[split], 32, 32, 3)
        assert dataset.images.dtype == np.uint8
        assert dataset.labels.max() < len(dataset.class_names)
        np.testing.assert_array_equal(dataset.images, load_dataset("doodles", split).images)
    first = {dataset.images[0].tobytes() for dataset in loaded.values()}
    assert len(first) == 3
    assert len(load_dataset("doodles", limit=5)) == 5
    with pytest.raises(DataError, match="doodles: no split 'val'; there are: train, test, unseen"):
        load_dataset("doodles", "val")


def test_doodle_styles_are_kept_apart(monkeypatch):
    asked = {}

    def stub(count, *, seed, styles, size):
        asked[seed] = styles
        return np.zeros((count, size, size, 3), np.uint8), np.zeros(count, np.int64), np.zeros(count, np.int64)

    monkeypatch.setattr(doodles, "draw_doodles", stub)
    sizes = [len(load_dataset("doodles", split)) for split in ("train", "test", "unseen")]
    assert sizes == [5000, 1000, 1000]
    train, test, unseen = asked.values()  # three seeds
    assert train == test
    assert not set(train) & set(unseen)


def test_an_epoch_shows_each_image_at_most_once_in_full_batches():
    order = epoch_order(103, 10, np.random.default_rng(0))
    assert order.shape == (10, 10)
    assert len(set(order.ravel().tolist())) == 100
    assert order.min() >= 0
    assert order.max() < 103
    np.testing.assert_array_equal(order, epoch_order(103, 10, np.random.default_rng(0)))
    assert (order != epoch_order(103, 10, np.random.default_rng(1))).any()


def test_what_is_left_out_changes_from_epoch_to_epoch():
    rng = np.random.default_rng(0)
    seen = np.unique([epoch_order(19, 10, rng) for _ in range(40)])
    assert len(seen) == 19


def test_too_few_images_for_a_batch():
    assert epoch_order(8, 8, np.random.default_rng(0)).shape == (1, 8)
    with pytest.raises(DataError, match="7 images do not fill a batch of 8"):
        epoch_order(7, 8, np.random.default_rng(0))
    with pytest.raises(ValueError, match="batch must be at least 1, not 0"):
        epoch_order(7, 0, np.random.default_rng(0))


def test_an_empty_name_is_not_the_folder_in_which_one_is(tmp_path, monkeypatch):
    write(tmp_path, {"cat/1.png": 1, "dog/2.png": 2})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="empty name"):
        load_dataset("", "all")
    assert len(load_dataset(".", "train", size=8).images) > 0


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_a_disk_that_fails_while_it_is_read_names_the_data(tmp_path, monkeypatch, kind):
    contents = {"cat/1.png": 1, "dog/2.png": 2}
    path = write_zip(tmp_path / "d.zip", contents) if kind == "zip" else write(tmp_path / "d", contents)

    def failing(*args: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "listing", failing)
    with pytest.raises(OSError, match=re.escape(str(path))) as caught:
        load_dataset(path)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("labels", [0, 3, 5])
def test_a_data_set_must_have_a_label_for_each_image(labels):
    """Its length is that of the labels, so images beyond them would be left out in silence."""
    data = Dataset(np.zeros((4, 8, 8, 3), np.uint8), np.zeros(labels, np.int64), ("a",))
    with pytest.raises(DataError, match=f"4 images have {labels} labels"):
        taken(data)

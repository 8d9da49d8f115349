"""Photos: crops come from the pixels of the files, whatever holds them, and however many there are."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import devices
import numpy as np
import pytest
from devices import host
from PIL import Image

import minisimclr as ms
from minisimclr import Config, DataError, Dataset, load_dataset
from minisimclr.data import cache as cache_file
from minisimclr.data import decode, files, stores, stream
from minisimclr.training import parcels
from minisimclr.training import photos as photo_batches
from minisimclr.training import workers as worker_processes
from minisimclr.training.batches import step_views, views_ahead
from minisimclr.training.photos import finest, photo_views
from minisimclr.views import augment
from minisimclr.views.parameters import draw_parameters


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture with edges and fine detail, as a photo has."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    fine = rng.integers(-30, 31, (height, width, 3))
    return np.clip(coarse[:height, :width] + fine, 0, 255).astype(np.uint8)


# ── Views of images of several sizes ──────────────────────────────────────────────────────────────

SIZES = np.array([[40, 30], [33, 64], [20, 20], [90, 31], [25, 26]])  # (N,2) height, width


@pytest.mark.parametrize("blur", [False, True])
def test_views_of_several_sizes_are_those_of_the_plain_form(blur):
    pictures = [textured(*size, seed) for seed, size in enumerate(SIZES)]
    p = draw_parameters(np.random.default_rng(2), 5, *SIZES.T, 1.0, blur)
    plain, batched = (
        host(augment.make_views(devices.xp(), pictures, np.arange(5), p, 24, method)) for method in ("plain", "batched")
    )
    np.testing.assert_allclose(batched, plain, atol=1e-4)  # a fortieth of the step from one byte to the next


@pytest.mark.host
def test_each_crop_is_drawn_within_its_own_image():
    p = draw_parameters(np.random.default_rng(0), 500, *SIZES.repeat(100, 0).T)
    bottom, right = (p.top + p.height).reshape(5, 100), (p.left + p.width).reshape(5, 100)
    assert bottom.max(axis=1).tolist() == SIZES[:, 0].tolist()
    assert right.max(axis=1).tolist() == SIZES[:, 1].tolist()
    assert min(p.top.min(), p.left.min()) == 0


@pytest.mark.host
def test_images_of_one_size_get_the_crops_that_one_size_for_all_gets():
    """So runs that were begun when there was one size for all go on bit for bit."""
    alone = draw_parameters(np.random.default_rng(3), 64, 19, 33)
    each = draw_parameters(np.random.default_rng(3), 64, np.full(64, 19), np.full(64, 33))
    for name in ("top", "left", "height", "width", "factor", "order"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(each, name))


@pytest.mark.parametrize("method", ["plain", "batched"])
def test_a_crop_of_a_photo_equals_pillows_antialiased_resize_of_the_same_box(method):
    """Pillow is what torchvision's RandomResizedCrop calls: an oracle that shares no code with either form."""
    pictures = [textured(*size, seed) for seed, size in enumerate([(300, 400), (480, 320), (150, 200)])]
    sizes = np.array([picture.shape[:2] for picture in pictures])
    p = draw_parameters(np.random.default_rng(4), 12, *np.tile(sizes, (4, 1)).T, strength=0.0)
    views = host(augment.make_views(devices.xp(), pictures, np.arange(12) % 3, p, 64, method))
    for i, view in enumerate(views):
        box = (p.left[i], p.top[i], p.left[i] + p.width[i], p.top[i] + p.height[i])
        crop = Image.fromarray(pictures[i % 3]).crop(box).resize((64, 64), Image.Resampling.BILINEAR)
        expected = np.asarray(crop, np.float64)[:, :: -1 if p.flip[i] else 1]
        assert abs(255 * view - expected).max() <= 1.0


# ── A folder of photos, however it is kept ────────────────────────────────────────────────────────

SHAPES = [(120, 160), (150, 110), (100, 100), (40, 130), (200, 260), (97, 30), (131, 133)]  # height, width
CONFIG = Config(size=16, batch=3, epochs=2, head_dim=8, strength=0.5, seed=5)
PROCESSES = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """Seven pictures of several sizes, in two formats and two classes."""
    root = tmp_path_factory.mktemp("photos")
    for k, (height, width) in enumerate(SHAPES):
        (root / "ab"[k % 2]).mkdir(exist_ok=True)
        name = root / "ab"[k % 2] / f"{k}.{'jpg' if k == 4 else 'png'}"
        Image.fromarray(textured(height, width, k)).save(name, quality=92)
    return root


def photos_of(root: Path, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> stream.Photos:
    """The photos of a folder, in memory, in their files, or in a cache."""
    if how == "files":
        monkeypatch.setattr(files, "IN_MEMORY", 0)
    if how == "cache":
        options["cache"] = tmp_path / "photos.cache"
    data = load_dataset(
        root, "unlabelled" if "split" in options else "train", **{"size": 16, "report": fail, **options}
    )
    assert isinstance(data, stream.Photos)
    kinds: dict[str, type] = {"memory": stores.Kept, "files": stores.Files, "cache": cache_file.Cached}
    assert isinstance(data.store, kinds[how])
    return data


def fail(line: str) -> None:
    raise AssertionError(f"unexpected report: {line}")


HOWS = pytest.mark.parametrize("how", ["memory", "files", "cache"])


@pytest.mark.host
@HOWS
def test_a_photo_is_kept_at_four_times_the_size_whatever_holds_it(folder, how, tmp_path, monkeypatch):
    data = photos_of(folder, how, tmp_path, monkeypatch)
    for k, name in enumerate(data.files):
        with Image.open(folder / name) as image:
            width, height = image.size
            factor = min(1, 64 / min(image.size))
            image.draft(None, (64, 64))
            small = image.resize((round(width * factor), round(height * factor)), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(data.read(k), np.asarray(small))
        assert data.read(k).shape[:2] == tuple(data.sizes[k])


@pytest.mark.host
@HOWS
def test_files_classes_and_squares_belong_together(folder, how, tmp_path, monkeypatch):
    data = photos_of(folder, how, tmp_path, monkeypatch)
    assert [name[0] for name in data.files] == [data.class_names[label] for label in data.labels]
    assert list(data.files) == sorted(data.files)
    assert data.images.shape == (len(data), 16, 16, 3)
    np.testing.assert_array_equal(data.squares(slice(1, 3)), data.images[1:3])
    plain = load_dataset(folder, size=16, cache_side=-2)
    assert type(plain) is Dataset
    assert plain.files == data.files
    assert abs(plain.images.astype(int) - data.images).max() <= 40  # the same squares, shrunk once, not twice


@pytest.mark.host
@HOWS
@pytest.mark.parametrize("method", ["plain", "batched"])
def test_the_views_of_a_step_come_from_the_pixels_of_the_files(folder, how, method, tmp_path, monkeypatch):
    """Pillow crops and resizes the kept picture, to the box that seed and step alone imply: what torchvision does."""
    config = dataclasses.replace(CONFIG, strength=0.0, method=f"views={method}")
    data = photos_of(folder, how, tmp_path, monkeypatch)
    chosen = np.array([3, 0, 2])
    views = photo_views(config, data, None, slice(None), chosen, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    height, width = data.sizes[chosen].T
    for view in views:
        p = draw_parameters(rng, 3, height, width, 0.0)
        for i, k in enumerate(chosen):
            box = (p.left[i], p.top[i], p.left[i] + p.width[i], p.top[i] + p.height[i])
            crop = Image.fromarray(data.read(k)).crop(box).resize((16, 16), Image.Resampling.BILINEAR)
            expected = np.asarray(crop, float)[:, :: -1 if p.flip[i] else 1]
            assert abs(255 * view[i] - expected).max() <= 1.0


def smooth_photos(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two large JPEG files without edges, read from their files."""
    y, x = np.mgrid[:160, :200]
    smooth = np.stack([127 + 120 * np.sin(x / 30 + y / 50), 127 + 120 * np.cos(y / 25), 60 + x], -1).astype(np.uint8)
    for name in ("1.jpg", "2.jpg"):
        Image.fromarray(smooth).save(folder / name, quality=95)
    return photos_of(folder, "files", folder, monkeypatch, cache_side=0)


@pytest.mark.host
def test_originals_are_cropped_at_full_size(folder, tmp_path, monkeypatch):
    data = photos_of(folder, "files", tmp_path, monkeypatch, cache_side=0)
    for k, name in enumerate(data.files):
        np.testing.assert_array_equal(data.read(k), decode.pixels((folder / name).read_bytes()))


@pytest.mark.host
def test_a_jpeg_is_decoded_small_only_where_its_crops_stay_as_fine_as_the_views(tmp_path, monkeypatch):
    data = smooth_photos(tmp_path, monkeypatch)
    asked: list[tuple[int, tuple[int, ...]]] = []
    pixels = data.store.pixels

    def noted(index: int, at_least: int) -> np.ndarray:
        got = pixels(index, at_least)
        asked.append((at_least, got.shape[:2]))
        return got

    monkeypatch.setattr(data.store, "pixels", noted)
    config = dataclasses.replace(CONFIG, size=32, strength=0.0, batch=2)
    close = []
    for seed in range(4):
        shrunk = photo_views(config, data, None, slice(None), np.array([0, 1]), np.random.default_rng(seed))
        with monkeypatch.context() as patch:
            patch.setattr(photo_batches, "finest", lambda sizes, boxes, size: np.zeros(len(sizes), int))
            whole = photo_views(config, data, None, slice(None), np.array([0, 1]), np.random.default_rng(seed))
        close.append(255 * abs(np.array(shrunk) - np.array(whole)).mean())
    reduced = [(at_least, shape) for at_least, shape in asked if at_least]
    assert {min(shape) for _, shape in reduced} == {40, 80, 160}  # a quarter, a half or the whole, as it was drawn
    assert all(min(shape) >= at_least for at_least, shape in reduced)
    assert 0 < np.mean(close) < 4  # of 255 levels: what reduced decoding costs, and the rounding of its crops


@pytest.mark.host
def test_no_crop_has_fewer_pixels_than_its_view_unless_the_photo_has_no_more():
    sizes = np.tile([[600, 900]], (500, 1))
    a, b = (draw_parameters(np.random.default_rng(seed), 500, *sizes.T) for seed in (0, 1))
    needed = finest(sizes, a + b, 224)
    smallest = np.minimum.reduce([a.height, a.width, b.height, b.width])
    assert ((smallest * needed / 600 >= 224 - 1e-9) | (needed == 600)).all()
    assert (needed < 600).any()


# ── The same views, however they are made ─────────────────────────────────────────────────────────


def views_with(config: Config, data: Dataset, workers: int) -> list[np.ndarray]:
    with views_ahead(config, data, range(1, 4), workers) as views:
        return [np.stack(views(step)) for step in range(1, 4)]


@pytest.mark.host
def test_memory_files_and_cache_make_the_same_views(folder, tmp_path, monkeypatch):
    made = [
        views_with(CONFIG, photos_of(folder, how, tmp_path, monkeypatch), 0) for how in ("memory", "cache", "files")
    ]
    for other in made[1:]:
        np.testing.assert_array_equal(other, made[0])


@pytest.mark.host
@pytest.mark.slow
@HOWS
def test_photos_make_the_same_views_with_any_number_of_workers(folder, how, tmp_path, monkeypatch):
    data = photos_of(folder, how, tmp_path, monkeypatch)
    alone = views_with(CONFIG, data, 0)
    for workers in (1, 2):
        np.testing.assert_array_equal(views_with(CONFIG, data, workers), alone)


def test_views_on_a_device_are_those_of_the_host(folder, tmp_path, monkeypatch, device):
    data = photos_of(folder, "memory", tmp_path, monkeypatch)
    config = dataclasses.replace(CONFIG, device=device)
    for made, expected in zip(step_views(config, data)(1), step_views(CONFIG, data)(1)):
        np.testing.assert_allclose(host(made), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "workers"),
    [("auto", 1), *(pytest.param(names, 2, marks=pytest.mark.slow) for names in ("auto", "google"))],
)
def test_workers_cut_the_crops_and_the_device_makes_the_views_of_the_host(
    folder, names, workers, tmp_path, monkeypatch
):
    """With --device stand-in; on the CPU the crops are sent and made into views by NumPy, as a GPU would."""
    data = photos_of(folder, "memory", tmp_path, monkeypatch)
    config = dataclasses.replace(CONFIG, views=names)
    monkeypatch.setattr(worker_processes, "CHUNK", 20_000)  # of the six crops of a step, one to three at a time
    alone = views_with(config, data, 0)
    if devices.DEVICE == "cpu":
        monkeypatch.setattr(photo_batches, "to_device", lambda array, device: array)
    on_device = dataclasses.replace(config, device="cuda")
    with views_ahead(on_device, data, range(1, 4), workers) as views:
        made = [np.stack([host(view) for view in views(step)]) for step in range(1, 4)]
    np.testing.assert_allclose(made, alone, atol=1e-5)


@pytest.mark.host
@pytest.mark.parametrize("room", [1, 20_000, 10**9])
def test_views_of_crops_that_travel_in_parcels_agree_with_those_made_at_once(folder, room, tmp_path, monkeypatch):
    data = photos_of(folder, "files", tmp_path, monkeypatch)
    slot, seen = np.zeros(max(room, 3 * 64 * 208), np.uint8), []

    def through_the_slot() -> Any:
        for rows, pixels, drawn in parcels.parcels_of(step_views(CONFIG, data, photo_batches.cut), 1, room):
            assert len(pixels) == 1 or sum(crop.nbytes for crop in pixels) <= room
            there = parcels.laid_out(slot, pixels[0].dtype, [crop.shape for crop in pixels])
            for place, crop in zip(there, pixels):
                place[...] = crop
            seen.append(len(rows))
            yield photo_batches.Crops(rows, there, drawn)

    views = photo_batches.views_of_crops(CONFIG, 3, through_the_slot())
    np.testing.assert_allclose(views, step_views(CONFIG, data)(1), atol=1e-6)
    assert sum(seen) == 6
    assert (len(seen) == 6, len(seen) == 1) == (room == 1, room == 10**9)


@pytest.mark.slow
def test_a_run_on_photos_with_workers_trains_on_a_device_and_tells_what_breaks(folder, tmp_path, headers_only):
    if devices.DEVICE == "cpu":
        pytest.skip("a device trains: --device stand-in")
    lines: list[str] = []
    data = load_dataset(broken(folder, tmp_path, "a/6.png"), size=16, report=lines.append)
    on_device = dataclasses.replace(CONFIG, device="cuda")
    losses = [[line["loss"] for line in ms.pretrain(on_device, data, workers=w).history] for w in (0, 2)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert len(lines) == 1
    assert "a/6.png cannot be decoded" in lines[0]


@pytest.mark.host
def test_a_share_of_a_batch_has_the_views_that_the_whole_batch_has(folder, tmp_path, monkeypatch):
    data = photos_of(folder, "memory", tmp_path, monkeypatch)
    whole = step_views(CONFIG, data)(1)
    shares = [step_views(CONFIG, data, share=share)(1) for share in (slice(0, 2), slice(2, 3))]
    for k in range(2):
        np.testing.assert_allclose(np.concatenate([views[k] for views in shares]), whole[k], atol=1e-6)


@pytest.mark.host
@pytest.mark.parametrize("names", ["google", "whole,sobel:1", "crop,flip,colour,cutout"])
def test_views_by_name_are_made_of_photos_too(folder, names, tmp_path, monkeypatch):
    data = photos_of(folder, "files", tmp_path, monkeypatch)
    plain, batched = (
        step_views(dataclasses.replace(CONFIG, views=names, method=f"views={method}"), data)(1)
        for method in ("plain", "batched")
    )
    np.testing.assert_allclose(batched, plain, atol=1e-4)
    paper = step_views(CONFIG, data)(1)
    assert abs(plain[0] - paper[0]).max() > 0.1


@pytest.mark.host
def test_ones_own_views_of_photos_get_the_central_squares(folder, tmp_path, monkeypatch):
    data = photos_of(folder, "memory", tmp_path, monkeypatch)
    seen = []

    def own(batch: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        seen.append(batch)
        return ms.two_views(batch, rng, 16)

    step_views(CONFIG, data, own)(0)
    assert seen[0].shape == (3, 16, 16, 3)
    assert all((square == data.images).all(axis=(1, 2, 3)).any() for square in seen[0])


@pytest.mark.host
def test_how_a_batch_is_cut_into_parts_changes_no_view(folder, tmp_path, monkeypatch):
    data = photos_of(folder, "memory", tmp_path, monkeypatch)
    whole = views_with(CONFIG, data, 0)
    monkeypatch.setattr(photo_batches, "CHUNK", 1)
    np.testing.assert_allclose(views_with(CONFIG, data, 0), whole, atol=1e-6)


# ── Which images are these? ───────────────────────────────────────────────────────────────────────


@pytest.mark.host
def test_the_fingerprint_covers_bytes_and_order_and_nothing_else(folder, tmp_path, monkeypatch):
    def fingerprint(root: Path, **options: Any) -> str:
        return str(load_dataset(root, size=16, report=fail, **options).fingerprint)

    first = fingerprint(folder)
    moved = tmp_path / "moved" / "elsewhere"
    shutil.copytree(folder, moved)
    (moved / "a" / "0.png").touch()
    assert fingerprint(moved) == first
    assert fingerprint(moved, cache=tmp_path / "x.cache") == first
    (moved / "b" / "1.png").rename(moved / "a" / "00.png")  # the first two images change places
    assert fingerprint(moved) != first
    (moved / "a" / "00.png").rename(moved / "b" / "1.png")
    assert fingerprint(moved) == first
    with (moved / "b" / "1.png").open("ab") as file:
        file.write(b"\0")
    assert fingerprint(moved) != first
    assert fingerprint(folder, cache_side=50) != first


# ── Files that break later ────────────────────────────────────────────────────────────────────────


def broken(root: Path, tmp_path: Path, *names: str) -> Path:
    """A copy of the folder in which some files have a header that is right, and no pixels."""
    copy = tmp_path / "broken"
    shutil.copytree(root, copy)
    for name in names:
        Image.fromarray(textured(150, 110, 9)).save(copy / name)
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[: len(data) // 2])
    return copy


@pytest.fixture
def headers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The opening pass sees no damage: the header is all that it looks at."""
    monkeypatch.setattr(files, "IN_MEMORY", 0)
    header = decode.header

    def lenient(data: Any) -> tuple[int, int]:
        try:
            return header(data)
        except ValueError:
            return 110, 150

    monkeypatch.setattr(decode, "header", lenient)
    monkeypatch.setattr(files, "kept", lambda data, height, width, *_, **__: np.zeros((height, width, 3), np.uint8))


@pytest.mark.host
def test_a_file_that_breaks_later_is_replaced_by_the_next_good_one_and_said_once(folder, tmp_path, headers_only):
    lines: list[str] = []
    root = broken(folder, tmp_path, "b/1.png", "a/6.png")
    data = load_dataset(root, size=16, report=lines.append)
    names = list(data.files)
    assert len(data) == len(SHAPES)
    assert lines == []
    for _ in range(2):
        np.testing.assert_array_equal(data.read(names.index("a/6.png")), data.read(names.index("b/3.png")))
        np.testing.assert_array_equal(data.read(names.index("b/1.png")), data.read(names.index("b/3.png")))
    assert [line.split(": ")[1].split(" (")[0] for line in lines] == [
        "a/6.png cannot be decoded",
        "b/1.png cannot be decoded",
    ]
    assert all(line.endswith("the next image takes its place") for line in lines)
    assert data.replaced.keys() == {"a/6.png", "b/1.png"}


@pytest.mark.host
def test_the_other_images_of_a_batch_are_shown_as_if_no_file_had_broken(folder, tmp_path, headers_only):
    whole = load_dataset(folder, size=16)
    data = load_dataset(broken(folder, tmp_path, "a/6.png"), size=16, report=lambda line: None)
    place = data.files.index("a/6.png")
    vars(whole)["sizes"] = data.sizes  # the header of the broken one says another size
    chosen = np.array([1, place, 5])
    for one, other in zip(
        *(photo_views(CONFIG, d, None, slice(None), chosen, np.random.default_rng(1)) for d in (whole, data))
    ):
        np.testing.assert_array_equal(one[[0, 2]], other[[0, 2]])
        assert abs(one[1] - other[1]).max() > 0.01


@pytest.mark.host
def test_what_was_replaced_stands_in_the_record_of_the_run(folder, tmp_path, headers_only):
    data = load_dataset(broken(folder, tmp_path, "a/6.png"), size=16, report=lambda line: None)
    run = ms.pretrain(CONFIG, data, folder=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [line["replaced"] for line in lines if "replaced" in line]
    assert [list(names) for names in told] == [["a/6.png"]]
    assert run.steps == len(lines) == 4


@pytest.mark.host
def test_when_too_many_files_break_the_data_set_is_refused(folder, tmp_path, headers_only, monkeypatch):
    monkeypatch.setattr(stream, "TOLERATED", 1)
    data = load_dataset(broken(folder, tmp_path, "a/0.png", "a/2.png"), size=16, report=lambda line: None)
    with pytest.raises(DataError, match=r"2 of 7 images cannot be decoded any more, such as a/2\.png"):
        data.read(0)


@pytest.mark.host
def test_a_file_that_was_changed_after_the_start_is_not_read_as_if_it_were_the_same(folder, tmp_path, headers_only):
    shutil.copytree(folder, tmp_path / "copy")
    data = load_dataset(tmp_path / "copy", size=16, report=lambda line: None)
    Image.fromarray(textured(120, 160, 99)).save(tmp_path / "copy" / data.files[0])
    data.read(0)
    assert "changed" in data.replaced[data.files[0]]


@pytest.mark.host
@HOWS
def test_a_file_that_cannot_be_decoded_at_the_start_is_left_out_with_its_row(folder, how, tmp_path, monkeypatch):
    lines: list[str] = []
    root = broken(folder, tmp_path)
    (root / "a" / "2.png").write_bytes(b"no image")
    data = photos_of(root, how, tmp_path, monkeypatch, report=lines.append)
    assert len(data) == len(SHAPES) - 1 == len(data.labels) == len(data.sizes)
    assert "a/2.png" not in data.files
    assert len(lines) == 1
    assert "skipped a/2.png" in lines[0]


# ── More than memory ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.host
def test_an_array_of_more_than_a_gibibyte_is_refused_and_the_other_way_named(folder, tmp_path, monkeypatch):
    data = photos_of(folder, "files", tmp_path, monkeypatch)
    monkeypatch.setattr(stream, "LARGEST_ARRAY", 7 * 16 * 16 * 3 - 1)
    with pytest.raises(DataError, match=r"7 images of 16×16 pixels are no single array.*read\(index\)") as caught:
        _ = data.images
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(stream, "LARGEST_ARRAY", 7 * 16 * 16 * 3)
    assert len(data.images) == 7


@pytest.mark.host
def test_photos_are_kept_in_memory_only_while_all_of_them_fit(folder, tmp_path, monkeypatch):
    total = int(3 * load_dataset(folder, size=16).sizes.prod(axis=1).sum())
    for most, kind in ((total, stores.Kept), (total - 1, stores.Files)):
        monkeypatch.setattr(files, "IN_MEMORY", most)
        assert isinstance(load_dataset(folder, size=16).store, kind)


@pytest.mark.host
def test_small_images_of_one_size_stay_the_array_that_they_were(tmp_path):
    for k in range(4):
        Image.fromarray(textured(20, 24, k)).save(tmp_path / f"{k}.png")
    data = load_dataset(tmp_path, size=16)
    assert type(data) is Dataset
    for k, image in enumerate(data.images):
        with (tmp_path / f"{k}.png").open("rb") as file:
            np.testing.assert_array_equal(image, decode.decode_image(file, 16))
    Image.fromarray(textured(24, 24, 9)).save(tmp_path / "4.png")
    assert isinstance(load_dataset(tmp_path, size=16), stream.Photos)  # of two sizes


@pytest.mark.host
@pytest.mark.parametrize("side", [96, 97])
def test_an_array_is_made_up_to_96_pixels(tmp_path, side):
    Image.fromarray(textured(side, side)).save(tmp_path / "1.png")
    assert (type(load_dataset(tmp_path, size=16)) is Dataset) == (side == 96)


@pytest.mark.host
@pytest.mark.parametrize(
    ("options", "says"),
    [({"cache_side": 8}, "cache_side must be 0, or at least the size of 16, not 8"),
     ({"cache_side": 0, "cache": "x"}, "give a cache_side above 0"),
     ({"cache_side": -3}, "cache_side must be at least -2")],
)  # fmt: skip
def test_a_side_that_makes_no_sense_is_refused(folder, options, says):
    with pytest.raises(ValueError, match=says):
        load_dataset(folder, size=16, **options)


# ── The cache ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what the cache decodes, by the sizes of the files."""
    counted: list[int] = []
    pixels = stores.Files.pixels

    def counting(self: Any, index: int, at_least: int) -> np.ndarray:
        counted.append(index)
        return pixels(self, index, at_least)

    monkeypatch.setattr(stores.Files, "pixels", counting)
    return counted


@pytest.mark.host
def test_a_cache_is_built_once(folder, tmp_path, decodings):
    for _ in range(2):
        data = load_dataset(folder, size=16, cache=tmp_path / "x", report=fail)
        assert data.read(2).shape[:2] == tuple(data.sizes[2])
    assert sorted(decodings) == list(range(7))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.host
def test_a_cache_that_was_interrupted_goes_on_where_it_stopped(folder, tmp_path, decodings, monkeypatch):
    monkeypatch.setattr(cache_file, "BLOCK", 2)
    write = cache_file._write
    writes: list[int] = []

    def dying(file: Any, position: int, data: bytes) -> None:
        writes.append(position)
        if len(writes) == 8:  # table and header; then two photos and their rows, twice
            raise KeyboardInterrupt
        write(file, position, data)

    with monkeypatch.context() as patch:
        patch.setattr(cache_file, "_write", dying)
        with pytest.raises(KeyboardInterrupt):
            load_dataset(folder, size=16, cache=tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.part"]
    before = len(decodings)
    data = load_dataset(folder, size=16, cache=tmp_path / "x", report=fail)
    assert len(decodings) - before < 7
    plain = load_dataset(folder, size=16)
    for k in range(7):
        np.testing.assert_array_equal(data.read(k), plain.read(k))


@pytest.mark.host
def test_a_cache_of_other_photos_or_another_side_is_refused_and_left_alone(folder, tmp_path):
    path = tmp_path / "x"
    load_dataset(folder, size=16, cache=path)
    before = path.read_bytes()
    for options in ({"cache_side": 32}, {"limit": 3}):
        with pytest.raises(DataError, match="x is the cache of other photos, or of another side"):
            load_dataset(folder, size=16, cache=path, **options)
    (tmp_path / "y").write_bytes(b"my diary")
    with pytest.raises(DataError, match="y is no cache of photos"):
        load_dataset(folder, size=16, cache=tmp_path / "y")
    assert path.read_bytes() == before
    assert (tmp_path / "y").read_bytes() == b"my diary"


@pytest.mark.host
def test_damage_to_a_cache_is_noticed(folder, tmp_path):
    path = tmp_path / "x"
    load_dataset(folder, size=16, cache=path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    photos = load_dataset(folder, size=16, cache=path)
    photos.read(0)
    with pytest.raises(OSError, match=r"x is damaged \(photo 6\); remove it"):
        photos.read(6)
    path.write_bytes(data[:-1])
    with pytest.raises(OSError, match="x is damaged; remove it"):
        load_dataset(folder, size=16, cache=path)


@pytest.mark.host
def test_two_processes_do_not_build_one_cache(folder, tmp_path):
    (tmp_path / "x.part").write_bytes(b"")
    lock = cache_file.Lock(tmp_path / "x.part")
    with pytest.raises(DataError, match=r"x\.part is in use"):
        load_dataset(folder, size=16, cache=tmp_path / "x")
    lock.release()
    load_dataset(folder, size=16, cache=tmp_path / "x")


@pytest.mark.host
def test_a_cache_for_which_there_is_no_space_is_not_begun(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_file.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match="no space for a cache"):
        load_dataset(folder, size=16, cache=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# ── Runs ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.host
def test_a_run_on_photos_is_resumed_bit_for_bit(folder, tmp_path, monkeypatch):
    once = ms.pretrain(CONFIG, photos_of(folder, "memory", tmp_path, monkeypatch))
    data = photos_of(folder, "cache", tmp_path, monkeypatch)

    def stop(metrics: Any) -> None:
        if metrics["step"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ms.pretrain(CONFIG, data, folder=tmp_path / "run", progress=stop)
    again = ms.pretrain(CONFIG, data, folder=tmp_path / "run", resume=True)
    for name, array in once.model.state_dict().items():
        np.testing.assert_array_equal(array, again.model.state_dict()[name])


@pytest.fixture
def old_run(folder: Path, tmp_path: Path) -> Path:
    """A run as version 0.1 left it: on squares, and its settings say nothing of `cache_side`."""
    run = tmp_path / "old"

    def stop(metrics: Any) -> None:
        if metrics["step"] == 1:
            raise KeyboardInterrupt

    squares = load_dataset(folder, size=16, cache_side=-2).images
    with pytest.raises(KeyboardInterrupt):
        ms.pretrain(dataclasses.replace(CONFIG, data=str(folder), cache_side=-2), squares, folder=run, progress=stop)
    with np.load(run / "checkpoint.npz") as old:
        arrays = dict(old)
    meta = json.loads(arrays["meta"].tobytes())
    del meta["config"]["cache_side"]
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(run / "checkpoint.npz", **arrays)
    settings = json.loads((run / "config.json").read_text())
    del settings["cache_side"]
    (run / "config.json").write_text(json.dumps(settings))
    return run


@pytest.mark.host
def test_a_run_that_was_begun_on_squares_goes_on_with_squares(folder, old_run, capsys):
    from minisimclr.cli import main

    assert main(["pretrain", "--resume", "--out", str(old_run)]) == 0
    assert ms.load_run(old_run).steps == 4
    squares = load_dataset(folder, size=16, cache_side=-2).images
    straight = ms.pretrain(dataclasses.replace(CONFIG, cache_side=-2), squares)
    for name, array in ms.load_run(old_run).model.state_dict().items():
        np.testing.assert_array_equal(array, straight.model.state_dict()[name])


@pytest.mark.host
def test_a_run_that_was_begun_on_squares_is_not_resumed_on_photos(folder, old_run):
    config = dataclasses.replace(CONFIG, data=str(folder))
    with pytest.raises(ValueError, match="kept with cache_side -2, not -1: set it to -2") as caught:
        ms.pretrain(config, folder=old_run, resume=True)
    assert "\n" not in str(caught.value)


# ── Representations ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def model() -> ms.SimCLR:
    rng = np.random.default_rng(0)
    encoder = ms.resnet_small(stem="small", rng=rng)
    return ms.SimCLR(encoder, ms.ProjectionHead(encoder.features, 16, 8, rng=rng))


@pytest.mark.host
@HOWS
def test_photos_are_embedded_as_their_squares_are(folder, how, tmp_path, monkeypatch, model):
    data = photos_of(folder, how, tmp_path, monkeypatch)
    for one, other in zip(ms.embed(model, data, batch=3), ms.embed(model, data.images, batch=3)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.host
def test_a_photo_that_cannot_be_decoded_shifts_no_row(folder, tmp_path, headers_only, model):
    whole = load_dataset(folder, size=16)
    data = load_dataset(broken(folder, tmp_path, "a/6.png"), size=16, report=lambda line: None)
    h, z = ms.embed(model, data)
    place = data.files.index("a/6.png")
    others = [k for k in range(7) if k != place]
    assert np.isnan(h[place]).all()
    assert np.isnan(z[place]).all()
    np.testing.assert_array_equal(h[others], ms.embed(model, whole)[0][others])
    with pytest.raises(DataError, match=r"a/6\.png cannot be decoded"):
        _ = data.images


# ── A data set of arrays ──────────────────────────────────────────────────────────────────────────


@pytest.mark.host
def test_a_data_set_of_an_array_reads_its_rows():
    data = Dataset(np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), np.array([0, 1]), ("a", "b"), ("x.png", "y.png"))
    np.testing.assert_array_equal(data.read(1), data.images[1])
    assert data.files == ("x.png", "y.png")


# ── Whatever happens to files and cache ───────────────────────────────────────────────────────────


def kept_pixels(root: Path) -> list[np.ndarray]:
    """The photos of a folder as they are kept, read anew."""
    data = load_dataset(root, size=16)
    return [data.read(k).copy() for k in range(len(data))]


@pytest.mark.host
@pytest.mark.parametrize("disturbed", ["a byte of the cache", "the cache of other photos", "a file after the start"])
def test_pixels_agree_with_the_files_that_were_listed_or_none_are_given(folder, tmp_path, monkeypatch, disturbed):
    own, other, cache = tmp_path / "own", tmp_path / "other", tmp_path / "cache"
    shutil.copytree(folder, own)
    shutil.copytree(folder, other)
    for path in other.glob("*/*.png"):  # other pictures under the same names, of the same sizes
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    truth = kept_pixels(own)
    if disturbed == "a file after the start":
        monkeypatch.setattr(files, "IN_MEMORY", 0)
        data = load_dataset(own, size=16, report=lambda line: None)
        shutil.copy(other / data.files[0], own / data.files[0])
    else:
        load_dataset(own if disturbed == "a byte of the cache" else other, size=16, cache=cache)
        if disturbed == "a byte of the cache":
            content = bytearray(cache.read_bytes())
            content[-1] ^= 255
            cache.write_bytes(content)
        try:
            data = load_dataset(own, size=16, cache=cache)
        except DataError:
            return
    for k, pixels in enumerate(truth):
        try:
            got = data.read(k)
        except OSError:
            continue
        if data.files[k] not in data.replaced:
            np.testing.assert_array_equal(got, pixels)


@pytest.mark.host
def test_a_run_is_not_resumed_on_the_same_photos_in_another_order(folder, tmp_path):
    """Two files that swap their names: the same bytes, and other images in every batch."""
    root = tmp_path / "photos"
    shutil.copytree(folder, root)
    ms.pretrain(CONFIG, load_dataset(root, size=16), folder=tmp_path / "run")
    (root / "a" / "0.png").rename(root / "swap")
    (root / "a" / "2.png").rename(root / "a" / "0.png")
    (root / "swap").rename(root / "a" / "2.png")
    with pytest.raises(ValueError, match="images"):
        ms.pretrain(
            dataclasses.replace(CONFIG, epochs=9), load_dataset(root, size=16), folder=tmp_path / "run", resume=True
        )


@pytest.mark.host
def test_a_crop_from_a_reduced_jpeg_is_near_pillows_crop_from_the_whole_one(tmp_path, monkeypatch):
    data = smooth_photos(tmp_path, monkeypatch)
    drawn: list[Any] = []

    def noted(*arguments: Any) -> Any:
        drawn.append(draw_parameters(*arguments))
        return drawn[-1]

    monkeypatch.setattr(augment, "draw_parameters", noted)
    config = dataclasses.replace(CONFIG, size=32, strength=0.0, batch=2)
    errors = []
    for seed in range(4):
        drawn.clear()
        views = photo_views(config, data, None, slice(None), np.array([0, 1]), np.random.default_rng(seed))
        for view, p in zip(views, drawn):  # (2,32,32,3), and the crops of both photos
            for i in range(2):
                box = (p.left[i], p.top[i], p.left[i] + p.width[i], p.top[i] + p.height[i])
                right = Image.open(tmp_path / f"{i + 1}.jpg").resize((32, 32), Image.Resampling.BILINEAR, box=box)
                right = np.asarray(right)[:, ::-1] if p.flip[i] else np.asarray(right)
                errors.append(abs(255 * view[i] - right).mean())
    assert len(errors) == 16
    assert np.mean(errors) < 4  # levels of 255

"""Views per second: the whole random pipeline of SimCLR for a batch of images.

    python benchmarks/augment.py --threads 1
    python benchmarks/augment.py --threads 2 --peers        # two processes, too, with half of the images each
    python benchmarks/augment.py --json out.json --plot out.png
    python benchmarks/augment.py --threads 2 --cases "128 JPEG files of 400x300, 224" \\
        --only "minisimclr, 2 workers" "DataLoader, 2 workers"

Each contestant makes two views of every image of the batch, from uint8 images in memory, or from JPEG files, to float32
views. They live in processes of their own and take turns (arena.py). The floor is a single copy of the views. `mean` is
the mean of all pixels: it shows that all do about the same (tests/test_views.py holds each image to the definitions).

With workers, JPEG files are read as in training: by our own worker processes, and by torchvision's ImageFolder with
PyTorch's DataLoader. They work ahead, so they are stopped while it is somebody else's turn.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run from a checkout without installing it

import arena

from minisimclr import processor
from minisimclr.views.augment import two_views

CASES: dict[str, arena.Case] = {
    "256 images of 32": {"images": 256, "side": 32, "size": 32, "strength": 0.5, "blur": False},
    "256 images of 32, blur": {"images": 256, "side": 32, "size": 32, "strength": 0.5, "blur": True},
    "32 images, 224 of 256": {"images": 32, "side": 256, "size": 224, "strength": 1.0, "blur": True},
    "128 JPEG files of 400x300, 224": {"images": 128, "file": [400, 300], "size": 224, "strength": 1.0, "blur": True},
    "16 JPEG files of 12 megapixels, 224": {
        "images": 16,
        "file": [4000, 3000],
        "size": 224,
        "strength": 1.0,
        "blur": True,
    },
}


def images_of(case: arena.Case) -> Any:
    """Blocks of random colour."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (case["images"], 8, 8, 3), np.uint8)
    return blocks.repeat(case["side"] // 8, 1).repeat(case["side"] // 8, 2)


@functools.cache
def folder_of(width: int, height: int, count: int) -> tempfile.TemporaryDirectory[str]:
    """A folder of JPEG files: blurred blocks of random colour with some noise, as photos have."""
    from PIL import Image

    folder, rng = tempfile.TemporaryDirectory(), np.random.default_rng(0)
    (Path(folder.name) / "all").mkdir()  # ImageFolder takes folders of classes
    for k in range(count):
        if k and k >= 4_000_000 // (width * height):  # to draw one of 12 megapixels takes longer than all of its views
            os.link(f"{folder.name}/all/0.jpg", f"{folder.name}/all/{k}.jpg")
            continue
        blocks = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height), Image.BICUBIC)
        noise = rng.integers(-10, 11, (height, width, 1))
        pixels = np.clip(np.asarray(blocks) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(f"{folder.name}/all/{k}.jpg", quality=90)
    return folder


def files_of(case: arena.Case) -> Path:
    return Path(folder_of(*case["file"], case["images"]).name) / "all"


def from_files(case: arena.Case) -> Any:
    """Photos that are read from their files each time; `decoding` is the decoder's share of the time."""
    from minisimclr.data import files, load_dataset
    from minisimclr.training.config import Config
    from minisimclr.training.photos import photo_views

    files.IN_MEMORY = 0  # none of them stays decoded
    processor.keep_freed_memory()  # as training does, and its workers
    config = Config(size=case["size"], batch=case["images"], strength=case["strength"], blur=case["blur"])
    photos: Any = load_dataset(files_of(case), size=config.size)
    chosen, rng = np.arange(len(photos)), np.random.default_rng(1)

    def run() -> Any:
        with processor.blas_at_one_thread():
            return photo_views(config, photos, None, slice(None), chosen, rng)

    def answer(views: Any) -> dict[str, Any]:
        begin = time.process_time()
        for k in chosen:
            photos.read(int(k))
        middle = time.process_time()
        run()
        share = (middle - begin) / (time.process_time() - middle)
        return {"decoding": share, "mean": np.mean([v.mean() for v in views])}

    return run, answer


def ours(case: arena.Case) -> Any:
    if "file" in case:
        return from_files(case)
    images, rng = images_of(case), np.random.default_rng(1)

    def run() -> Any:
        with processor.blas_at_one_thread():
            return two_views(images, rng, case["size"], case["strength"], case["blur"])

    return run, lambda views: {"mean": np.mean([v.mean() for v in views])}


kept: dict[str, Any] = {}  # a declared op lives as long as its library


def torchvision_transforms(version: int) -> arena.Prepare:
    """SimCLR's pipeline as its users compose it."""

    def prepare(case: arena.Case) -> Any:
        import torch

        library = kept.setdefault("torchvision", torch.library.Library("torchvision", "FRAGMENT"))
        with contextlib.suppress(RuntimeError):  # without torchvision's compiled part the transforms ask for its op
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        torch.set_num_threads(1)  # as in a worker of a DataLoader
        from PIL import Image

        if version == 2 and "file" in case:
            raise ValueError("its files are read by Pillow: see the first one")
        if version == 1:
            from torchvision import transforms as t

            images = [] if "file" in case else [Image.fromarray(image) for image in images_of(case)]
            finish = [t.ToTensor()]
        else:
            from torchvision.transforms import v2 as t

            images = list(torch.from_numpy(images_of(case).transpose(0, 3, 1, 2).copy()))
            finish = [t.ToDtype(torch.float32, scale=True)]
        pipeline = pipeline_of(t, case, finish)

        def run() -> Any:
            if "file" in case:  # as an ImageFolder and a transform of two views do it: each file is decoded once
                names = sorted(files_of(case).iterdir())
                pairs = [[pipeline(image) for _ in "ab"] for image in (Image.open(n).convert("RGB") for n in names)]
                return [torch.stack(views) for views in zip(*pairs)]
            return [torch.stack([pipeline(image) for image in images]) for _ in "ab"]

        return run, lambda views: {"mean": np.mean([float(v.mean()) for v in views])}

    return prepare


def pipeline_of(t: Any, case: arena.Case, finish: list[Any]) -> Any:
    s = case["strength"]
    blur = [t.RandomApply([t.GaussianBlur(case["size"] // 10 | 1, (0.1, 2.0))], p=0.5)] if case["blur"] else []
    return t.Compose([
        t.RandomResizedCrop(case["size"]), t.RandomHorizontalFlip(),
        t.RandomApply([t.ColorJitter(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s)], p=0.8), t.RandomGrayscale(0.2),
        *blur, *finish,
    ])  # fmt: skip


# ── Workers that work ahead ───────────────────────────────────────────────────────────────────────

BATCHES = 4  # of a run; they share its images


def workers_of_ours(workers: int) -> arena.Prepare:
    def prepare(case: arena.Case) -> Any:
        from minisimclr.data import files, load_dataset
        from minisimclr.training.batches import views_ahead
        from minisimclr.training.config import Config

        files.IN_MEMORY = 0
        batch = batch_of(case)
        config = Config(size=case["size"], batch=batch, strength=case["strength"], blur=case["blur"])
        ahead = views_ahead(config, load_dataset(files_of(case), size=config.size), range(10**9), workers)
        kept["ours"] = ahead  # a context that is left ends its workers
        return in_turn(map(ahead.__enter__(), itertools.count()))

    return prepare


def workers_of_a_data_loader(workers: int) -> arena.Prepare:
    def prepare(case: arena.Case) -> Any:
        import torch
        from torchvision import datasets
        from torchvision import transforms as t

        batch, pipeline = batch_of(case), pipeline_of(t, case, [t.ToTensor()])
        images = datasets.ImageFolder(files_of(case).parent, lambda image: [pipeline(image) for _ in "ab"])
        endless = torch.utils.data.RandomSampler(images, replacement=True, num_samples=10**9)
        loader = torch.utils.data.DataLoader(
            images, batch, sampler=endless, num_workers=workers, worker_init_fn=end_with_parent
        )
        return in_turn(views for views, _ in loader)

    return prepare


def batch_of(case: arena.Case) -> int:
    if "file" not in case:
        raise ValueError("images in memory are not read")
    return int(case["images"]) // BATCHES


def in_turn(batches: Any) -> Any:
    """Take a few batches at each run, and stop the workers in between."""
    first = next(batches)  # they have begun

    def run() -> Any:
        tell(signal.SIGCONT)
        views = [next(batches) for _ in range(BATCHES)][-1]
        tell(signal.SIGSTOP)
        return views

    run.others = lambda: sum(map(seconds_of, children()))  # type: ignore[attr-defined]
    del first
    return run, lambda views: {"mean": np.mean([float(np.asarray(v).mean()) for v in views])}


def children() -> list[int]:
    return [int(k) for task in Path("/proc/self/task").iterdir() for k in (task / "children").read_text().split()]


def tell(number: int) -> None:
    for child in children():
        os.kill(child, number)


def seconds_of(process: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def end_with_parent(_: int) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a stopped process would stay for ever


# ── Two processes ─────────────────────────────────────────────────────────────────────────────────


def in_two(prepare: arena.Prepare) -> arena.Prepare:
    """The same by two processes of one thread, each with half of the images; views stay where they are made."""

    def prepared(case: arena.Case) -> Any:
        half = {**case, "images": case["images"] // 2}
        team = [helper(prepare, half) for _ in range(2)]
        used = [0.0, 0.0]

        def run() -> float:
            for connection in team:
                connection.send(None)
            replies = [connection.recv() for connection in team]
            used[:] = [seconds for _, seconds in replies]
            return float(np.mean([mean for mean, _ in replies]))

        run.others = lambda: sum(used)  # type: ignore[attr-defined]
        return run, lambda mean: {"mean": mean}

    return prepared


def helper(prepare: arena.Prepare, case: arena.Case) -> Any:
    """The connection to a new process, which makes views whenever something comes in."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    context.Process(target=help_out, args=(here, there, prepare, case), daemon=True).start()
    there.close()
    return here


def help_out(other_end: Any, connection: Any, prepare: arena.Prepare, case: arena.Case) -> None:
    other_end.close()  # so that this process notices when the other one ends
    processor.set_threads(1)
    run, answer = prepare(case)
    mean = answer(run())["mean"]
    with contextlib.suppress(EOFError, BrokenPipeError):  # the other process has ended
        while True:
            connection.recv()
            run()
            connection.send((mean, time.process_time()))


def view_bytes(case: arena.Case) -> float:
    return 2.0 * case["images"] * case["size"] ** 2 * 3 * 4


if __name__ == "__main__":
    arena.main(
        "augment", __doc__ or "", {"minisimclr": ours, "minisimclr, 2 processes": in_two(ours),
         "minisimclr, 1 worker": workers_of_ours(1), "minisimclr, 2 workers": workers_of_ours(2)},
        {"torchvision, Pillow": ("torch", torchvision_transforms(1)),
         "torchvision v2, tensors": ("torch", torchvision_transforms(2)),
         "Pillow, 2 processes": ("torch", in_two(torchvision_transforms(1))),
         "DataLoader, 1 worker": ("torch", workers_of_a_data_loader(1)),
         "DataLoader, 2 workers": ("torch", workers_of_a_data_loader(2))},
        CASES, default=list(CASES),
        defaults=["torchvision, Pillow", "torchvision v2, tensors", "DataLoader, 1 worker", "DataLoader, 2 workers"],
        floor=lambda case, best: view_bytes(case) / best["copy"], unit="views/s",
        per_run=lambda case: 2.0 * case["images"], seconds=10,
    )  # fmt: skip

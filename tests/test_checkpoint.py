"""Checkpoints: whatever happens while one is written, a whole one is found; what is not one is refused in a line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minisimclr import storage
from minisimclr.training import archive as archive_module
from minisimclr.training import checkpoint
from minisimclr.training.checkpoint import CheckpointError, load, part, save

ARRAYS = {
    "model/conv1.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "model/bn1.running_var": np.array([np.nan, -0.0, 1e-45], np.float32),
    "momentum/0": np.array(3.5),
    "momentum/1": np.zeros((0, 3), np.float64),
}
META = {"steps": 7, "config": {"lr": 0.3}, "images": "7 × ü"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A good checkpoint."""
    save(tmp_path / "checkpoint.npz", ARRAYS, META)
    return tmp_path / "checkpoint.npz"


def refused(path: Path) -> str:
    """Return the one line with which the file is refused; it names the file."""
    with pytest.raises(CheckpointError) as error:
        load(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# ── What is kept ──────────────────────────────────────────────────────────────────────────────────


def test_arrays_and_meta_come_back_bit_for_bit(path):
    arrays, meta = load(path)
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
        assert arrays[name].tobytes() == array.tobytes()
    assert meta == {"format": 1, **META}


def test_numpy_alone_can_read_it(path):
    """No pickle, and nothing of ours, is needed."""
    with np.load(path, allow_pickle=False) as archive:
        assert np.array_equal(archive["model/conv1.weight"], ARRAYS["model/conv1.weight"])
        assert json.loads(archive["meta"].tobytes())["steps"] == 7


def test_part_takes_one_prefix_away():
    assert list(part(ARRAYS, "model")) == ["conv1.weight", "bn1.running_var"]
    assert list(part(ARRAYS, "mode")) == []


def test_the_environment_names_what_decides_the_last_bit():
    here = checkpoint.environment()
    assert set(here) == {
        *("numerics", "device", "precision", "machine", "processor", "python", "numpy", "blas", "threads", "ranks")
    }
    assert here["numpy"] == np.__version__
    assert json.loads(json.dumps(here)) == here


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_is_as_private_as_its_user_wants_and_stays_so(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        storage.write(tmp_path / "file", b"new")
        assert (tmp_path / "file").stat().st_mode & 0o777 == mode
        (tmp_path / "file").chmod(0o640)
        storage.write(tmp_path / "file", b"newer")
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
        storage.open_to_append(tmp_path / "record").close()
        assert (tmp_path / "record").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_a_file_that_cannot_be_read_is_named_by_whoever_tells_of_it(tmp_path):
    (tmp_path / "large").write_bytes(b"1234")
    for path, why in ((tmp_path, "it is a folder, not a file"), (tmp_path / "large", "it is larger than 0 MiB")):
        with pytest.raises(OSError, match=why) as caught:
            storage.open_regular(path, 3)
        assert str(caught.value) == why
        assert caught.value.__notes__ == [storage.shown(path)]


# ── Writing ───────────────────────────────────────────────────────────────────────────────────────


class Full(Exception):
    """The error that stands for a full disk."""


def fails(*args: object, **kwargs: object) -> None:
    raise Full


def fails_halfway(file: io.BufferedIOBase, **arrays: object) -> None:
    file.write(b"PK\x03\x04 half an archive")
    raise Full


@pytest.mark.parametrize(
    ("name", "fault"),
    [("numpy.savez", fails_halfway), ("os.fsync", fails), ("os.fchmod", fails), ("os.replace", fails)],
)
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(path, monkeypatch, name, fault):
    before = path.read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(name, fault)
        with pytest.raises(Full):
            save(path, {"new": np.ones(3)}, {})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_what_cannot_be_json_leaves_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save(path, ARRAYS, {"steps": np.int64(3)})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_it_is_on_the_disk_before_it_has_its_name(path, monkeypatch):
    """fsync, then rename: the other way round a power cut could leave the new name on empty blocks."""
    calls: list[str] = []

    def spied(name: str, original: Callable[..., object]) -> Callable[..., object]:
        return lambda *args: (calls.append(name), original(*args))[1]

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, spied(name, getattr(os, name)))
    save(path, ARRAYS, META)
    assert calls[:2] == ["fsync", "replace"]
    assert calls[2:] == (["fsync"] if os.name == "posix" else [])  # the folder's, for the rename itself


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
from minisimclr.training import archive as archive_module
from minisimclr.training import checkpoint

path = Path(sys.argv[1])
os.fsync = lambda descriptor: None            # a killed process loses nothing that it has written

def save(k):
    checkpoint.save(path, {"k": np.full(50_000, k)}, {"k": k})

save(0)
last = 0
for trial in range(12):
    child = os.fork()
    if not child:
        for k in range(last + 1, last + 100_000):
            save(k)
    time.sleep(random.Random(trial).uniform(0.001, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    arrays, meta = checkpoint.load(path)                 # whole, and no older than what was there before
    assert meta["k"] >= last and (arrays["k"] == meta["k"]).all()
    last = meta["k"]
assert last > 0
print("done", len(list(path.parent.iterdir())) - 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """Processes that write one after the other, each killed in the midst of it; the next goes on from what is there."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, tmp_path / "checkpoint.npz"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.startswith("done"), done.stderr
    assert int(done.stdout.split()[1]) <= 12  # what a killed process leaves: one temporary file at most


KILLED_RUN = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
import minisimclr as ms
from minisimclr.resnet import ENCODERS, resnet_small
from minisimclr.training import checkpoint, session

ENCODERS["small"] = lambda **options: resnet_small(**{"base": 4, **options})
session.SAVE_EVERY = -1.0                                # each step is saved
os.fsync = lambda descriptor: None                       # a killed process loses nothing that it has written
config = ms.Config(size=8, batch=4, epochs=10, head_dim=8)  # 20 steps
images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
root, kills, rng = Path(sys.argv[1]), 0, random.Random(0)

def fragile(name, after):
    # The function with which the process kills itself, before or after the call.
    original, left = getattr(os, name), rng.randrange(12)
    def call(*args):
        nonlocal left
        left -= 1
        if left < 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*args)
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    setattr(os, name, call)

def bits(folder):
    return {name: array.tobytes() for name, array in checkpoint.load(folder / "checkpoint.npz")[0].items()}

ms.pretrain(config, images, folder=root / "whole")
runs = 0
while kills < int(sys.argv[2]):
    folder, status = root / str(runs), 1
    while status:
        rng.random()
        child = os.fork()
        if not child:
            if kills % 2:
                fragile(rng.choice(["fsync", "fchmod", "replace"]), rng.random() < 0.5)
            ms.pretrain(config, images, folder=folder, resume=(folder / "checkpoint.npz").exists())
            os._exit(0)
        if kills % 2 == 0:
            time.sleep(rng.uniform(0.005, 0.15))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), status
        kills += status == signal.SIGKILL
    assert bits(folder) == bits(root / "whole")
    assert sorted(os.listdir(folder)) == ["checkpoint.npz", "config.json", "metrics.jsonl"]
    assert [line["step"] for line in ms.load_run(folder).history] == list(range(20))
    runs += 1
print("done", kills, runs)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    """At least 60 kills: half at any moment, half inside a save, before and after each of its steps."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED_RUN, tmp_path, "60"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "MINISIMCLR_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.stdout.startswith("done"), done.stderr
    assert int(done.stdout.split()[1]) >= 60


# ── Refusing ──────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_file_is_no_checkpoint(tmp_path):
    assert refused(tmp_path / "nothing.npz").startswith("there is no checkpoint ")


def test_a_folder_is_no_checkpoint(tmp_path):
    refused(tmp_path)


def test_a_file_that_is_cut_off_anywhere_is_no_checkpoint(path):
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        refused(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_byte_is_noticed_or_harmless(path, compressed):
    """Whichever byte is flipped: a one-line refusal, or the same arrays (it was in an unused field)."""
    if compressed:
        text = np.frombuffer(json.dumps({"format": 1, **META}).encode(), np.uint8)
        np.savez_compressed(path, meta=text, **ARRAYS)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(whole), 150, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            arrays, meta = load(path)
            assert meta == {"format": 1, **META}
            assert all(arrays[name].tobytes() == ARRAYS[name].tobytes() for name in arrays)


@pytest.mark.parametrize("size", [0, 1, 22, 1000])
def test_random_bytes_are_no_checkpoint(path, size):
    path.write_bytes(np.random.default_rng(size).bytes(size))
    refused(path)


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "."), content)
    return path


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def as_text(meta: object) -> np.ndarray:
    return np.frombuffer(json.dumps(meta).encode(), np.uint8)


def test_a_zip_of_something_else_is_no_checkpoint(path):
    refused(archive(path, readme=b"hello"))
    refused(archive(path, meta=b"hello"))  # the right name, but no array
    refused(archive(path))


def test_an_archive_without_meta_is_no_checkpoint(path):
    refused(archive(path, w__npy=npy(np.ones(3))))


@pytest.mark.parametrize(
    "meta",
    [
        as_text([]),
        as_text({}),
        as_text(None),
        as_text("x"),
        np.ones(3),
        np.array(["{}"]),
        np.frombuffer(b"\xff{", np.uint8),
        np.frombuffer(b"[" * 100_000, np.uint8),
    ],
)
def test_meta_of_another_program_make_no_checkpoint(path, meta):
    refused(archive(path, meta__npy=npy(meta)))


def test_a_format_of_the_future_is_named(path):
    assert "format 2, this version reads 1" in refused(archive(path, meta__npy=npy(as_text({"format": 2}))))


class Trap:
    """An object whose unpickling would leave a trace."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("trace",)


def test_pickled_objects_are_refused_unopened(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    trap = npy(np.array([Trap()], object), allow_pickle=True)
    refused(archive(path, meta__npy=npy(as_text({"format": 1})), w__npy=trap))
    refused(archive(path, meta__npy=trap))
    path.write_bytes(trap)
    refused(path)
    assert not Path("trace").exists()


def test_objects_are_refused_by_the_reader_too_whatever_kinds_are_admitted(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    trap = npy(np.array([Trap()], object), allow_pickle=True)
    archive(path, w__npy=trap)
    with monkeypatch.context() as patch:
        patch.setattr(archive_module.Archive, "_header", lambda self, name: None)  # it would refuse them first
        with archive_module.opened(path) as found, pytest.raises(ValueError, match="w is damaged"):
            found.read("w")
    assert not Path("trace").exists()


@pytest.mark.parametrize("rule", [((3,), "f4"), ((), "f8"), ((3, 1), "f8")])
def test_shapes_and_dtypes_are_compared_before_a_value_is_read(path, monkeypatch, rule):
    archive(path, w__npy=npy(np.zeros(3)))
    monkeypatch.setattr(archive_module.Archive, "_blocks", fails)
    with archive_module.opened(path) as found, pytest.raises(ValueError, match=r"w has (shape|dtype)"):
        found.require({"w": archive_module.Rule(rule[0], np.dtype(rule[1]))})


def test_nothing_in_the_package_opens_pickles():
    for file in Path(checkpoint.__file__).parent.rglob("*.py"):
        text = file.read_text()
        assert "import pickle" not in text, file
        assert "allow_pickle=True" not in text, file


def test_an_archive_that_would_unpack_to_too_much_is_refused_unread(path, monkeypatch):
    """Measured by what the members declare; nothing of them is unpacked."""
    monkeypatch.setattr(archive_module, "LARGEST", path.stat().st_size // 2)
    monkeypatch.setattr(zipfile, "ZipFile", fails)
    assert "larger than" in refused(path)


def test_an_array_that_declares_too_many_numbers_is_in_no_checkpoint(path):
    header = npy(np.zeros(3)).replace(b"(3,), ", b"(3333333333333,), ")
    refused(archive(path, meta__npy=npy(as_text({"format": 1})), w__npy=header))

"""Files that are written whole or not at all, and looked at before they are read.

Plain `open` writes through links, leaves half a file when the disk is full, and waits for ever on a pipe. Whatever a
command writes goes through `write` or `write_all`, and whatever it reads back is opened by `open_regular`. The lock of
a folder is the kernel's: it ends with the process that holds it, however that ends. (Windows has neither that lock
nor a folder's fsync; there, two processes in one folder are not noticed.)
"""

from __future__ import annotations

import io
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TypeAlias

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Content: TypeAlias = (
    "bytes | str | Callable[[IO[bytes]], object]"  # what is to be written, or a function that writes it
)


def one_line(text: str, most: int = 200) -> str:
    """Make text safe to print on one line: no control characters, which could drive a terminal, and no novel.

    >>> one_line("a\\n\\x1b[2Jb", most=6)
    'a �[2…'
    """
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def shown(path: Path | str, most: int = 100) -> str:
    """Return a path safe to print; of a long one the end, which says more than its beginning."""
    line = one_line(str(path), most=len(str(path)) + 1)
    return line if len(line) <= most else "…" + line[1 - most :]


# ── Writing ───────────────────────────────────────────────────────────────────────────────────────


def write(path: Path, content: Content) -> None:
    """Write a file, or leave what was there untouched. Raises: what `write_all` raises."""
    write_all({path: content})


def write_all(contents: Mapping[Path, Content]) -> None:
    """Write files, or leave all that was there untouched.

    Each goes to a temporary file in its folder, then to the disk (fsync), and only when all are there they are
    renamed: whoever looks, also after a power cut or `kill -9`, finds a whole old file or a whole new one.

    Raises: OSError if a name belongs to a link, a folder, a pipe or a device, which are neither followed nor
            replaced, and if writing fails.
    """
    waiting: dict[Path, str] = {}  # the temporary file of each
    try:
        for path, content in contents.items():
            require_replaceable(path)
            waiting[path] = str(path.with_name(f".{path.name}.{os.urandom(4).hex()}.part"))
            _fill(waiting[path], path, content)
        for path, temporary in waiting.items():
            os.replace(temporary, path)  # of the name itself, so a link that appeared meanwhile is not followed
    except BaseException as error:
        for temporary in waiting.values():
            Path(temporary).unlink(missing_ok=True)
        ours = getattr(error, "filename", None) in (None, *waiting.values())
        if isinstance(error, OSError) and error.errno and ours:
            error.filename = str(path)  # a full disk names no file; and nobody knows the temporary one
        raise
    for folder in {path.parent for path in contents}:
        _sync_folder(folder)


def _fill(temporary: str, path: Path, content: Content) -> None:
    """Write content to a new file, and wait until it is on the disk.

    It is as private as the file that it will replace, or as the user wants new files (umask).
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
        if path.exists() and hasattr(os, "fchmod"):
            os.fchmod(file.fileno(), os.stat(path).st_mode & 0o777)
        if callable(content):
            content(file)
        else:
            file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable (not possible, and not needed, on Windows)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_replaceable(path: Path) -> None:
    """Raise OSError unless there is no such name, or it is a regular file's own: then it may be replaced."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise OSError(f"{shown(path)} is {_kind(mode)}, and is not replaced; move it away")


def open_to_append(path: Path) -> io.FileIO:
    """Open a regular file for lines to be added. Raises: OSError for anything else, a link among it."""
    require_replaceable(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return io.FileIO(os.open(path, flags, 0o666), "a")  # without a buffer, in which a line would wait


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove the temporary files of these names, which a process left there that was killed while it wrote."""
    ours = re.compile(rf"\.({'|'.join(map(re.escape, names))})\.[a-z0-9_]{{8}}\.part")  # as `write_all` names them
    for path in folder.iterdir():
        if ours.fullmatch(path.name) and stat.S_ISREG(os.lstat(path).st_mode):
            path.unlink(missing_ok=True)


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────


def open_regular(path: Path, most: int) -> int:
    """Open a regular file of at most `most` bytes, and return its descriptor. A link to one will do.

    Raises: FileNotFoundError; OSError, at once and unread, for a pipe, a device, a folder, or a file that is larger.
    """
    descriptor = None
    try:
        _require_regular(os.stat(path))  # before it is opened: to open a device may already do something
        # without O_NONBLOCK a pipe that took the file's place just now would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        found = os.fstat(descriptor)
        _require_regular(found)
        if found.st_size > most:
            raise OSError(f"it is larger than {most / 2**20:,.0f} MiB")
    except BaseException as error:
        if descriptor is not None:
            os.close(descriptor)
        if isinstance(error, OSError) and error.filename is None:
            error.add_note(shown(path))  # a note goes before the message where a command tells of it
        raise
    return descriptor


def _require_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(f"it is {_kind(found.st_mode)}, not a file")


def _kind(mode: int) -> str:
    """Name what is no regular file."""
    kinds = {stat.S_ISLNK: "a link", stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_one, name in kinds.items() if is_one(mode)), "a device")


# ── One process ───────────────────────────────────────────────────────────────────────────────────


class Lock:
    """A folder's lock: it is held until `release`, or until the process ends, however it ends.

    The folder itself is locked and nothing is written, so nothing is left behind.

    Raises: BlockingIOError if another process, or this one, holds it.
    """

    def __init__(self, folder: Path) -> None:  # or a file
        self._descriptor: int | None = None
        if fcntl is None:
            return
        self._descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise
        except OSError:  # a file system that has no locks: as on Windows
            self.release()

    def is_of(self, path: Path) -> bool:
        """Return True if what is locked is what has this name now: a file may have been removed, and made again."""
        try:
            return self._descriptor is None or os.path.samestat(os.fstat(self._descriptor), os.lstat(path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give it back; once is enough."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    __del__ = release  # a run that was begun and never trained holds it no longer than it lives


PATIENCE = 10.0  # seconds that a process waits for another to read a small file and write it again


@contextmanager
def changing(path: Path) -> Iterator[None]:
    """Keep other processes from changing a file that is read, and written again with something more.

    `write` replaces the file, and a lock would stay with the old one. So a file beside it, .NAME.lock, is locked, and
    removed at the end. One that a killed process left is taken over.

    Raises: TimeoutError, in one line, if another process has not finished in time; OSError if it cannot be made.
    """
    if fcntl is None:
        yield
        return
    beside, until = path.with_name(f".{path.name}.lock"), time.monotonic() + PATIENCE
    while (lock := _lock_beside(beside)) is None:
        if time.monotonic() > until:
            raise TimeoutError(f"{shown(path)} is in use: another process writes it; wait for it, or stop it")
        time.sleep(0.05)
    try:
        yield
    finally:
        beside.unlink(missing_ok=True)  # while it is locked: whoever waits finds that the name is another file's
        lock.release()


def _lock_beside(beside: Path) -> Lock | None:
    """Make a file if need be, and lock it; None if another process holds it, or has just removed it."""
    require_replaceable(beside)  # a pipe would wait for its other end
    os.close(os.open(beside, os.O_RDONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666))
    try:
        lock = Lock(beside)
    except (BlockingIOError, FileNotFoundError):
        return None
    if lock.is_of(beside):
        return lock
    lock.release()
    return None

"""The door for output: files and folders are written whole or not at all; and documents that ship with the package.

Everything is made under a scratch name beside its place and renamed into it. Scratch of a process that was killed is locked by
nobody, and is removed by the next one that writes there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from autotune.errors import OutputError
from cost_models.catalog import validated
from cost_models.reading import parse_yaml
from cost_models.specs.base import Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

S = TypeVar("S", bound=Spec)
SCRATCH = ".autotune-"
YOUNGEST_S = 5.0
"""Scratch younger than this is left alone: its owner may be about to lock it."""
TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}
"""What renaming a folder to a name in use fails with."""
MOST_NAMES = 10_000
EXCHANGE = 2
"""RENAME_EXCHANGE of renameat2(2)."""
AT_FDCWD = -100


def packaged(kind: type[S], *parts: str) -> S:
    """A document under autotune/data, checked against its schema."""
    text = resources.files("autotune").joinpath("data", *parts).read_text(encoding="utf-8")
    return validated(kind, parse_yaml(text, parts[-1]), parts[-1])


@contextmanager
def writing(where: Path, way_out: str = "") -> Iterator[None]:
    """Turn what the file system refuses into one message."""
    if "\0" in str(where):
        raise OutputError(f"cannot write {str(where)[:200]!r}: the name has a NUL character")
    try:
        str(where).encode()  # names that are not UTF-8 cannot be said in any document
        yield
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"cannot write {str(where)[:200]}: {reason}{way_out}") from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file whole or not at all, leaving nothing else behind; a pipe or a device is written to as it is.

    Raises OutputError when it cannot be written.
    """
    raw = content.encode() if isinstance(content, str) else content
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(raw)  # raises for a folder
            return
        path = path.resolve()  # the file that a link names, not the link
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "it is write-protected")
        sweep_scratch(path.parent)
        scratch = _scratch_name(path.parent)
        try:
            with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                _lock(file.fileno())
                file.write(raw)
                file.flush()
                os.replace(scratch, path)
        finally:
            with contextlib.suppress(OSError):
                scratch.unlink()


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """A picture, whole or not at all; raises OutputError for what cannot be written, and for endings that are no picture."""
    known = sorted(figure.canvas.get_supported_filetypes())
    ending = path.suffix.removeprefix(".").lower() or "png"
    if ending not in known:
        raise OutputError(f"{path}: pictures are written as {', '.join(known)}")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=dpi, format=ending)
    write_whole(path, picture.getvalue())


@contextmanager
def scratch_folder(parent: Path, way_out: str = "") -> Iterator[Path]:
    """A locked folder under a scratch name, gone when the block ends unless it was renamed; raises OutputError."""
    with writing(parent, way_out):
        parent.mkdir(parents=True, exist_ok=True)
        sweep_scratch(parent)
        scratch = _scratch_name(parent)
        scratch.mkdir()
        lock = _lock(os.open(scratch, os.O_RDONLY))
    try:
        with writing(parent, way_out):
            yield scratch
    finally:
        os.close(lock)
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def whole_folder(folder: Path, own: Callable[[Path], bool]) -> Iterator[Path]:
    """A scratch folder whose files are `folder`'s when the block ends without an error: all of them, or none.

    own : whether a file that lies there was written by an earlier call, so that it goes. What is not own stays; the new files
    are then renamed one by one. Raises OutputError.
    """
    check_writable(folder)
    with writing(folder):
        place = folder.resolve()
        place.mkdir(parents=True, exist_ok=True)
    beside = os.access(place.parent, os.W_OK) and not os.path.ismount(place)
    with scratch_folder(place.parent if beside else place) as scratch:
        yield scratch
        shutil.copymode(place, scratch)
        there = [path for path in place.iterdir() if path != scratch]
        foreign = any(not own(path) for path in there)
        if not beside or foreign or not _in_one_step(scratch, place):
            _one_by_one(scratch, place, [path for path in there if own(path)])


def _in_one_step(scratch: Path, place: Path) -> bool:
    """Put a folder in the place of another; False where the system cannot."""
    with contextlib.suppress(OSError):
        scratch.rename(place)  # takes the place of an empty one
        return True
    return _exchange(scratch, place)


def _one_by_one(scratch: Path, place: Path, stale: list[Path]) -> None:
    new = sorted(scratch.iterdir())
    for path in stale:
        if path.name not in {file.name for file in new}:
            path.unlink()
    for path in new:
        path.replace(place / path.name)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step of the kernel; False where it has none."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), EXCHANGE) == 0


def claim(scratch: Path, out: Path, name: str) -> Path:
    """Rename a filled scratch folder to the first of name, name_2, ... that is free; the renaming is what takes the name.

    Raises OutputError when all are in use.
    """
    for number in range(1, MOST_NAMES):
        folder = out / (name if number == 1 else f"{name}_{number}")
        try:
            scratch.rename(folder)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            continue
        return folder
    raise OutputError(f"{out} has {MOST_NAMES:,} folders named {name} already; choose another with --out")


def sweep_scratch(folder: Path) -> None:
    """Remove scratch whose owner is dead."""
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{SCRATCH}*"):
            if _abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
                with contextlib.suppress(OSError):
                    path.unlink()


def _abandoned(path: Path) -> bool:
    """Whether nobody holds the lock of a scratch file or folder that is not brand new."""
    try:
        import fcntl

        found = path.lstat()
        if stat.S_ISLNK(found.st_mode) or time.time() - found.st_mtime < YOUNGEST_S:
            return False
        handle = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(handle)


def _lock(handle: int) -> int:
    """Hold a lock until the handle is closed or the process ends; systems without such locks go without."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return handle


def _scratch_name(folder: Path) -> Path:
    return folder / f"{SCRATCH}{secrets.token_hex(6)}"


def check_writable(out: Path) -> None:
    """Raise OutputError early, before minutes are spent on a search that could not be saved."""
    with writing(out, "; choose another folder with --out"):
        existing = next(p for p in [out, *out.absolute().parents] if p.exists())
    if not existing.is_dir():
        raise OutputError(f"{existing} is not a folder, so {out} cannot be created; choose another with --out")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"no permission to write under {existing}; choose another folder with --out")

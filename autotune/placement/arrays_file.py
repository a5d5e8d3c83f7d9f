"""Arrays of .npy and .npz files, whose headers are held against the bytes that follow before memory is taken for them."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from autotune.errors import ProblemError
from cost_models.reading import ARRAYS, Limit, read_bytes, reading, regular

NUMBERS = "biuf"
"""Kinds of dtype that are read: no objects, which would be pickles, and no text."""


def read_npy(path: Path) -> Any:
    """One array; raises ProblemError for what is none."""
    with reading(path, "cannot be read as an array", ProblemError):
        return parse_npy(read_bytes(path, ARRAYS), path)


def read_npz(path: Path) -> dict[str, Any]:
    """Arrays by name; raises ProblemError for what is no archive of arrays, or unpacks to more than ARRAYS."""
    with reading(path, "cannot be read as arrays", ProblemError):
        regular(path)
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if entry.filename.endswith(".npy")]
            ARRAYS.check(sum(archive.getinfo(name).file_size for name in names), path, "unpacked; save fewer arrays")
            return {name.removesuffix(".npy"): parse_npy(archive_bytes(archive, name, ARRAYS, path), path) for name in names}


def archive_bytes(archive: zipfile.ZipFile, name: str, limit: Limit, path: Path) -> bytes:
    """An entry of a zip file, not unpacked beyond the size that it states or the limit; raises InputError, KeyError."""
    entry = archive.getinfo(name)
    limit.check(entry.file_size, path, "unpacked; is it the right file?")
    return archive.read(entry)


def parse_npy(raw: bytes, path: Path) -> Any:
    """The array of a .npy file's bytes; ProblemError where the header states another size, ValueError without one."""
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ProblemError(f"{path}: version {version[0]}.{version[1]} of .npy is not read; save it again with numpy.save")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.kind not in NUMBERS:
        raise ProblemError(f"{path}: holds {dtype}, not numbers")
    left = len(raw) - file.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != left:
        raise ProblemError(f"{path}: its header says {shape} x {dtype}, {left:,} bytes follow: cut off?")
    flat = np.frombuffer(raw, dtype, math.prod(shape), file.tell()).copy()
    return flat.reshape(shape, order="F" if fortran else "C")

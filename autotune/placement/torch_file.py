"""Tensors of a torch.save file, read without torch and without running what is pickled in it.

The format is a zip archive: data.pkl describes tensors, data/<key> holds their bytes. Only the names that plain
tensors and containers need are resolved; anything else is refused.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from autotune.errors import ProblemError

STORAGES = {
    "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1",
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BoolStorage": "?",
}  # fmt: skip


def read_torch_file(path: Path) -> Any:
    """What was saved, tensors as numpy arrays; raises ProblemError for other files and for pickles with other objects."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            return _Reader(archive, name.removesuffix("data.pkl")).load()
    except (zipfile.BadZipFile, StopIteration, KeyError, EOFError) as error:
        raise ProblemError(f"{path}: not a file of torch.save (version 1.6 or newer)") from error
    except pickle.UnpicklingError as error:
        raise ProblemError(f"{path}: {error}") from error


class _Reader(pickle.Unpickler):
    """Resolves tensors, and nothing that could run."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")))
        self.archive = archive
        self.folder = folder

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"holds {module}.{name}, which is not a plain tensor; nothing was run")

    def persistent_load(self, pid: Any) -> Any:
        _, kind, key, _, _ = pid
        return np.frombuffer(self.archive.read(f"{self.folder}data/{key}"), dtype=kind)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_rest: object) -> Any:
    step = storage.dtype.itemsize
    view = np.lib.stride_tricks.as_strided(storage[offset:], size, [s * step for s in stride], writeable=False)
    return view.copy()

"""Tensors of a torch.save file, read without torch, without running what is pickled in it and without trusting a size in it.

The format is a zip archive: data.pkl describes tensors, data/<key> holds their bytes. The description is interpreted here,
opcode by opcode: those that torch.save writes for plain tensors and containers, and nothing else. Every offset, size and
stride is held against the bytes that the archive has before memory is touched.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autotune.errors import ProblemError
from autotune.placement.arrays_file import archive_bytes
from cost_models.reading import ARRAYS, DESCRIPTION, reading, regular

STORAGES = {
    "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1",
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BoolStorage": "?",
}  # fmt: skip
MOST_DIMENSIONS = 8
SHOWN = 80
"""Characters of a foreign name in a message."""
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, type[Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING", "BINSTRING",
}  # fmt: skip
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARK = object()


@dataclass(frozen=True, slots=True)
class NamedGlobal:
    """A global of the few that plain tensors need."""

    module: str
    name: str


REBUILD = NamedGlobal("torch._utils", "_rebuild_tensor_v2")
ORDERED = NamedGlobal("collections", "OrderedDict")


def read_torch_file(path: Path) -> Any:
    """What was saved, tensors as numpy arrays; raises ProblemError for other files and for pickles with other objects."""
    with reading(path, "not a file of torch.save (version 1.6 or newer)", ProblemError):
        regular(path)
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith("/data.pkl")), None)
            if name is None:
                raise ProblemError(f"{path}: not a file of torch.save (version 1.6 or newer): no data.pkl in it")
            description = archive_bytes(archive, name, DESCRIPTION, path)
            return _Machine(path, archive, name.removesuffix("data.pkl")).run(description)


class _Machine:
    """Interprets a description: a stack, a memory, and no way to anything outside."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, folder: str) -> None:
        self.path, self.archive, self.folder = path, archive, folder
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[tuple[str, str], Any] = {}
        self.made_bytes = 0

    def run(self, description: bytes) -> Any:
        """The object that the description ends with."""
        for opcode, argument, _ in pickletools.genops(description):
            if opcode.name == "STOP":
                return self._pop()
            self._step(opcode.name, argument)
        raise self._refused("its description does not end")

    def _step(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in EMPTY:
            self.stack.append(EMPTY[name]())
        elif name in LITERALS:
            self.stack.append(argument)
        elif name in TUPLES:
            self.stack.append(tuple(self._pop() for _ in range(TUPLES[name]))[::-1])
        elif (step := getattr(self, f"_{name.lower()}", None)) is not None and name in STEPS:
            step(argument)
        else:
            raise self._refused(f"holds {name}, which a description of plain tensors does not")

    def _proto(self, argument: int) -> None:
        if not 2 <= argument <= 5:
            raise self._refused(f"pickle protocol {argument} is not one of 2 to 5")

    def _frame(self, _: int) -> None:
        """How much follows; nothing depends on it here."""

    def _mark(self, _: None) -> None:
        self.stack.append(MARK)

    def _binput(self, slot: int) -> None:
        self.memo[slot] = self._top()

    _long_binput = _binput

    def _memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self._top()

    def _binget(self, slot: int) -> None:
        if slot not in self.memo:
            raise self._refused(f"refers to entry {slot} of its memory, which was never filled")
        self.stack.append(self.memo[slot])

    _long_binget = _binget

    def _tuple(self, _: None) -> None:
        self.stack.append(tuple(self._to_mark()))

    def _global(self, argument: str) -> None:
        self._name(*argument.split(" ", 1))

    def _stack_global(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _name(self, module: Any, name: Any) -> None:
        known = NamedGlobal(module, name)
        if known not in (REBUILD, ORDERED) and not (module == "torch" and name in STORAGES):
            raise self._refused(f"holds {f'{module}.{name}'[:SHOWN]}, which is not a plain tensor; nothing was run")
        self.stack.append(known)

    def _binpersid(self, _: None) -> None:
        match self._pop():
            case ("storage", NamedGlobal("torch", kind), str(key), _, int(count)) if kind in STORAGES:
                self.stack.append(self._storage(kind, key, count))
            case _:
                raise self._refused("refers to a storage in a way that torch.save does not")

    def _reduce(self, _: None) -> None:
        arguments, function = self._pop(), self._pop()
        if function == ORDERED and arguments == ():
            self.stack.append({})
        elif function == REBUILD and isinstance(arguments, tuple) and len(arguments) >= 4:
            self.stack.append(self._tensor(*arguments[:4]))
        else:
            raise self._refused("calls something other than what rebuilds a tensor; nothing was run")

    def _build(self, _: None) -> None:
        """State of an OrderedDict (`_metadata` of a state dict); not needed."""
        self._pop()
        if not isinstance(self._top(), dict):
            raise self._refused("sets the state of something other than a dictionary")

    def _setitem(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _setitems(self, _: None) -> None:
        self._set(self._to_mark())

    def _set(self, flat: list[Any]) -> None:
        target, keys = self._top(), flat[::2]
        if not isinstance(target, dict) or len(flat) % 2 or not all(isinstance(key, str | int) for key in keys):
            raise self._refused("fills something other than a dictionary of names")
        target.update(zip(keys, flat[1::2], strict=True))

    def _append(self, _: None) -> None:
        self._extend([self._pop()])

    def _appends(self, _: None) -> None:
        self._extend(self._to_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise self._refused("appends to something other than a list")
        target += values

    def _storage(self, kind: str, key: str, count: int) -> Any:
        """The bytes of a storage as a flat array; raises ProblemError where the archive has fewer than it says."""
        if (kind, key) not in self.storages:
            dtype = np.dtype(STORAGES[kind])
            raw = archive_bytes(self.archive, f"{self.folder}data/{key}", ARRAYS, self.path)
            self._count(len(raw))
            if not 0 <= count * dtype.itemsize <= len(raw):
                raise self._refused(f"storage {key[:SHOWN]} is said to hold {count} x {dtype}, its bytes are {len(raw):,}")
            self.storages[kind, key] = np.frombuffer(raw, dtype, count)
        return self.storages[kind, key]

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> Any:
        """A copy of a strided view; raises ProblemError unless all of it lies inside its storage."""
        if not isinstance(storage, np.ndarray) or not _whole((offset,)) or not _whole(size) or not _whole(stride):
            raise self._refused("describes a tensor by something other than whole numbers of zero or more")
        if len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
            raise self._refused(f"describes a tensor of {len(size)} sizes by {len(stride)} strides (at most {MOST_DIMENSIONS})")
        if 0 in size:
            return np.zeros(size if max(size) <= ARRAYS.most else (0,), storage.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= storage.size:
            raise self._refused(f"describes a tensor whose last element is number {last} of a storage of {storage.size}")
        self._count(math.prod(size) * storage.dtype.itemsize)
        steps = [step * storage.dtype.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, steps, writeable=False).copy()

    def _count(self, size: int) -> None:
        self.made_bytes += size
        ARRAYS.check(self.made_bytes, self.path, "record fewer steps or save counts instead of choices")

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            raise self._refused("takes from an empty stack")
        return self.stack[-1]

    def _pop(self) -> Any:
        top = self._top()
        self.stack.pop()
        return top

    def _to_mark(self) -> list[Any]:
        if not any(item is MARK for item in self.stack):
            raise self._refused("takes everything from a mark that was not set")
        taken: list[Any] = []
        while (item := self.stack.pop()) is not MARK:
            taken.append(item)
        return taken[::-1]

    def _refused(self, why: str) -> ProblemError:
        return ProblemError(f"{self.path}: {why}")


STEPS = {
    "PROTO", "FRAME", "MARK", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "TUPLE", "GLOBAL", "STACK_GLOBAL",
    "BINPERSID", "REDUCE", "BUILD", "SETITEM", "SETITEMS", "APPEND", "APPENDS",
}  # fmt: skip
"""With LITERALS, CONSTANTS, EMPTY, TUPLES and STOP: every opcode that is read."""


def _whole(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 2**62 for value in values)

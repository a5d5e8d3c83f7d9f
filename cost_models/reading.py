"""The door for input: what people hand in is opened here, within limits, and every failure is one message with the way out."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import select
import stat
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from cost_models.errors import AutotuneError, InputError

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Limit:
    """A size beyond which input is refused before any work is done."""

    most: int
    of: str

    def check(self, size: float, where: object, way_out: str) -> None:
        """Raise InputError with the number found, the number allowed and what to do."""
        if size > self.most:
            raise InputError(f"{where}: {size:,.0f} {self.of}, at most {self.most:,} are read; {way_out}")


DOCUMENT = Limit(16 * MIB, "bytes of a document")
"""Deployments, plans, hardware, calibrations, config.json, scripts."""
RESULT = Limit(512 * MIB, "bytes of measurements")
"""Profiler traces, benchmark results, timing tables, after unpacking."""
STREAM = Limit(8 * 2**30, "bytes of a request log")
"""Read line by line, after unpacking."""
LINE = Limit(MIB, "characters of one line")
ARRAYS = Limit(512 * MIB, "bytes of arrays")
"""All arrays of one file of expert loads, unpacked."""
DESCRIPTION = Limit(4 * MIB, "bytes of a pickled description")
"""data.pkl of a torch file: names and shapes, no numbers."""
NODES = Limit(400_000, "values of a document")
"""Of a YAML document, with what its aliases repeat."""
DEPTH = Limit(100, "levels of nesting")
WHOLE = Limit(10**18, "as a whole number")
"""Arrays hold whole numbers up to 9.2e18."""
REAL = Limit(10**30, "as a number")
LIMITS = {
    "document": DOCUMENT, "measurements": RESULT, "request log": STREAM, "line of a log": LINE, "arrays": ARRAYS,
    "torch description": DESCRIPTION, "document's values": NODES, "nesting": DEPTH, "whole numbers": WHOLE, "numbers": REAL,
}  # fmt: skip
"""Every limit of input, as docs/reliability.md lists them."""
PIPE_WAIT_S = 10.0
"""For the first byte, and between two, of a pipe."""
CHUNK_BYTES = MIB


@contextmanager
def reading(where: object, what: str, error: type[AutotuneError] = InputError) -> Iterator[None]:
    """Turn whatever a parser raises on a file's content into one message.

    Parsers of other libraries raise what they like on bytes that nobody meant for them: ValueError, KeyError, zlib.error,
    RecursionError, MemoryError, ... None of that is a fault of autotune's, so nothing but AutotuneError passes.
    """
    try:
        yield
    except InputError as found:
        raise error(f"{where}: {what}: {str(found).removeprefix(f'{where}: ')}") from found
    except AutotuneError:
        raise
    except OSError as found:
        raise error(f"{where}: cannot be read: {found.strerror or found}") from found
    except Exception as found:  # the list of what third-party parsers raise is open
        raise error(f"{where}: {what}: {first_line(found)}") from found


def first_line(error: BaseException) -> str:
    """What an exception says, on one line, shortened."""
    missing = getattr(error, "name", None) or error
    names = {
        "RecursionError": "nested too deep", "MemoryError": "does not fit memory", "KeyError": f"no {error}",
        "AttributeError": f"no '{missing}'", "TypeError": "a value of another type than expected",
    }  # fmt: skip
    text = names.get(type(error).__name__) or " ".join(str(error).split())
    return (text or type(error).__name__)[:300]


def named(path: Path) -> os.stat_result:
    """What a path names; raises InputError for what cannot be a name and for what is not there."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{str(path)!r}: the name is not UTF-8; rename the file") from error
    if "\0" in str(path):
        raise InputError(f"{str(path)!r}: the name has a NUL character")
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{shortened(path)}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def shortened(path: Path) -> str:
    """A path as a message shows it."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:200]}..."


def is_folder(path: Path) -> bool:
    """Whether a path names a folder; False for what does not exist. Raises InputError for what cannot be a name."""
    try:
        return stat.S_ISDIR(named(path).st_mode)
    except InputError:
        if os.path.lexists(str(path)[:4000].replace("\0", "")):
            raise
        return False


def regular(path: Path) -> int:
    """Size of a regular file [B]; raises InputError for folders, pipes, devices and names of nothing."""
    found = named(path)
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path}: is a folder; a file is needed here")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: is no regular file (a pipe or a device); write it to a file first")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it")
    return found.st_size


def read_bytes(path: Path, limit: Limit = DOCUMENT, *, pipe: bool = False) -> bytes:
    """A file's bytes; raises InputError for what is missing, no file, or larger than the limit.

    pipe : whether a pipe, such as the shell's <(...), is read too, once.
    """
    if pipe and stat.S_ISFIFO((found := named(path)).st_mode):
        return _piped(path, limit, found.st_dev, found.st_ino)
    limit.check(regular(path), path, "is it the right file?")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


@functools.cache
def _piped(path: Path, limit: Limit, _device: int, _inode: int) -> bytes:
    """Everything that comes through a pipe, kept: it comes once. Raises InputError where nothing does for PIPE_WAIT_S."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    found = bytearray()
    waited_until = time.monotonic() + PIPE_WAIT_S
    try:
        while time.monotonic() < waited_until:
            if not select.select([handle], [], [], 0.1)[0]:
                continue
            try:
                chunk = os.read(handle, CHUNK_BYTES)
            except BlockingIOError:
                continue
            if not chunk and found:
                return bytes(found)
            if not chunk:  # no writer yet, or one that wrote nothing
                time.sleep(0.05)
                continue
            found += chunk
            limit.check(len(found), path, "is it the right pipe?")
            waited_until = time.monotonic() + PIPE_WAIT_S
    finally:
        os.close(handle)
    raise InputError(f"{path}: a pipe through which nothing came for {PIPE_WAIT_S:g} s")


def read_text(path: Path, limit: Limit = DOCUMENT, *, pipe: bool = False) -> str:
    """A file's text; raises InputError also for what is not UTF-8, with the place."""
    raw = read_bytes(path, limit, pipe=pipe)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8: is it a text file?") from error


def unpacked(path: Path, limit: Limit = RESULT) -> bytes:
    """A file's bytes, unpacked where its name ends in .gz; raises InputError before more than the limit is held."""
    if path.suffix != ".gz":
        return read_bytes(path, limit)
    with GzipLines(path, limit) as file:
        return file.read()


class GzipLines(io.RawIOBase):
    """A .gz file as it unpacks, of at most `limit` bytes; raises InputError for what is broken, cut off or larger."""

    def __init__(self, path: Path, limit: Limit) -> None:
        import gzip

        regular(path)
        self.path, self.limit, self.count = path, limit, 0
        self.file = gzip.GzipFile(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            chunk = self.file.read(len(buffer))
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise InputError(f"{self.path}: cannot be read: broken or cut off? ({first_line(error)})") from error
        self.count += len(chunk)
        self.limit.check(self.count, self.path, "unpacked; cut it to the part that matters")
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


def open_lines(path: Path, limit: Limit = STREAM) -> IO[str]:
    """A text file to read line by line, unpacked where its name ends in .gz; raises InputError as it is opened and read.

    What is not UTF-8 becomes a replacement character, so it fails where it is parsed, with its line.
    """
    if path.suffix == ".gz":
        return io.TextIOWrapper(io.BufferedReader(GzipLines(path, limit), CHUNK_BYTES), encoding="utf-8-sig", errors="replace")
    limit.check(regular(path), path, "cut it to the part that matters")
    return path.open(encoding="utf-8-sig", errors="replace")


def lines(file: IO[str], where: object) -> Iterator[str]:
    """Lines of an open text, none longer than LINE."""
    while line := file.readline(LINE.most + 1):
        LINE.check(len(line), where, "is it a text of lines?")
        yield line


def parse_json(text: str | bytes, where: object, *, unique: bool = False) -> Any:
    """JSON to plain data; raises InputError with the position of a fault.

    unique : whether a key that stands twice in an object is an error.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"{where}: not valid JSON: nested too deep") from error
    except (ValueError, MemoryError) as error:  # digits beyond what Python converts, bytes that are no text, a key twice
        raise InputError(f"{where}: not valid JSON: {first_line(error)}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


_Base: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # PyYAML built without libyaml has the latter only


class _Loader(_Base):  # type: ignore[misc]  # a base chosen at run time
    """Safe YAML in which a key that stands twice is an error: the last one would win without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [child.value for child, _ in node.value if isinstance(child, yaml.ScalarNode) and child.value != "<<"]
        if len(set(keys)) < len(keys):
            twice = Counter(keys).most_common(1)[0][0]
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice in one mapping", node.start_mark)
        return super().construct_mapping(node, deep)


@contextmanager
def _yaml(where: object) -> Iterator[None]:
    """PyYAML's faults as InputErrors with their position."""
    try:
        yield
    except InputError:
        raise
    except yaml.YAMLError as error:
        said = " ".join(str(error).split()).replace("unhashable key", "a key that is a list or a mapping")
        raise InputError(f"{where}: not valid YAML: {said}") from error
    except Exception as error:  # PyYAML's constructors raise ValueError, KeyError, AttributeError, ... for !!int abc and the like
        raise InputError(f"{where}: not valid YAML: {first_line(error)}") from error


def parse_yaml(text: str, where: object) -> Any:
    """YAML to plain data; raises InputError with the position of a fault, for a key that stands twice and beyond NODES."""
    with _yaml(where):
        data = yaml.load(text, Loader=_Loader)  # noqa: S506  (a safe loader)
    _bounded(data, where)
    return data


def parse_yaml_documents(text: str, where: object, most: Limit) -> list[Any]:
    """All documents of a YAML text; raises InputError as parse_yaml does, and for more than `most`."""
    found: list[Any] = []
    with _yaml(where):
        for document in yaml.load_all(text, Loader=_Loader):
            found.append(document)
            most.check(len(found), where, "split the file")
    _bounded(found, where)
    return found


def _bounded(data: Any, where: object) -> None:
    """Raise InputError for documents that aliases blow up, that hold themselves or that nest too deep."""
    count = 0
    waiting: list[tuple[Any, int]] = [(data, 1)]
    while waiting:
        value, level = waiting.pop()
        count += 1
        if count > NODES.most:
            NODES.check(count, where, "do its aliases repeat each other?")
        if isinstance(value, dict | list | tuple | set):
            DEPTH.check(level, where, "write it flatter")
            inside = [*value, *value.values()] if isinstance(value, dict) else value
            waiting += [(child, level + 1) for child in inside]


def check_numbers(data: Any, where: object) -> None:
    """Raise InputError naming the place and value of a number that no document means: not finite, or beyond WHOLE or REAL."""
    waiting: list[tuple[str, Any]] = [("", data)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{place}.{key}", child) for key, child in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(f"{place}.{at}", child) for at, child in enumerate(value)]
        elif isinstance(value, bool) or not isinstance(value, int | float):
            continue
        elif isinstance(value, int) and abs(value) > WHOLE.most:
            raise InputError(f"{where}: {place[1:] or 'document'}: {_digits(value)} is beyond {WHOLE.most:.0e}")
        elif not math.isfinite(value) or abs(value) > REAL.most:
            raise InputError(f"{where}: {place[1:] or 'document'}: {value:g} is not a number below {REAL.most:.0e}")


def kind_of(data: Any) -> str:
    """What a document holds, in words of its own."""
    words = {"NoneType": "nothing", "list": "a list", "str": "text", "bool": "yes or no"}
    return words.get(type(data).__name__, "a single value")


def _digits(value: int) -> str:
    """A whole number, shortened where it has more digits than anyone reads."""
    bits = value.bit_length()
    return str(value) if bits < 128 else f"a number of about {int(bits * math.log10(2)) + 1} digits"

"""The requests a service is sent: synthetic, or read from a trace."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.errors import ProblemError
from cost_models.arrays import Floats, as_floats
from cost_models.reading import lines, open_lines, reading, regular
from cost_models.specs.workload import MAX_LENGTH_TOKENS

Record = tuple[float, float, float]
"""Time sent [s], input and output length [token]."""
MOST_REQUESTS = 4_000_000
"""Of a trace; more do not fit the memory of a laptop."""
LATEST_S = 1e12
"""Time of a request: further on, floating-point seconds have no milliseconds."""


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests in the order they are sent, (n,) each."""

    isl_tokens: Floats
    osl_tokens: Floats
    arrival_s: Floats | None = None
    """Times sent (open loop); none: closed loop, `concurrency` of them in flight."""
    concurrency: int = 0
    prefix_tokens: Floats | None = None
    """Tokens before the input that the prefix cache holds; `isl_tokens` are then those to be computed."""

    def __len__(self) -> int:
        return len(self.isl_tokens)

    @property
    def rate_per_s(self) -> float | None:
        """Mean rate at which an open loop sends; none for a closed one."""
        if self.arrival_s is None or len(self) < 2 or self.arrival_s[-1] <= self.arrival_s[0]:
            return None
        return float((len(self) - 1) / (self.arrival_s[-1] - self.arrival_s[0]))

    @property
    def in_flight(self) -> int:
        """Requests in flight of a closed loop; 0 of an open one, which has no limit."""
        return self.concurrency if self.arrival_s is None else 0

    def closed(self, concurrency: int) -> Requests:
        """The same lengths in the same order, so many in flight."""
        return dataclasses.replace(self, arrival_s=None, concurrency=concurrency)

    def at_rate(self, rate_per_s: float) -> Requests:
        """The same arrivals, faster or slower; raises ProblemError where all arrive at once."""
        rate = self.rate_per_s
        if rate is None or self.arrival_s is None:
            raise ProblemError("all requests of the trace arrive at the same time, so they have no rate to scale")
        return dataclasses.replace(self, arrival_s=(self.arrival_s - self.arrival_s[0]) * (rate / rate_per_s))

    def every(self, nth: int) -> Requests:
        """Every nth request: the share of one of `nth` instances that are dealt requests in turn."""
        return dataclasses.replace(self._part(slice(None, None, nth)), concurrency=max(round(self.concurrency / nth), 1))

    def first(self, count: int | None) -> Requests:
        """The first `count`; all where none."""
        return self._part(slice(count))

    def without_cached(self, hit_rate: float) -> Requests:
        """Input lengths less what the prefix cache holds; the last token of a prompt is always computed."""
        new = np.maximum(self.isl_tokens * (1 - hit_rate), 1.0)
        return dataclasses.replace(self, isl_tokens=new, prefix_tokens=self.isl_tokens - new)

    def _part(self, rows: slice) -> Requests:
        arrival_s = None if self.arrival_s is None else self.arrival_s[rows]
        return Requests(self.isl_tokens[rows], self.osl_tokens[rows], arrival_s, self.concurrency)


def benchmark_requests(
    isl_tokens: float, osl_tokens: float, *, count: int, concurrency: int, shortest: float = 1.0, seed: int = 0
) -> Requests:
    """Closed-loop benchmark traffic: lengths uniform between `shortest` and 1 of nominal."""
    return Requests(*_lengths(isl_tokens, osl_tokens, count, shortest, seed), concurrency=concurrency)


def poisson_requests(
    isl_tokens: float, osl_tokens: float, *, count: int, rate_per_s: float, shortest: float = 1.0, seed: int = 0
) -> Requests:
    """Open-loop synthetic traffic: Poisson arrivals, lengths uniform between `shortest` and 1 of nominal."""
    gaps = np.random.default_rng([seed, 1]).exponential(1 / rate_per_s, count)
    return Requests(*_lengths(isl_tokens, osl_tokens, count, shortest, seed), arrival_s=as_floats(np.cumsum(gaps)))


def _lengths(isl_tokens: float, osl_tokens: float, count: int, shortest: float, seed: int) -> tuple[Floats, Floats]:
    scale: NDArray[np.float64] = np.random.default_rng(seed).uniform(shortest, 1.0, (2, count))
    isl, osl = np.maximum(np.rint(scale * np.array([[isl_tokens], [osl_tokens]])), 1)
    return as_floats(isl), as_floats(osl)


def read_trace(path: Path) -> Requests:
    """Requests of an Azure LLM inference trace or BurstGPT (CSV), or a Mooncake trace (JSON lines), plain or gzip-compressed.

    Azure: columns TIMESTAMP, ContextTokens, GeneratedTokens. BurstGPT (a dataset of `vllm bench`): Timestamp [s], Request tokens,
    Response tokens; requests without a response failed and are left out, as vLLM does. Mooncake: timestamp [ms],
    input_length, output_length; its block hashes are not used: state the share of cached input as
    workload.prefix_cache_hit_rate.
    Raises ProblemError naming the line, for lengths below one token, times that are negative or go backwards, missing
    values, and files of neither kind.
    """
    with reading(path, "cannot be read", ProblemError):
        regular(path)
        state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=2)
def _parsed(path: Path, _changed_ns: int, _size: int) -> Requests:
    """A trace as it was at a time: a search replays the same one for every candidate."""
    with reading(path, "not a request trace", ProblemError), open_lines(path) as file:
        records = list(_records(path, lines(file, path)))
    if not records:
        raise ProblemError(f"{path}: no request in it")
    sent, isl, osl = np.array(records, dtype=float).T
    return Requests(as_floats(isl), as_floats(osl), as_floats(sent - sent[0]))


def _records(path: Path, file: Iterator[str]) -> Iterator[Record]:
    head = next(file, "")
    if head.lstrip().startswith("{"):
        rows: Iterable[Any] = _chained(head, file)
        parse: Callable[[Any], Record] = _mooncake
        first_line = 1
    elif "ContextTokens" in head:
        rows = csv.DictReader(file, fieldnames=head.strip().split(","))
        parse, first_line = _azure, 2
    elif "Response tokens" in head:
        rows = csv.DictReader(file, fieldnames=head.strip().split(","))
        parse, first_line = _burst_gpt, 2
    else:
        raise ProblemError(
            f"{path}: not a request trace; expected the columns TIMESTAMP,ContextTokens,GeneratedTokens (Azure), or "
            "Timestamp,Request tokens,Response tokens (BurstGPT), or JSON lines with timestamp, input_length, output_length "
            "(Mooncake)"
        )
    before = -np.inf
    for number, line in enumerate(rows, first_line):
        if number > MOST_REQUESTS:
            raise ProblemError(f"{path}: more than {MOST_REQUESTS:,} requests; cut it, for instance with head -n")
        if parse is _burst_gpt and line.get("Response tokens") == "0":
            continue
        record = _checked(path, number, line, parse)
        if record[0] < before:
            raise ProblemError(
                f"{path} line {number}: sent {before - record[0]:g} s before the line above; sort the trace by time"
            )
        before = record[0]
        yield record


def _chained(head: str, file: Iterator[str]) -> Iterator[str]:
    yield head
    yield from (line for line in file if line.strip())


def _checked(path: Path, number: int, line: Any, parse: Callable[[Any], Record]) -> Record:
    try:
        record = parse(line)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        shown = line.strip() if isinstance(line, str) else ",".join(str(value) for value in line.values())
        raise ProblemError(f"{path} line {number}: not a request like those above it: {shown[:80]}") from error
    sent_s, isl, osl = record
    if not 0 <= sent_s <= LATEST_S:
        raise ProblemError(f"{path} line {number}: time {sent_s:g} s must be finite and not negative, at most {LATEST_S:g}")
    if not (1 <= isl <= MAX_LENGTH_TOKENS and 1 <= osl <= MAX_LENGTH_TOKENS):
        raise ProblemError(
            f"{path} line {number}: {isl:g} input and {osl:g} output tokens; both must be at least 1 and at most "
            f"{MAX_LENGTH_TOKENS:,}"
        )
    return record


def _mooncake(line: str) -> Record:
    entry = json.loads(line)
    return float(entry["timestamp"]) / 1e3, float(entry["input_length"]), float(entry["output_length"])


def _azure(line: dict[str, str]) -> Record:
    sent = datetime.datetime.fromisoformat(line["TIMESTAMP"].strip())  # of 2023 without a zone, of 2024 with one
    sent = sent.replace(tzinfo=datetime.UTC) if sent.tzinfo is None else sent
    return sent.timestamp(), float(line["ContextTokens"]), float(line["GeneratedTokens"])


def _burst_gpt(line: dict[str, str]) -> Record:
    return float(line["Timestamp"]), float(line["Request tokens"]), float(line["Response tokens"])

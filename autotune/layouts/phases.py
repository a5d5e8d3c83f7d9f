"""The phases that a pool can run: what a step grows with, what it costs and what memory it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cost_models.arrays import Floats, Ints
from cost_models.machine import Machine
from cost_models.memory import Memory, decode_memory, prefill_memory
from cost_models.prefill import prefill_step
from cost_models.rows import Rows
from cost_models.specs.workload import Workload
from cost_models.step import decode_step

STEPS_PER_OCTAVE = 4


@dataclass(frozen=True, slots=True)
class PhaseCost:
    """What selection sees of a step, (rows,) each."""

    latency_s: Floats
    """Decode: time per output token. Prefill: all steps of one prompt when nothing waits."""
    tokens_per_s_per_gpu: Floats


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of inference as layout selection sees it."""

    name: Literal["decode", "prefill"]
    size: str
    """Column of the candidate rows that a step grows with."""
    unit: str
    latency: str
    """What its latency is called; a prefill pool's TTFT is that of one prompt when nothing waits."""
    grid: Ints
    """Sizes tried for every layout."""
    largest: int
    cost: Callable[[Machine, Rows, Workload], PhaseCost]
    memory: Callable[[Machine, Rows, Workload], Memory]

    def sized(self, rows: Rows, size: Ints) -> Rows:
        """The same rows with another step size."""
        return rows.replace(**{self.size: size})

    def size_of(self, rows: Rows) -> Ints:
        sizes: Ints = getattr(rows, self.size)
        return sizes

    def kernel_size(self, rows: Rows, token_limit: Ints) -> Ints:
        """Largest step of each row whose tokens an all-to-all kernel with that limit accepts, at least 1."""
        limit = token_limit // (1 + rows.drafts) * rows.pp if self.name == "decode" else token_limit
        return np.asarray(np.maximum(limit, 1), dtype=np.int64)


def geometric_grid(smallest: int, largest: int, multiple: int) -> Ints:
    """Four sizes per octave, rounded to multiples from twice the multiple on."""
    raw = smallest * 2 ** np.arange(0, np.log2(largest / smallest) + 1e-9, 1 / STEPS_PER_OCTAVE)
    stepped = np.where(raw >= 2 * multiple, np.round(raw / multiple) * multiple, np.round(raw))
    return np.unique(stepped.astype(np.int64))


def _decode_cost(machine: Machine, rows: Rows, workload: Workload) -> PhaseCost:
    step = decode_step(machine, rows, workload.context_tokens, workload.mtp_acceptance)
    return PhaseCost(step.tpot_s, step.tokens_per_s_per_gpu)


def _prefill_cost(machine: Machine, rows: Rows, workload: Workload) -> PhaseCost:
    step = prefill_step(machine, rows, workload)
    return PhaseCost(step.prompt_s, step.tokens_per_s_per_gpu)


DECODE = Phase(
    name="decode",
    size="batch",
    unit="sequences per DP rank",
    latency="TPOT",
    grid=geometric_grid(1, 8192, 8),
    largest=2**14,
    cost=_decode_cost,
    memory=decode_memory,
)
PREFILL = Phase(
    name="prefill",
    size="batched_tokens",
    unit="tokens per DP rank and step",
    latency="TTFT",
    grid=geometric_grid(512, 131_072, 64),
    largest=2**18,
    cost=_prefill_cost,
    memory=prefill_memory,
)
PHASES = {phase.name: phase for phase in (DECODE, PREFILL)}

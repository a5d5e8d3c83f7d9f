"""What a service adds to its steps: prompts and decode in one step, the front end, how prompts interrupt decode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cost_models.all_to_all.registry import ALL_TO_ALL
from cost_models.arrays import Floats, as_floats
from cost_models.dispatch import BACKENDS
from cost_models.expert_kernels import EXPERT_KERNELS, taken_kernel
from cost_models.machine import Machine
from cost_models.operators import Timing
from cost_models.prefill import PrefillCost
from cost_models.rows import Rows

MOE_OPERATORS = frozenset(
    {
        "router", "shared_gate_up", "shared_down", "shared_stream", "dispatch", "experts", "combine", "moe_elementwise",
        "moe_all_reduce", "eplb_moves", "overlap",
    }
)  # fmt: skip
"""Work that attention-DP ranks share, so it follows the mean of their tokens; the rest follows the busiest rank."""
CORE = "attention"
"""The operator that reads the KV cache, in both phases."""


@dataclass(frozen=True, slots=True)
class ServiceCoefficients:
    """Per engine and generation."""

    frontend_s: float
    """What a request spends outside the engine's steps, whatever else goes on: HTTP, process hops, first answer out [s]."""
    prefill_switch_s: float
    """What an engine adds to every step that holds prompts: leaving the decode loop, allocation [s]."""
    mixed: float
    """1 where prompts join decode steps, 0 where they get steps of their own [-]."""
    frontend_prompt_s: float = 0.0
    """Of each prompt, one after the other [s]."""
    frontend_token_s: float = 0.0
    """Tokenising, of each prompt token, one prompt after the other [s]."""
    absorbed_slowdown: float = 1.0
    """FLOPs a second of the kernel with which prompts attend un-absorbed, over those of the one that attends to latents [-]."""
    first_cut_s: float = 0.0
    """Compiling the kernel that attends to earlier pieces of a prompt, in the first step that holds a later piece [s]."""
    frontend_output_s: float = 0.0
    """Detokenising and streaming, of each token of an answer, client included; 0 takes the host model's `output_s` [s]."""


@dataclass(frozen=True, slots=True)
class PromptStep:
    """A step that holds prompts, in parts, (rows,) each [s]."""

    own_s: Floats
    """What follows the tokens of the busiest rank, but for attention: projections, host, launch gaps, head."""
    core_s: Floats
    """Attention of the prompts."""
    shared_s: Floats
    """What follows the mean of the ranks: experts and their communication."""
    gaps_s: Floats
    """Gaps between eagerly launched kernels inside `own_s`."""

    @property
    def whole_s(self) -> Floats:
        """Without sequences that decode in it."""
        return as_floats(self.own_s + self.core_s + self.shared_s)


def prompt_step(cost: PrefillCost) -> PromptStep:
    """The parts of a costed prefill step."""
    shared, core, gaps = (_part(cost, names) for names in (MOE_OPERATORS, {CORE}, {"launch_gaps"}))
    return PromptStep(as_floats(cost.step_s - shared - core), core, shared, gaps)


def joined_s(whole_s: ArrayLike, gaps_s: ArrayLike, decode_core_s: ArrayLike) -> Floats:
    """A step of prompts that sequences decode in [s].

    Their tokens are among those that `whole_s` was priced for, so weights are read once; what they add is attention over
    their own contexts, first of all in the gaps between eager launches.
    """
    return as_floats(as_floats(whole_s) + np.maximum(as_floats(decode_core_s) - as_floats(gaps_s), 0.0))


def interrupted_step_s(step_s: ArrayLike, extra_s: ArrayLike, rate_per_s: ArrayLike, looks_s: ArrayLike) -> Floats:
    """Seconds per decode step of an aggregated engine whose prompts come at random.

    A renewal argument: prompts add `extra_s` to decoding, at least `looks_s` of decode pass before the engine looks again,
    and, if nothing came meanwhile (probability exp(-rate x both)), the mean wait 1 / rate for the next prompt. Of that
    cycle everything but what prompts add decodes.
    """
    step, extra, rate, looks = as_floats(step_s), as_floats(extra_s), as_floats(rate_per_s), as_floats(looks_s)
    decoding = looks + np.exp(-rate * (extra + looks)) / np.maximum(rate, 1e-12)
    return step * (extra + decoding) / decoding


def prefill_kernels(rows: Rows) -> Rows:
    """Rows with the all-to-all that they prefill with: DeepEP's low-latency kernels are for decode, the normal ones step in."""
    instead = [BACKENDS.index(backend.prefills_as or backend.name) for backend in ALL_TO_ALL]
    return rows.replace(backend=np.array(instead)[rows.backend])


def joined_kernels(machine: Machine, rows: Rows) -> Rows:
    """Rows of an aggregated engine, which was told one expert kernel: its prompts run the one that its decode steps take."""
    if not machine.chooses_expert_kernel or machine.model.moe is None:
        return rows
    taken = taken_kernel(machine.hardware.gpu.architecture, machine.dtype("experts"), True) or "auto"
    unsaid = (rows.expert_kernel == EXPERT_KERNELS.index("auto")) & (rows.dp > 1)
    return rows.replace(expert_kernel=np.where(unsaid, EXPERT_KERNELS.index(taken), rows.expert_kernel))


def core_s(operators: Mapping[str, Timing], rows: int) -> Floats:
    """Time of the attention cores among a step's operators."""
    return operators[CORE].time_s if CORE in operators else np.zeros(rows)


def _part(cost: PrefillCost, names: frozenset[str] | set[str]) -> Floats:
    chosen = [timing.time_s for name, timing in cost.operators.items() if name in names]
    return as_floats(np.sum(chosen, axis=0)) if chosen else np.zeros(len(cost.step_s))

"""How much a plan gains or loses when hardware, load or imbalance differ, and what it would take to reach a goal."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from autotune.deployment import Deployment
from autotune.errors import ProblemError
from autotune.predicting import Resolved, predict_decode, predict_prefill, resolve
from autotune.prediction import Prediction, PrefillPrediction
from cost_models.arrays import as_floats
from cost_models.moe_layer import imbalance
from cost_models.specs.base import Spec
from cost_models.specs.hardware import HardwareSpec

STEPS = (-0.4, -0.2, -0.1, 0.1, 0.2, 0.4)
FURTHEST = 1000.0
"""Largest factor looked at for a goal."""
BISECTIONS = 30


class Influence(Spec):
    """One parameter."""

    name: str
    effects: tuple[float, ...]
    """Relative change of throughput at each of STEPS."""
    needed: float | None = None
    """Factor on the parameter that reaches the goal, alone; none without a goal or where none does."""

    @property
    def swing(self) -> float:
        """Change of throughput between -20 % and +20 %, absolute."""
        return abs(self.effects[STEPS.index(0.2)] - self.effects[STEPS.index(-0.2)])


class Sensitivity(Spec):
    """All parameters, most influential first."""

    tokens_per_s: float
    goal_tokens_per_s: float | None
    limit_latency_s: float | None
    steps: tuple[float, ...]
    influences: tuple[Influence, ...]


Scale = Callable[[Resolved, float], Resolved]


def sensitivity(
    deployment: Deployment, goal_tokens_per_s: float | None = None, limit_latency_s: float | None = None
) -> Sensitivity:
    """Vary one thing at a time; a goal is throughput of all instances, latency within the limit, or both.

    Raises AutotuneError where the deployment cannot be priced.
    """
    if deployment.phase == "serve":
        raise ProblemError("sensitivity looks at one pool (phase decode or prefill)")
    resolved = resolve(deployment)
    base = priced(resolved)

    def reached(prediction: Prediction | PrefillPrediction) -> bool:
        fast = limit_latency_s is None or prediction.latency_s <= limit_latency_s
        return fast and (goal_tokens_per_s is None or prediction.tokens_per_s >= goal_tokens_per_s)

    wanted = goal_tokens_per_s is not None or limit_latency_s is not None
    found = []
    for name, scale in parameters(resolved).items():
        rates = [priced(scale(resolved, 1 + step)).tokens_per_s for step in STEPS]
        effects = tuple(float(rate / base.tokens_per_s - 1) for rate in rates)
        needed = _needed(lambda factor, s=scale: reached(priced(s(resolved, factor)))) if wanted else None  # type: ignore[misc]
        found.append(Influence(name=name, effects=effects, needed=needed))
    return Sensitivity(
        tokens_per_s=base.tokens_per_s,
        goal_tokens_per_s=goal_tokens_per_s,
        limit_latency_s=limit_latency_s,
        steps=STEPS,
        influences=tuple(sorted(found, key=lambda influence: -influence.swing)),
    )


def priced(resolved: Resolved) -> Prediction | PrefillPrediction:
    """The pool's prediction; a prefill pool has a token budget and no batch."""
    return predict_decode(resolved) if resolved.pool.batch_per_dp_rank else predict_prefill(resolved)


def parameters(resolved: Resolved) -> dict[str, Scale]:
    """What can be varied for a pool, each by a factor."""
    found: dict[str, Scale] = {
        "HBM bandwidth": _hardware(lambda h, f: _gpu(h, hbm_bytes_per_s=_times(h.gpu.hbm_bytes_per_s, f))),
        "FLOPS": _hardware(lambda h, f: _gpu(h, flops_per_s={k: _times(v, f) for k, v in h.gpu.flops_per_s.items()})),
        "scale-up bandwidth": _hardware(lambda h, f: _part(h, "scale_up", "bytes_per_s", f)),
        "scale-out bandwidth": _hardware(lambda h, f: _part(h, "scale_out", "nic_bits_per_s", f)),
        "host link bandwidth": _hardware(lambda h, f: _part(h, "host_link", "bytes_per_s", f)),
        "context" if resolved.pool.batch_per_dp_rank else "prompt length": _context,
        "batch" if resolved.pool.batch_per_dp_rank else "tokens per step": _size,
    }
    if resolved.machine.model.moe is not None and resolved.pool.layout.gpus > 1:
        found["expert imbalance (excess)"] = _imbalance
    return found


def _hardware(change: Callable[[HardwareSpec, float], HardwareSpec]) -> Scale:
    def scale(resolved: Resolved, factor: float) -> Resolved:
        machine = dataclasses.replace(resolved.machine, hardware=change(resolved.machine.hardware, factor))
        return dataclasses.replace(resolved, machine=machine)

    return scale


def _times(fact: object, factor: float) -> object:
    return fact.model_copy(update={"value": fact.value * factor})  # type: ignore[attr-defined]


def _gpu(hardware: HardwareSpec, **changes: object) -> HardwareSpec:
    return hardware.model_copy(update={"gpu": hardware.gpu.model_copy(update=changes)})


def _part(hardware: HardwareSpec, part: str, name: str, factor: float) -> HardwareSpec:
    spec = getattr(hardware, part)
    return hardware.model_copy(update={part: spec.model_copy(update={name: _times(getattr(spec, name), factor)})})


def _context(resolved: Resolved, factor: float) -> Resolved:
    workload = resolved.workload
    isl, mean = max(round(workload.isl_tokens * factor), 1), max(workload.context_tokens * factor, 1.0)
    changed = workload.model_copy(update={"isl_tokens": isl, "mean_context_tokens": mean})
    return dataclasses.replace(resolved, workload=changed)


def _size(resolved: Resolved, factor: float) -> Resolved:
    column = "batch_per_dp_rank" if resolved.pool.batch_per_dp_rank else "max_batched_tokens"
    row = "batch" if resolved.pool.batch_per_dp_rank else "batched_tokens"
    size = max(round(getattr(resolved.pool, column) * factor), 1)
    pool = resolved.pool.model_copy(update={column: size})
    return dataclasses.replace(resolved, pool=pool, rows=resolved.rows.replace(**{row: size}))


def _imbalance(resolved: Resolved, factor: float) -> Resolved:
    rows = resolved.rows
    tokens = rows.batch * (1.0 + rows.drafts) / rows.pp if resolved.pool.batch_per_dp_rank else as_floats(rows.batched_tokens)
    ratio = imbalance(resolved.machine, rows, as_floats(tokens))
    return dataclasses.replace(resolved, rows=rows.replace(imbalance=1 + (ratio - 1) * factor))


def _needed(reached: Callable[[float], bool]) -> float | None:
    """Smallest change, as a factor, that reaches the goal: more of it, else less."""
    if reached(1.0):
        return 1.0
    for end in (FURTHEST, 1 / FURTHEST):
        if reached(end):
            low, high = 0.0, float(np.log(end))
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                low, high = (low, middle) if reached(float(np.exp(middle))) else (middle, high)
            return float(np.exp(high))
    return None

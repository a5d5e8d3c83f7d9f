"""How much a plan gains or loses when hardware, load, kernels or imbalance differ, and what it would take to reach a goal."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from autotune.auditing.capacity import largest
from autotune.auditing.edits import Edit, pool_edits
from autotune.documents.deployment import Deployment
from autotune.documents.prediction import Prediction, PrefillPrediction
from autotune.errors import ProblemError
from autotune.predicting.step import Resolved, predict, predict_step, resolve
from cost_models.arrays import as_floats
from cost_models.calibration import Calibration
from cost_models.catalog import load_hardware
from cost_models.errors import AutotuneError
from cost_models.moe_layer import imbalance
from cost_models.specs.base import Spec
from cost_models.specs.hardware import HardwareSpec

STEPS = (-0.4, -0.2, -0.1, 0.1, 0.2, 0.4)
FURTHEST = 1000.0
"""Largest factor looked at for a goal."""
BISECTIONS = 30
LINKS = ("dispatch", "all_reduce")
"""Calibration families of communication; their fixed times are the network's latency."""
BEST_EFFICIENCY = 1.0


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


class Way(Spec):
    """Another precision, or more GPUs, held against the goal."""

    change: str
    tokens_per_s: float
    latency_s: float
    gpus: int
    fits: bool
    reached: bool
    """The goal, and the plan fits."""


class Sensitivity(Spec):
    """All parameters, most influential first."""

    tokens_per_s: float
    goal_tokens_per_s: float | None
    limit_latency_s: float | None
    steps: tuple[float, ...]
    influences: tuple[Influence, ...]
    ways: tuple[Way, ...]
    """What precisions and how many GPUs do about the goal; empty without one."""


Scale = Callable[[Resolved, float], Resolved]
AnyPrediction = Prediction | PrefillPrediction
Reached = Callable[[AnyPrediction], bool]


def sensitivity(
    deployment: Deployment, goal_tokens_per_s: float | None = None, limit_latency_s: float | None = None
) -> Sensitivity:
    """Vary one thing at a time; a goal is throughput of all instances, latency within the limit, or both.

    Raises AutotuneError where the deployment cannot be priced.
    """
    if deployment.phase == "serve":
        raise ProblemError("sensitivity looks at one pool (phase decode or prefill)")
    resolved = resolve(deployment)
    base = predict_step(resolved)

    def fast(prediction: AnyPrediction) -> bool:
        return limit_latency_s is None or prediction.latency_s <= limit_latency_s

    def reached(prediction: AnyPrediction) -> bool:
        return fast(prediction) and (goal_tokens_per_s is None or prediction.tokens_per_s >= goal_tokens_per_s)

    wanted = goal_tokens_per_s is not None or limit_latency_s is not None
    found = []
    for name, scale in parameters(resolved).items():
        rates = [predict_step(scale(resolved, 1 + step)).tokens_per_s for step in STEPS]
        effects = tuple(float(rate / base.tokens_per_s - 1) for rate in rates)
        needed = _needed(lambda factor, s=scale: reached(predict_step(s(resolved, factor)))) if wanted else None  # type: ignore[misc]
        found.append(Influence(name=name, effects=effects, needed=needed))
    return Sensitivity(
        tokens_per_s=base.tokens_per_s,
        goal_tokens_per_s=goal_tokens_per_s,
        limit_latency_s=limit_latency_s,
        steps=STEPS,
        influences=tuple(sorted(found, key=lambda influence: -influence.swing)),
        ways=tuple(_ways(deployment, goal_tokens_per_s, reached, fast)) if wanted else (),
    )


def _ways(deployment: Deployment, goal_tokens_per_s: float | None, reached: Reached, fast: Reached) -> Iterator[Way]:
    """Precisions with published weights, then the instances that the goal takes."""
    for edit in pool_edits(deployment, set()):
        if edit.kind in ("precision", "kv") and (prediction := _edited(deployment, edit)):
            yield _way(edit.label, prediction, reached)
    size = "batch_per_dp_rank" if deployment.phase == "decode" else "max_batched_tokens"
    now = getattr(deployment.pool, size)
    most = largest(now, lambda value: fast(predict(deployment.with_pool(deployment.phase, **{size: value}))))
    if most is None:
        return
    one = predict(deployment.with_pool(deployment.phase, instances=1, **{size: most}))
    sequences = now * deployment.pool.instances  # where only latency is asked, as many are served as planned
    instances = math.ceil(goal_tokens_per_s / one.tokens_per_s if goal_tokens_per_s else sequences / most)
    smaller = f", {size} {now:,} -> {most:,}" if most != now else ""
    gpus, there = one.gpus * instances, load_hardware(deployment.hardware).max_gpus
    beyond = f" (the cluster has {there:,} GPUs)" if there and gpus > there else ""
    change = f"instances {deployment.pool.instances} -> {instances:,}{smaller}{beyond}"
    grown = one.model_copy(update={"gpus": gpus, "tokens_per_s": one.tokens_per_s * instances})
    yield _way(change, grown, reached)


def _way(change: str, prediction: AnyPrediction, reached: Reached) -> Way:
    return Way(
        change=change,
        tokens_per_s=prediction.tokens_per_s,
        latency_s=prediction.latency_s,
        gpus=prediction.gpus,
        fits=prediction.fits,
        reached=prediction.fits and reached(prediction),
    )


def _edited(deployment: Deployment, edit: Edit) -> AnyPrediction | None:
    """None where the edit cannot be priced: no coefficients of that precision."""
    try:
        return predict(edit.apply(deployment))
    except AutotuneError:
        return None


def parameters(resolved: Resolved) -> dict[str, Scale]:
    """What can be varied for a pool, each by a factor."""
    found: dict[str, Scale] = {
        "HBM bandwidth": _hardware(lambda h, f: _gpu(h, hbm_bytes_per_s=_times(h.gpu.hbm_bytes_per_s, f))),
        "FLOPS": _hardware(lambda h, f: _gpu(h, flops_per_s={k: _times(v, f) for k, v in h.gpu.flops_per_s.items()})),
        "scale-up bandwidth": _hardware(lambda h, f: _part(h, "scale_up", "bytes_per_s", f)),
        "scale-out bandwidth": _hardware(lambda h, f: _part(h, "scale_out", "nic_bits_per_s", f)),
        "host link bandwidth": _hardware(lambda h, f: _part(h, "host_link", "bytes_per_s", f)),
        "network latency": _calibration(_latency),
        "kernel efficiency": _calibration(_efficiency),
        "prompt length" if resolved.phase == "prefill" else "context": _context,
        "tokens per step" if resolved.phase == "prefill" else "batch": _size,
    }
    if resolved.machine.model.moe is not None and resolved.pool.layout.gpus > 1:
        found["expert imbalance (excess)"] = _imbalance
    return found


def _hardware(change: Callable[[HardwareSpec, float], HardwareSpec]) -> Scale:
    def scale(resolved: Resolved, factor: float) -> Resolved:
        machine = dataclasses.replace(resolved.machine, hardware=change(resolved.machine.hardware, factor))
        return dataclasses.replace(resolved, machine=machine)

    return scale


def _calibration(change: Callable[[str, str, float, float], float]) -> Scale:
    """change : (family, coefficient, value, factor) -> value."""

    def scale(resolved: Resolved, factor: float) -> Resolved:
        families = {
            family: {
                variant: entry.model_copy(
                    update={"coefficients": {k: change(family, k, v, factor) for k, v in entry.coefficients.items()}}
                )
                for variant, entry in variants.items()
            }
            for family, variants in resolved.machine.calibration.families.items()
        }
        calibration: Calibration = resolved.machine.calibration.model_copy(update={"families": families})
        return dataclasses.replace(resolved, machine=dataclasses.replace(resolved.machine, calibration=calibration))

    return scale


def _latency(family: str, name: str, value: float, factor: float) -> float:
    """Fixed times of collectives and of dispatch and combine."""
    return value * factor if family in LINKS and "start" in name else value


def _efficiency(family: str, name: str, value: float, factor: float) -> float:
    """Shares of peak FLOPS and of memory bandwidth that kernels reach, at most all of it."""
    scales = family not in LINKS and name in ("compute_efficiency", "memory_efficiency")
    return max(value, min(value * factor, BEST_EFFICIENCY)) if scales and factor > 1 else value * factor if scales else value


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
    prefills = resolved.phase == "prefill"
    column, row = ("max_batched_tokens", "batched_tokens") if prefills else ("batch_per_dp_rank", "batch")
    size = max(round(getattr(resolved.pool, column) * factor), 1)
    pool = resolved.pool.model_copy(update={column: size})
    return dataclasses.replace(resolved, pool=pool, rows=resolved.rows.replace(**{row: size}))


def _imbalance(resolved: Resolved, factor: float) -> Resolved:
    rows = resolved.rows
    tokens = as_floats(rows.batched_tokens) if resolved.phase == "prefill" else rows.batch * (1.0 + rows.drafts) / rows.pp
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

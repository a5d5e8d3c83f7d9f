"""Measured steps against their predictions -> calibration entries scaled to them, family by family.

Traced steps say how long each family took, not how that depends on shapes: the form stays, its times are scaled.
Times and passes are multiplied by the ratio, efficiencies and bandwidths divided, so every shape's time scales alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.calibrating.benchmarks import HOST
from autotune.calibrating.traces import Composition, FamilyTimes, KernelRules, KernelTimes, family_times
from autotune.documents.deployment import Deployment
from autotune.documents.prediction import StepPrediction
from autotune.errors import ProblemError
from cost_models.calibration import Calibration, Entry
from cost_models.catalog import validated

FAMILY_OF_ENTRY = {
    "dense_gemm": "dense_gemm",
    "mla_absorb": "dense_gemm",
    "mla_decode": "attention",
    "gqa_decode": "attention",
    "mla_prefill": "attention",
    "gqa_prefill": "attention",
    "grouped_gemm": "experts",
    "all_reduce": "all_reduce",
    "elementwise": "elementwise",
}
"""Family of a calibration entry -> family of the kernel rules; dispatch and combine go by the variant's name."""
MULTIPLIED = ("_s", "_passes", "_bytes", "mid_factor")
DIVIDED = ("_efficiency", "_bytes_per_s")
STEPS_SHOWN = 6
SOURCES_KEPT = 300
LONGEST_SOURCE = 600
"""Characters."""
SMALLEST_SHARE = 0.002
"""Families below this share of the step say nothing: rounding and rules decide them."""


SMALL = "elementwise"
"""Family of what no operator covers: under CUDA graphs those kernels, with the gaps around them, are charged by number."""
GAPS = "launch_gaps"
MOST_IDLE = 0.15
"""Of a step, in gaps between its kernels: above it launches were waited for, which is no property of a kernel."""


@dataclass(frozen=True, slots=True)
class TracedStep:
    """What steps of one kind took, and what they are predicted to."""

    label: str
    measured: FamilyTimes
    prediction: StepPrediction


@dataclass(frozen=True, slots=True)
class Rescaled:
    """One family against its prediction, over the steps that have it."""

    family: str
    measured_s: tuple[float, ...]
    """By step."""
    predicted_s: tuple[float, ...]
    ratio: float
    """By which its time is scaled: the geometric mean over steps, each counted once."""
    entries: tuple[tuple[str, str, Entry], ...]
    """(family, variant, entry) of the calibration, scaled; empty where the step prices nothing from it."""


def traced_steps(ran: Deployment, times: KernelTimes, rules: KernelRules, steps: int | None) -> list[TracedStep]:
    """The steps of a trace that `ran` explains, each beside its prediction.

    A trace whose engine says what its steps held gives one for every number of sequences that decoded, and for whole prompts
    of the workload's length; any other gives one step. Raises ProblemError where no step is explained.
    """
    from autotune.predicting.step import predict

    if not times.by_step:
        return [TracedStep(ran.phase, family_times(times, rules, steps), predict(ran))]
    found = [
        TracedStep(label, family_times(kernels, rules, None), predict(alike))
        for held, kernels in sorted(times.by_step.items())
        for label, alike in _explained(ran, held)
    ]
    if not found:
        held = "; ".join(_described(each) for each in sorted(times.by_step)[:STEPS_SHOWN])
        raise ProblemError(
            f"no step of the trace is of this deployment: it holds {held}. Decode steps count with {_tokens(ran)} tokens per "
            f"sequence, prompts with {ran.workload.isl_tokens:,} tokens each (workload.isl_tokens)"
        )
    return found


def _tokens(ran: Deployment) -> int:
    return 1 + ran.pool.draft_tokens


def _described(held: Composition) -> str:
    return f"{held.prompts} prompts ({held.prompt_tokens:,} tokens) and {held.sequences} sequences ({held.generated_tokens:,})"


def _explained(ran: Deployment, held: Composition) -> list[tuple[str, Deployment]]:
    """The deployment whose step held this; empty where none of `ran`'s does: mixed steps, other prompts, a phase it has not."""
    phases = {"decode", "prefill"} if ran.phase == "serve" else {ran.phase}
    if not held.prompts and "decode" in phases and held.generated_tokens == held.sequences * _tokens(ran):
        pool = ran.pool.model_copy(update={"batch_per_dp_rank": held.sequences})
        return [(f"{held.sequences} sequences", ran.alone("decode", pool))]
    if not held.sequences and "prefill" in phases and held.prompt_tokens == held.prompts * ran.workload.isl_tokens:
        pool = ran.pool.model_copy(update={"max_batched_tokens": held.prompt_tokens})
        return [(f"{held.prompts} prompts", ran.alone("prefill", pool))]
    return []


def rescale(steps: Sequence[TracedStep], calibration: Calibration, context: str) -> list[Rescaled]:
    """Scale every family that both the traced steps and their predictions have.

    context : what was traced, for the source line. Raises ProblemError when a family ran faster than its roofline:
    then the deployment is not the one that was traced, or the rules mix families up.
    """
    found: dict[str, list[tuple[float, float, int]]] = {}
    used: dict[str, set[tuple[str, str]]] = {}
    for step in steps:
        for kind, (measured_s, predicted_s) in _families(step, calibration, used).items():
            found.setdefault(kind, []).append((measured_s, predicted_s, step.measured.steps))
    results = []
    source = "; ".join(dict.fromkeys(step.measured.source for step in steps))[:SOURCES_KEPT]
    for kind, pairs in sorted(found.items()):
        logs = sum(math.log(measured / predicted) * count for measured, predicted, count in pairs)
        ratio = math.exp(logs / sum(count for _, _, count in pairs))
        said = ", ".join(f"{measured * 1e3:.3f}" for measured, _, _ in pairs)
        note = f"{source}: {context}: {said} ms per step, {ratio:.3f} of predicted"
        scaled = _small_entry if kind == SMALL and used[kind] == {HOST} else scaled_entry
        entries = tuple((*key, scaled(calibration.entry(*key), ratio, note)) for key in sorted(used.get(kind, ())))
        results.append(Rescaled(kind, tuple(m for m, _, _ in pairs), tuple(p for _, p, _ in pairs), ratio, entries))
    if not any(item.entries for item in results):
        raise ProblemError("no family of the trace appears in the deployment's step: wrong deployment or rules")
    return results


def _families(
    step: TracedStep, calibration: Calibration, used: dict[str, set[tuple[str, str]]]
) -> dict[str, tuple[float, float]]:
    """(measured, predicted) seconds of the families that say something; adds to `used` the entries that price each."""
    predicted: dict[str, float] = {}
    bounds: dict[str, float] = {}
    for line in step.prediction.operators:
        family, _, variant = line.family.partition(".")
        kind = variant.rsplit(".", 1)[-1] if family == "dispatch" else FAMILY_OF_ENTRY.get(family)
        if kind is None:
            continue
        predicted[kind] = predicted.get(kind, 0.0) + line.time_s
        bounds[kind] = bounds.get(kind, 0.0) + line.bound_s
        if calibration.has(family, variant):
            used.setdefault(kind, set()).add((family, variant))
    measured = {k: s for k, s in step.measured.per_step_s.items() if predicted.get(k, 0) > 0}
    for kind, seconds in measured.items():
        if seconds < bounds[kind] * 0.99:
            raise ProblemError(
                f"{kind} took {seconds * 1e3:.3f} ms per step, below its roofline of {bounds[kind] * 1e3:.3f} ms: "
                "the deployment is not the one traced, --steps is wrong, or the rules put its kernels elsewhere"
            )
    pairs = {kind: (seconds, predicted[kind]) for kind, seconds in measured.items()}
    if SMALL in pairs and any(line.name == GAPS and line.time_s > 0 for line in step.prediction.operators):
        pairs[SMALL] = _small_kernels(step, predicted[SMALL])
        used[SMALL] = {HOST}
    least_s = SMALLEST_SHARE * step.prediction.step_s
    return {kind: pair for kind, pair in pairs.items() if pair[0] >= least_s and pair[1] > 0}


def _small_kernels(step: TracedStep, traffic_s: float) -> tuple[float, float]:
    """(measured, predicted) seconds of small kernels beyond traffic, with the gaps inside the step; zeros where the GPU waited.

    Only the gaps between a step's own kernels belong to it, and only under CUDA graphs (docs/models/host.md).
    """
    charged_s = sum(line.time_s for line in step.prediction.operators if line.name == GAPS)
    idle_s = (step.measured.idle_s or 0.0) if step.measured.apart else 0.0
    if idle_s > MOST_IDLE * (sum(step.measured.per_step_s.values()) + idle_s):
        return 0.0, 0.0
    return step.measured.per_step_s[SMALL] - traffic_s + idle_s, charged_s


def _small_entry(entry: Entry, ratio: float, source: str) -> Entry:
    """The host's entry with another time per small kernel."""
    coefficients = dict(entry.coefficients)
    coefficients["small_kernel_s"] = float(f"{coefficients['small_kernel_s'] * ratio:.5g}")
    return _measured_entry(entry, coefficients, f"{source}; rest: ", f"small kernels {ratio:.3g} times those predicted")


def scaled_entry(entry: Entry, ratio: float, source: str) -> Entry:
    """The entry with every time scaled by the ratio."""
    coefficients = scaled_coefficients(entry.coefficients, ratio)
    return _measured_entry(entry, coefficients, f"{source}; form of: ", f"times {ratio:.3g} times those predicted")


def _measured_entry(entry: Entry, coefficients: Mapping[str, float], before: str, where: str) -> Entry:
    """An entry with coefficients that a trace gave; before : what its source line says ahead of the old one."""
    source = f"{before}{entry.source}"[:LONGEST_SOURCE]
    return validated(Entry, {"coefficients": coefficients, "status": "measured", "source": source, "box": entry.box}, where)


def scaled_coefficients(coefficients: Mapping[str, float], ratio: float) -> dict[str, float]:
    """Coefficients whose cost model gives `ratio` times the time for every shape."""
    scaled = {}
    traffic_only = "hidden_passes" in coefficients  # element-wise: passes over efficiency, so one of them is scaled
    for name, value in coefficients.items():
        if name.endswith(DIVIDED) and traffic_only:
            scaled[name] = value
        elif name.endswith(DIVIDED):
            scaled[name] = value / ratio
        elif name.endswith(MULTIPLIED):
            scaled[name] = value * ratio
        else:
            scaled[name] = value
    return {name: float(f"{value:.5g}") for name, value in scaled.items()}

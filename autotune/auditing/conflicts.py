"""What keeps an engine from starting a deployment: its rules, and knobs that its version does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from autotune.documents.deployment import Deployment, Load, Pool, PoolRole
from autotune.errors import ExportError
from autotune.predicting.legality import deployment_findings, pool_findings, subject_of
from search_spaces.loader import load_engine, resolve_version
from search_spaces.rules import Finding
from search_spaces.rules.rule import STOPS, Effect
from search_spaces.schema import EngineSpec

UNPRICEABLE = (
    "heads_divide",
    "redundant_experts_divide",
    "widths_divide",
    "context_ranks_divide",
    "context_ranks_of_kv_heads",
    "context_ranks_of_windows",
    "context_ranks_of_other_layers",
)
"""Rules without which a layout has no price either."""
HOLDING: tuple[Effect, ...] = (*STOPS, "unpriced")
"""Effects that keep a plan from working."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What engine rules say of a deployment."""

    conflicts: tuple[str, ...]
    """Why it would not start, would fail at work, or runs by kernels that nothing here prices."""
    doubts: tuple[str, ...]
    """Settings without effect, and what a library of the engine decides."""
    untimed: tuple[str, ...]
    """What is priced by timings of something else."""


@dataclass(frozen=True, slots=True)
class Written:
    """A command line as it was written."""

    options: Mapping[str, str | None]
    environment: Mapping[str, str]


def conflicts(
    deployment: Deployment, *, aggregated: bool = False, written: Mapping[PoolRole, Written] | None = None
) -> tuple[str, ...]:
    """What the deployment's engine version does not take, one line each."""
    return audit(deployment, aggregated=aggregated, written=written).conflicts


def audit(deployment: Deployment, *, aggregated: bool = False, written: Mapping[PoolRole, Written] | None = None) -> Audit:
    """Hold a deployment against the rules and knobs of its engine version.

    aggregated : a decode pool is an engine that prefills too, not one side of a pair; written : by pool, the command it
    was read from.
    """
    engine = load_engine(deployment.engine.name)
    version = resolve_version(engine, deployment.engine.version)
    stopping: list[str] = []
    doubts: list[str] = []
    untimed: list[str] = []
    for phase, pool in deployment.pools.items():
        role = "serve" if aggregated and phase == "decode" else phase
        prefix = "" if len(deployment.pools) == 1 else f"{phase}: "
        own = written.get(phase) if written else None
        options, environment = (own.options, own.environment) if own else (None, None)
        found = pool_findings(subject_of(deployment, phase, role, options, environment))
        stopping += [prefix + line for line in (*_lines(found, *HOLDING), *_knobs(pool, engine, version))]
        doubts += [prefix + line for line in _lines(found, "unsure", "ignored")]
        untimed += [prefix + line for line in _lines(found, "untimed")]
    stopping += _lines(deployment_findings(deployment), *HOLDING)
    return Audit(tuple(stopping), tuple(doubts), tuple(untimed))


def _lines(found: tuple[Finding, ...], *effects: Effect) -> list[str]:
    return [finding.line() for finding in found if finding.effect in effects]


def indivisible(deployment: Deployment) -> bool:
    """Whether the first pool's ranks do not divide its model: such a layout cannot be priced either."""
    found = pool_findings(subject_of(deployment, next(iter(deployment.pools))))
    return any(finding.rule in UNPRICEABLE for finding in found)


def unlaunchable(deployment: Deployment, *, aggregated: bool = False) -> tuple[str, ...]:
    """Why no launch script can be written for a deployment; empty where one can, or where its engine has no exporter.

    aggregated : a decode pool is an engine that prefills too, not one side of a pair.
    """
    from autotune.exporters import export, has_exporter

    if not has_exporter(deployment.engine.name, deployment.engine.version):
        return ()
    if aggregated and deployment.phase == "decode":
        pools = {"serve": deployment.pool}
        deployment = deployment.model_copy(update={"phase": "serve", "pools": pools, "load": Load(concurrency=1)})
    try:
        export(deployment)
    except ExportError as error:
        return (str(error),)
    return ()


def _knobs(pool: Pool, engine: EngineSpec, version: str) -> Iterator[str]:
    """Flags against what the version has."""
    for name, value in pool.flags.items():
        knob = engine.knob(name)
        if knob is None:
            yield f"{engine.title} has no knob {name} (autotune engine show {engine.name})"
        elif knob.spelling(version) is None and knob.spellings and value != knob.default(version):
            yield f"{engine.title} {version} does not have {name} any more, or not yet"
        elif name == "dispatch_buffer_tokens" and (tokens := pool.batch_per_dp_rank * (1 + pool.draft_tokens)) > float(value):
            spelled = next(iter(knob.spellings)).name
            yield f"DeepEP's buffers hold {value:,} tokens of a rank ({spelled}), a decode step has {tokens:,}"
        elif knob.choices and value not in [choice.value for choice in knob.choices_in(version)]:
            yield f"{name} {value} is none of {', '.join(choice.value for choice in knob.choices_in(version))}"

"""What is tried: layouts, levels of load and engine knobs around a deployment, and how far apart two candidates are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from autotune.documents.deployment import Deployment, Load, Pool
from autotune.documents.knobs import pool_settings
from autotune.errors import ProblemError
from autotune.predicting.legality import pool_findings, subject_of
from autotune.predicting.step import resolve
from cost_models.arrays import Floats, as_floats
from cost_models.errors import AutotuneError
from search_spaces.loader import load_engine, resolve_version
from search_spaces.schema import EngineSpec, Value

ENGINE_DEFAULT = "default"
"""A knob that is left to the engine."""
LEVELS = (1, 2, 3, *(part << octave for octave in range(11) for part in (4, 5, 6, 7)))
"""Requests in flight that are tried: four to an octave, since limits lie between."""
RATE_STEPS = (0.25, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 2.0, 2.8, 4.0)
"""Of the planned requests per second."""
REACH = (1 / 8, 4.0)
"""Of the planned load: levels between these shares of it are tried."""
KNOBS: dict[str, tuple[int, ...]] = {"max_num_batched_tokens": (2048, 4096, 8192, 16384), "max_num_seqs": (256,)}
"""Knobs that are varied unless the caller says others, and their values beside the plan's and the engine's own."""
SEQUENCES = "max_num_seqs"
WITH_LAYOUT = ("kv_cache_dtype", "draft_tokens")
"""Flags of a plan that change what is computed: every layout keeps them, the engine's defaults too."""
OF_LAYOUT = ("all2all_backend", "enable_eplb", "redundant_experts", "eplb_window_steps", "eplb_interval_steps", "eplb_async",
             "enable_dbo", "enable_sbo", "dbo_decode_token_threshold", "dbo_prefill_token_threshold", "moe_dp_chunk_tokens",
             "enable_moe_dp_chunk", "context_ranks")  # fmt: skip
"""Flags of a plan that go with its own layout alone."""
FIELDS = {
    "max_num_seqs": "batch_per_dp_rank",
    "max_num_batched_tokens": "max_batched_tokens",
    "gpu_memory_fraction": "memory_fraction",
}
"""Knobs, and the pool's fields that say them where no flag does."""
OCTAVES = {"max_num_batched_tokens": 1.5, "max_num_seqs": 3.0}
"""Doublings of a knob over which what one value taught still holds."""
LEVEL_OCTAVES = 2.0
LAYOUT_OCTAVES = 1.0
UNVARIED = 3.0
"""The same of a knob that only the engine's defaults go without."""


Engine = tuple[str, tuple[tuple[str, Value], ...]]
"""Layout and settings that a server is started with."""


@dataclass(frozen=True, slots=True)
class TuneCandidate:
    """One configuration under one load."""

    layout: str
    level: float
    settings: tuple[tuple[str, Value], ...] = ()

    @property
    def engine(self) -> Engine:
        """What a server is started with: candidates that share it need no restart."""
        return self.layout, self.settings

    @property
    def knobs(self) -> dict[str, Value]:
        """Settings that are not left to the engine."""
        return {name: value for name, value in self.settings if value != ENGINE_DEFAULT}

    def params(self) -> dict[str, Any]:
        """As an Optuna trial has it."""
        return {"layout": self.layout, "level": self.level, **dict(self.settings)}

    def label(self) -> str:
        """For people."""
        knobs = ", ".join(f"{name} {value}" for name, value in self.knobs.items())
        return f"{self.layout}, level {self.level:g}" + (f", {knobs}" if knobs else "")


@dataclass(frozen=True)
class TuneSpace:
    """All candidates around a deployment of one aggregated pool."""

    deployment: Deployment
    layouts: dict[str, Pool]
    """Label -> the pool with that layout, of one instance."""
    levels: tuple[float, ...]
    knobs: dict[str, tuple[Value, ...]]
    """Knob or option -> values, the first of them `default`."""
    fixed: dict[str, Value]
    """Knobs that the plan sets and that are not varied; the engine's defaults go without them."""
    planned: Mapping[str, Value] = field(default_factory=dict)
    """What the plan sets of the varied knobs."""
    rounds: int = 4
    """Requests of a run, over the level (closed loop), or seconds / 15 at a rate."""
    fewest: int = 24
    """Requests of a run at least."""
    defaults: Mapping[str, Value] = field(default_factory=dict)
    """What the engine takes for knobs that are left to it, as far as that is known."""

    @property
    def gpus(self) -> int:
        """Of all instances."""
        pool = self.deployment.pool
        return pool.layout.gpus * pool.instances

    @property
    def closed(self) -> bool:
        """Whether levels are requests in flight; else requests per second."""
        return bool(self.deployment.load and self.deployment.load.concurrency)

    @property
    def planned_level(self) -> float:
        """Of the deployment's own load."""
        load = self.deployment.load
        assert load is not None
        return float(load.concurrency or load.rate_per_s or 1.0)

    def candidate(self, layout: str, level: float, **settings: Value) -> TuneCandidate:
        """With the plan's own knobs, and every other that is not named left to the engine."""
        said = {**self.fixed, **settings}
        return TuneCandidate(layout, level, tuple((name, said.get(name, ENGINE_DEFAULT)) for name in self.names))

    @property
    def names(self) -> tuple[str, ...]:
        """All knobs, the varied ones first."""
        return (*self.knobs, *self.fixed)

    @property
    def own_layout(self) -> str:
        """Of the deployment."""
        return next(iter(self.layouts))

    def bare(self, level: float) -> TuneCandidate:
        """The engine's own defaults on the deployment's layout."""
        return TuneCandidate(self.own_layout, level, tuple((name, ENGINE_DEFAULT) for name in self.names))

    def choices(self) -> dict[str, tuple[Any, ...]]:
        """Every parameter of a trial and its values."""
        fixed = {name: (ENGINE_DEFAULT, value) for name, value in self.fixed.items()}
        return {"layout": tuple(self.layouts), "level": self.levels, **self.knobs, **fixed}

    def of_params(self, params: Mapping[str, Any]) -> TuneCandidate:
        """Back from a trial."""
        return TuneCandidate(params["layout"], params["level"], tuple((name, params[name]) for name in self.names))

    def settings(self) -> Iterator[tuple[tuple[str, Value], ...]]:
        """Every combination of varied knobs, with the plan's others."""
        planned = ((self.planned[name],) if name in self.planned else () for name in self.knobs)
        ordered = [tuple(dict.fromkeys([*own, *values])) for own, values in zip(planned, self.knobs.values(), strict=True)]
        for values in itertools.product(*ordered):
            yield (*zip(self.knobs, values, strict=True), *self.fixed.items())

    def everything(self) -> tuple[TuneCandidate, ...]:
        """Every candidate that differs from the others in what runs, and the engine's defaults under every load."""
        product = itertools.product(self.layouts, self.levels, self.settings())
        found: dict[tuple[Any, ...], TuneCandidate] = {}
        for layout, level, settings in product:
            candidate = TuneCandidate(layout, level, settings)
            found.setdefault(self._what_counts(candidate), candidate)
        return tuple(dict.fromkeys([*found.values(), *(self.bare(level) for level in self.levels)]))

    def _what_counts(self, candidate: TuneCandidate) -> tuple[Any, ...]:
        """A candidate without limits on sequences that its load does not reach; of those alike the plan's comes first."""
        flying = self.load(candidate).concurrency
        limit = {**self.defaults, **candidate.knobs}.get(SEQUENCES)
        free = flying is not None and isinstance(limit, int) and limit * self.layouts[candidate.layout].dp >= flying
        return (
            candidate.layout,
            candidate.level,
            tuple(pair for pair in candidate.settings if not (free and pair[0] == SEQUENCES)),
        )

    def load(self, candidate: TuneCandidate) -> Load:
        """What one instance is sent: its share of the level."""
        share = self.layouts[candidate.layout].layout.gpus / self.gpus
        shortest = self.deployment.load.shortest if self.deployment.load else 1.0
        if not self.closed:
            rate = candidate.level * share
            return Load(rate_per_s=rate, requests=max(round(rate * 15 * self.rounds), self.fewest), shortest=shortest)
        flying = max(round(candidate.level * share), 1)
        return Load(concurrency=flying, requests=max(flying * self.rounds, self.fewest), shortest=shortest)

    def one_instance(self, candidate: TuneCandidate) -> Deployment:
        """What one instance runs, and its load; what is left to the engine is priced at what it would take."""
        pool, knobs = self.layouts[candidate.layout], candidate.knobs
        flags = {name: value for name, value in knobs.items() if not name.startswith("--")}
        fields = pool.model_dump(exclude={"flags"})
        for path, value in pool_settings({**self.defaults, **pool.flags, **flags}).items():
            fields[path] = {**fields[path], **value} if isinstance(value, dict) and fields.get(path) else value
        if "gpu_memory_fraction" in (priced := {**self.defaults, **flags}):
            fields["memory_fraction"] = priced["gpu_memory_fraction"]
        built = Pool.model_validate({**fields, "flags": {**pool.flags, **flags}, "instances": 1})
        return self.deployment.model_copy(update={"pools": {"serve": built}, "load": self.load(candidate)})

    def options(self, candidate: TuneCandidate) -> list[str]:
        """Engine options that are varied and that are no knobs, as words of a command."""
        found: list[str] = []
        for name, value in candidate.knobs.items():
            if name.startswith("--"):
                found += [name] if value is True else [f"--no-{name[2:]}"] if value is False else [name, str(value)]
        return found

    def features(self, candidate: TuneCandidate) -> Floats:
        """A point in a space where distance 1 halves what a measurement says of another candidate (roughly), (features,)."""
        pool = self.layouts[candidate.layout]
        knobs = {**self.defaults, **candidate.knobs}
        found = [
            math.log2(pool.tp) / LAYOUT_OCTAVES,
            math.log2(pool.dp) / LAYOUT_OCTAVES,
            float(pool.ep > 1) / LAYOUT_OCTAVES,
            math.log2(pool.pp) / LAYOUT_OCTAVES,
            math.log2(pool.dcp) / LAYOUT_OCTAVES,
            math.log2(candidate.level) / LEVEL_OCTAVES,
        ]
        for name, values in self.knobs.items():
            if name in OCTAVES and name in knobs:
                found.append(math.log2(float(knobs[name])) / OCTAVES[name])
            else:
                found += [float(dict(candidate.settings)[name] == value) for value in values[1:]]
        found += [float(dict(candidate.settings)[name] == value) / UNVARIED for name, value in self.fixed.items()]
        return as_floats(found)

    def demand(self, candidate: TuneCandidate) -> Floats:
        """What a candidate asks of the engine, (4,): sequences at once (or requests per second), tokens of a step, share of the
        device, requests let in."""
        knobs = {**self.defaults, **candidate.knobs}
        load = self.load(candidate)
        seqs = float(knobs.get("max_num_seqs", math.inf))
        fraction = float(knobs.get("gpu_memory_fraction", self.layouts[candidate.layout].memory_fraction or 0.0))
        asked = min(load.concurrency, seqs) if load.concurrency else float(load.rate_per_s or 0.0)
        return np.array([asked, float(knobs.get("max_num_batched_tokens", 0)), fraction, seqs])


def tune_space(
    deployment: Deployment,
    *,
    knobs: Mapping[str, Sequence[Value]] | None = None,
    load_only: bool = False,
    same_layout: bool = False,
    fixed_load: bool = False,
    rounds: int = 4,
) -> TuneSpace:
    """The space around a service deployment of one aggregated pool.

    knobs : what is varied beside the layout and the load, instead of KNOBS: knobs of the engine by name, or its own options (with
    their dashes). load_only : nothing of the engine is varied (a server that is up already). Raises ProblemError for deployments
    that cannot be tuned and for knobs that the engine does not have.
    """
    _check(deployment)
    engine = load_engine(deployment.engine.name)
    if engine.command_line == "trtllm" and not load_only:
        raise ProblemError(
            f"tune varies the words of a command, and what {engine.title} is told lies in a settings file: start it from the "
            "plan's scripts and give its --url, whose load alone is varied"
        )
    version = resolve_version(engine, deployment.engine.version)
    pool = deployment.pools["serve"]
    fixed = {} if load_only else _fixed(engine, version, pool)
    defaults = _defaults(engine, version)
    varied = {} if load_only else _values(engine, version, fixed, KNOBS if knobs is None else knobs, defaults)
    own = pool.model_copy(
        update={"instances": 1, "flags": {k: v for k, v in pool.flags.items() if k in (*WITH_LAYOUT, *OF_LAYOUT)}}
    )
    layouts = {_label(pool): pool if load_only else own}
    if not (load_only or same_layout):
        layouts |= _other_layouts(deployment, own)
    return TuneSpace(
        deployment,
        layouts,
        _levels(deployment, fixed_load),
        varied,
        {name: value for name, value in fixed.items() if name not in varied},
        planned={name: value for name, value in fixed.items() if value in varied.get(name, ())},
        rounds=rounds,
        defaults={} if load_only else defaults,
    )


def _fixed(engine: EngineSpec, version: str, pool: Pool) -> dict[str, Value]:
    """Knobs that the plan sets, by its flags or by the fields that they set."""
    found = {name: value for name, value in pool.flags.items() if name not in (*WITH_LAYOUT, *OF_LAYOUT)}
    for name, path in FIELDS.items():
        knob, value = engine.knob(name), getattr(pool, path)
        if value and knob is not None and knob.spelling(version):
            found.setdefault(name, value)
    return found


def _check(deployment: Deployment) -> None:
    if deployment.phase != "serve" or set(deployment.pools) != {"serve"}:
        found = "a pair of pools" if len(deployment.pools) > 1 else f"a {deployment.phase} pool alone"
        raise ProblemError(
            f"tune starts one aggregated engine and loads it; this is {found}. Give a deployment with phase `serve`, one pool "
            "`serve` and a load (autotune search --target serve plans one)"
        )
    assert deployment.load is not None
    if deployment.load.trace:
        raise ProblemError("tune sends synthetic requests: give the load as concurrency or rate_per_s instead of a trace")


def _label(pool: Pool) -> str:
    return pool.layout.label()


def _other_layouts(deployment: Deployment, own: Pool) -> dict[str, Pool]:
    """Every other split of the deployment's GPUs that the engine would start and the model can price."""
    found: dict[str, Pool] = {}
    flags = {name: value for name, value in own.flags.items() if name in WITH_LAYOUT}
    gpus = own.layout.gpus * deployment.pools["serve"].instances
    for changes in _splits(own, gpus):
        try:
            pool = Pool.model_validate({**own.model_dump(), **changes, "flags": flags})
            one = deployment.model_copy(update={"pools": {"serve": pool}})
            resolve(one.alone("decode", pool.model_copy(update={"batch_per_dp_rank": 1})))
            stopped = any(finding.stops for finding in pool_findings(subject_of(one, "serve")))
        except (AutotuneError, ValueError):
            continue
        if not stopped and _label(pool) != _label(own):
            found.setdefault(_label(pool), pool)
    return found


def _splits(own: Pool, gpus: int) -> Iterator[dict[str, Any]]:
    """Tensor-parallel by data-parallel engines that divide the GPUs; data-parallel ranks share their experts."""
    sizes = [size for size in range(1, gpus + 1) if gpus % size == 0]
    for tp, dp in itertools.product(sizes, sizes):
        if gpus % (tp * dp * own.pp):
            continue
        plain = {"tp": tp, "dp": dp, "dcp": own.dcp if tp == own.tp else 1, "moe_tp": None, "redundant_experts": 0}
        if dp == 1:
            yield {**plain, "ep": 1, "all2all_backend": "none"}
        if tp * dp > 1:
            yield {**plain, "ep": tp * dp, "all2all_backend": "allgather_reducescatter" if dp > 1 else "none"}


def _levels(deployment: Deployment, fixed: bool) -> tuple[float, ...]:
    load = deployment.load
    assert load is not None
    if load.rate_per_s:
        return (load.rate_per_s,) if fixed else tuple(float(f"{load.rate_per_s * step:.4g}") for step in RATE_STEPS)
    assert load.concurrency is not None
    low, high = (share * load.concurrency for share in REACH)
    near = [float(level) for level in LEVELS if low <= level <= high]
    return (float(load.concurrency),) if fixed else tuple(sorted({float(load.concurrency), *near}))


def _defaults(engine: EngineSpec, version: str) -> dict[str, Value]:
    """What the engine takes for the knobs that a pool prices, where its list says."""
    names = ("max_num_seqs", "max_num_batched_tokens", "gpu_memory_fraction")
    found = {name: knob.default(version) for name in names if (knob := engine.knob(name)) is not None}
    return {name: value for name, value in found.items() if value is not None}


def _values(
    engine: EngineSpec,
    version: str,
    fixed: Mapping[str, Value],
    asked: Mapping[str, Sequence[Value]],
    defaults: Mapping[str, Value],
) -> dict[str, tuple[Value, ...]]:
    """Values of each varied knob: the engine's own, the plan's, then those asked for."""
    known = {knob.name for knob in engine.knobs if knob.spelling(version)}
    found: dict[str, tuple[Value, ...]] = {}
    for name, values in asked.items():
        if not name.startswith("--") and name not in known:
            raise ProblemError(
                f"{engine.name} {version} has no knob {name}; it has {', '.join(sorted(known))}. Options of the engine that are "
                "no knobs are written with their dashes"
            )
        planned = [fixed[name]] if name in fixed else []
        others = [value for value in (*planned, *values) if value != defaults.get(name)]
        found[name] = tuple(dict.fromkeys([ENGINE_DEFAULT, *others]))
    return found

"""Schema of an engine document: versions, knobs and what each knob is called when."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cost_models.releases import version_key
from cost_models.specs.base import Spec

Value = bool | int | float | str


class Ranged(Spec):
    """Something that exists in a range of engine versions."""

    since: str | None = None
    """First supported version that has it."""
    until: str | None = None
    """Last supported version that has it."""

    def exists_in(self, version: str) -> bool:
        key = version_key(version)
        after = self.since is None or key >= version_key(self.since)
        return after and (self.until is None or key <= version_key(self.until))


class ExpertDtypes(Ranged):
    """Storage dtypes of the experts that can stand behind an all-to-all."""

    dtypes: tuple[str, ...]
    roles: tuple[Literal["decode", "prefill", "serve"], ...] = ("decode", "prefill", "serve")
    """Pools it is said of."""


class TokensSeen(Ranged):
    """Tokens of a rank and step that were seen to run beyond the kernel's documented limit."""

    tokens: int


class Choice(Ranged):
    """One value of a categorical knob."""

    value: str
    model: str
    """Name in the cost models."""
    prefill_model: str | None = None
    """Name in the cost models during prefill, where the engine switches kernels by itself."""
    dp_chunk: Ranged | None = None
    """Versions in which MoE DP chunking applies to it; none in none."""
    max_tokens: int | None = None
    """Tokens per rank and step that the engine's kernel accepts."""
    tokens_seen: tuple[TokensSeen, ...] = ()
    """What newer builds of the kernel were seen to take: plans stay below `max_tokens`, others are not refused up to here."""
    experts: tuple[ExpertDtypes, ...] = ()
    """Dtypes of the experts behind it; empty where any is taken."""
    within_domain: bool = False
    """Works inside one scale-up domain only."""
    needs_full_dp: bool = False
    """Works only when every rank is an attention-DP rank (tp 1)."""
    needs_graph_off: bool = False
    """The engine runs it without CUDA graphs."""
    highest_memory_fraction: float | None = None
    """Share of device memory that everything may fill beside it, where that is less than the engine's."""
    hidden_sizes: tuple[int, ...] = ()
    """Hidden sizes its kernels are built for; empty means any."""
    vendors: tuple[str, ...] = ()
    """Whose accelerators its kernels run on; empty means any."""
    taken_from_ep: int | None = None
    """The engine takes it by itself for decoding from this many expert-parallel ranks on, and others below."""
    ep_sizes: tuple[int, ...] = ()
    """Expert-parallel sizes that its kernel takes on `ep_sizes_on`; empty means any."""
    ep_sizes_on: tuple[str, ...] = ()
    """GPUs whose kernel has only those sizes."""

    def model_in(self, phase: str) -> str:
        """Name in the cost models of what runs in a phase (decode or prefill)."""
        return self.prefill_model if phase == "prefill" and self.prefill_model else self.model

    def max_tokens_in(self, phase: str) -> int | None:
        """Token limit of what runs in a phase; none where there is none."""
        return None if phase == "prefill" and self.prefill_model else self.max_tokens

    def tokens_seen_in(self, phase: str, version: str) -> int | None:
        """The most that is known to run in a phase of a version; none where there is no limit."""
        limit = self.max_tokens_in(phase)
        seen = [found.tokens for found in self.tokens_seen if found.exists_in(version)]
        return None if limit is None else max([limit, *seen])

    def experts_in(self, role: str, version: str) -> tuple[str, ...]:
        """Dtypes of experts that it takes in a pool of a version; empty where any."""
        found = [taken.dtypes for taken in self.experts if taken.exists_in(version) and role in taken.roles]
        return tuple(dtype for dtypes in found for dtype in dtypes)

    def takes_ep(self, ep: int, gpu: str) -> bool:
        """Whether its kernel is built for so many expert-parallel ranks of a GPU."""
        return not self.ep_sizes or gpu not in self.ep_sizes_on or ep in self.ep_sizes

    def chunked_in(self, version: str) -> bool:
        """Whether MoE DP chunking applies to it in a version."""
        return self.dp_chunk is not None and self.dp_chunk.exists_in(version)


class Default(Ranged):
    """The engine's own default in a range of versions."""

    value: Value | None


class Spelling(Ranged):
    """How a knob is written: a command-line flag or an environment variable."""

    kind: Literal["flag", "env"]
    name: str
    """`--option.field` is a field of an option that takes a document."""
    value: str | None = None
    """What a switch stands for, where it is one value of a choice."""
    off: str | None = None
    """What switches it off, where a switch is on by itself."""


class Knob(Spec):
    """One setting of an engine."""

    name: str
    doc: str
    kind: Literal["categorical", "integer", "float", "bool"]
    spellings: tuple[Spelling, ...]
    """Empty in a version where the knob does not exist: it is then neither searched nor emitted."""
    defaults: tuple[Default, ...]
    choices: tuple[Choice, ...] = ()
    candidates: tuple[int | float, ...] = ()
    """Values worth trying beside the default and the analytic best."""
    minimum: float | None = None
    maximum: float | None = None
    emit: Literal["when_set", "always", "by_exporter"] = "when_set"
    """Written where a plan sets it; always, with the engine's default where no plan does; or in what an exporter composes."""
    needs: str | None = None
    """Knob that must be on for it to be written."""
    unwritten: tuple[Value, ...] = ()
    """Values that the engine takes by itself and that are not written."""
    roles: tuple[Literal["prefill", "decode", "serve"], ...] = ("prefill", "decode", "serve")
    """Pools that it is written for."""
    unsupported: str | None = None
    """Why it is neither written nor read."""
    source: str

    def spelling(self, version: str) -> Spelling | None:
        """How the version spells the knob; None where it lacks it."""
        return next((s for s in self.spellings if s.exists_in(version)), None)

    def default(self, version: str) -> Value | None:
        """The version's own default; None where the engine decides at run time."""
        return next((d.value for d in self.defaults if d.exists_in(version)), None)

    def choices_in(self, version: str) -> tuple[Choice, ...]:
        return tuple(c for c in self.choices if c.exists_in(version))


class EngineVersion(Spec):
    """A supported version and the release its option list was read from."""

    version: str
    release: str
    scripts: bool = True
    """Whether launch scripts are written for it, as its engine has an exporter; others are judged and predicted."""
    commands: bool = True
    """Whether its commands are read; false where no list of options is known that they could be held against."""
    options_of: str | None = None
    """Release whose list of options stands for its own, where that is not known."""
    priced_as: str | None = None
    """Releases whose kernels and gaps its times stand on, where none of its own generation were measured."""
    api_servers_per: Literal["node", "dp_rank"] = "node"
    """How many API processes it starts by default under hybrid load balancing."""


class Renamed(Spec):
    """An option of older versions and what took its place."""

    name: str
    now: str
    value: str | None = None
    """Given with the new option where the old one was a switch."""


class EngineSpec(Spec):
    """An engine: which versions, which knobs, which calibration and exporter."""

    format: Literal["autotune-engine/1"] = "autotune-engine/1"
    name: str
    title: str
    vendors: tuple[str, ...]
    """Whose accelerators it runs on."""
    default_of: tuple[str, ...] = ()
    """Vendors whose hardware it is taken for when no engine is named."""
    calibration_engine: str
    exporter: str | None = None
    """None: plans are made without launch scripts."""
    command_line: str | None = None
    """Whose options it takes, where they are known (data/options)."""
    renamed: tuple[Renamed, ...] = ()
    memory_fraction_covers: Literal["everything", "weights_and_kv"] = "everything"
    """What the engine's memory-fraction flag bounds."""
    highest_memory_fraction: float = 1.0
    """Share of device memory that plans fill: the rest is for what grows after profiling (graphs, libraries, fragments)."""
    loads_expert_maps: bool = False
    """Whether it can be given a map of experts to ranks."""
    maps_hold_copies: bool = False
    """Whether such a map holds copies of experts where nothing rebalances them."""
    pipeline_pools: tuple[Literal["decode", "prefill", "serve"], ...] = ("serve",)
    """Pools that may use pipeline parallelism: handing KV caches over between stages needs the connector's support."""
    versions: tuple[EngineVersion, ...] = Field(min_length=1)
    """Oldest first."""
    knobs: tuple[Knob, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def newest(self) -> str:
        return self.versions[-1].version

    def writes_scripts(self, version: str) -> bool:
        """Whether launch scripts can be written for a supported version."""
        return self.exporter is not None and next(v.scripts for v in self.versions if v.version == version)

    def release(self, version: str) -> str:
        """The release that a supported version's options were read from."""
        return next(v.release for v in self.versions if v.version == version)

    def options_of(self, version: str) -> str | None:
        """The release whose list of options a supported version's commands are held against; none where none is known."""
        known = next(v for v in self.versions if v.version == version)
        return (known.options_of or known.release) if known.commands else None

    def api_servers_per(self, version: str) -> str:
        return next((v.api_servers_per for v in self.versions if v.version == version), "node")

    def api_servers(self, version: str, ranks: int, nodes: int) -> int:
        """API processes of one instance as a version starts them by itself: one per DP rank, or one per node."""
        return ranks if self.api_servers_per(version) == "dp_rank" else min(ranks, nodes)

    def knob(self, name: str) -> Knob | None:
        return next((k for k in self.knobs if k.name == name), None)

    def has(self, name: str, version: str) -> bool:
        """Whether a version has a knob."""
        knob = self.knob(name)
        return knob is not None and knob.spelling(version) is not None

    def backend_choices(self, version: str) -> tuple[Choice, ...]:
        """All-to-all backends of a version that the cost models describe."""
        knob = self.knob("all2all_backend")
        return knob.choices_in(version) if knob else ()

    def taken_by_itself(self, version: str, ep: int, phase: str) -> Choice | None:
        """The backend that the engine takes without being told to; none where it is told."""
        choices = self.backend_choices(version)
        ranks = next((c.taken_from_ep for c in choices if c.taken_from_ep), None)
        if ranks is None:
            return None
        large = phase == "decode" and ep >= ranks
        return next(c for c in choices if bool(c.taken_from_ep) == large)

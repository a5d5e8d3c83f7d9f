"""In what two deployments of the same problem differ, as changes that can be made one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from autotune.auditing.edits import Edit, changed
from autotune.documents.deployment import Deployment, ExpertBalance, Pool, PoolRole
from cost_models.catalog import load_model

NOT_PRICED = ("flags",)
"""Fields of a pool that no price hangs on: engine knobs by name, whose effect other fields hold."""


@dataclass(frozen=True, slots=True)
class Aspect:
    """Fields of a pool that only make sense together."""

    name: str
    fields: tuple[str, ...]
    shown: Callable[[Pool], str]


def _plain(*names: str) -> Callable[[Pool], str]:
    return lambda pool: ", ".join(_said(getattr(pool, name)) for name in names)


def _said(value: Any) -> str:
    if hasattr(value, "model_dump"):
        kept = value.model_dump(exclude_defaults=True)
        return " ".join(f"{key}={inside}" for key, inside in kept.items()) or "as by default"
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "not set"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _more(balance: ExpertBalance) -> str:
    kept = balance.model_dump(exclude_defaults=True, exclude={"kind"})
    return "".join(f", {key} {inside}" for key, inside in kept.items())


def graphs_label(pool: Pool) -> str:
    """Which decode steps are captured."""
    if not pool.cuda_graph:
        return "off"
    return f"up to {pool.cuda_graph_tokens:,} tokens" if pool.cuda_graph_tokens else "every step"


def sequences_of(pool: Pool) -> int:
    """Sequences that all instances decode at once at most; 0 where memory limits them."""
    return pool.batch_per_dp_rank * pool.dp * pool.instances


ASPECTS = (
    Aspect("layout", ("tp", "dp", "ep", "pp", "dcp", "moe_tp", "instances"), lambda p: f"{p.instances} x {p.layout.label()}"),
    Aspect("sequences", ("batch_per_dp_rank",), lambda p: f"{n:,}" if (n := sequences_of(p)) else "as many as fit"),
    Aspect("token budget of a rank", ("max_batched_tokens",), lambda p: f"{n:,}" if (n := p.max_batched_tokens) else "its batch"),
    Aspect("all-to-all", ("all2all_backend", "all2all_processors"),
           lambda p: p.all2all_backend + (f" on {n} SMs" if (n := p.all2all_processors) else "")),
    Aspect("expert kernel", ("expert_kernel",), _plain("expert_kernel")),
    Aspect("redundant experts", ("redundant_experts",), _plain("redundant_experts")),
    Aspect("expert balance", ("expert_balance",), lambda p: f"{p.expert_balance.kind}{_more(p.expert_balance)}"),
    Aspect("overlap", ("overlap",), _plain("overlap")),
    Aspect("drafts", ("draft_tokens", "drafter"), lambda p: f"{p.draft_tokens}" + (f" by {p.drafter}" if p.drafter else "")),
    Aspect("graphs", ("cuda_graph", "cuda_graph_tokens"), graphs_label),
    Aspect("memory share", ("memory_fraction",), lambda p: f"{p.memory_fraction:.3f}" if p.memory_fraction else "what is needed"),
    Aspect("offload", ("offload",), _plain("offload")),
    Aspect("chunks", ("chunks",), _plain("chunks")),
    Aspect("API servers", ("api_servers",), _plain("api_servers")),
    Aspect("admission", ("admission_interval_steps", "gather_prefill_steps"),
           _plain("admission_interval_steps", "gather_prefill_steps")),
    Aspect("attention of cut prompts", ("absorbs_cut_prompts",),
           lambda p: "absorbed" if p.absorbs_cut_prompts else "expanded keys and values"),
    Aspect("all-reduces", ("symmetric_memory",), lambda p: "symmetric memory" if p.symmetric_memory else "the engine's own"),
    Aspect("prefix caching", ("prefix_caching",), lambda p: "on" if p.prefix_caching else "off"),
    Aspect("precision", ("precision",), _plain("precision")),
    Aspect("hardware", ("hardware",), _plain("hardware")),
)  # fmt: skip
"""Every field of a pool but NOT_PRICED, once."""


@dataclass(frozen=True, slots=True)
class Step:
    """One difference as a change of the first deployment."""

    edit: Edit
    before: str
    after: str


def steps_between(recipe: Deployment, ours: Deployment) -> tuple[Step, ...]:
    """The changes that lead from one deployment to the other, each by itself a change of the first.

    Where their pools are of other roles there is one: everything. A change of the layout keeps the sequences in all, and takes
    with it what would not be valid otherwise.
    """
    if set(recipe.pools) != set(ours.pools):
        edit = Edit("service", "kind of service", lambda _: ours)
        return (Step(edit, _pools(recipe), _pools(ours)),)
    found = list(_precisions(recipe, ours))
    for role, pool in recipe.pools.items():
        found += _pool_steps(role, pool, ours.pools[role], recipe, several=len(recipe.pools) > 1)
    return tuple(found)


def _pools(deployment: Deployment) -> str:
    return " + ".join(f"{pool.instances} x {pool.layout.label()} {role}" for role, pool in deployment.pools.items())


def _precisions(recipe: Deployment, ours: Deployment) -> Iterator[Step]:
    if recipe.precision != ours.precision:
        edit = Edit("precision", "precision", lambda deployment: deployment.model_copy(update={"precision": ours.precision}))
        yield Step(edit, _said(recipe.precision), _said(ours.precision))


def _pool_steps(role: PoolRole, pool: Pool, other: Pool, recipe: Deployment, *, several: bool) -> Iterator[Step]:
    relaid = any(getattr(pool, name) != getattr(other, name) for name in ASPECTS[0].fields)
    with_layout = _taken_along(pool, other, recipe) if relaid else {}
    for aspect in ASPECTS:
        changes = {name: getattr(other, name) for name in aspect.fields if getattr(pool, name) != getattr(other, name)}
        if aspect.name == "layout":
            changes |= with_layout
        elif aspect.name == "sequences":
            if sequences_of(pool) == sequences_of(other):
                continue
            changes = {"batch_per_dp_rank": _batch(other, pool)}
        elif set(aspect.fields) <= set(with_layout):
            continue
        if changes:
            label = f"{role}: {aspect.name}" if several else aspect.name
            yield Step(Edit(label, label, changed(role, **changes)), aspect.shown(pool), aspect.shown(other))


def _taken_along(pool: Pool, other: Pool, recipe: Deployment) -> dict[str, object]:
    """What a change of the layout alone has to change with it."""
    found: dict[str, object] = {"batch_per_dp_rank": _batch(pool, other)} if pool.batch_per_dp_rank else {}
    if (other.dp == 1) != (pool.dp == 1) or (other.ep > 1 and pool.all2all_backend == "none" and other.dp > 1):
        found["all2all_backend"] = other.all2all_backend
    moe = load_model(recipe.model).moe
    if moe is not None and (moe.experts + pool.redundant_experts) % other.ep:
        found["redundant_experts"] = other.redundant_experts
    return found


def _batch(of: Pool, laid: Pool) -> int:
    """Sequences of one pool on each rank of another's layout."""
    total = sequences_of(of)
    return max(round(total / (laid.dp * laid.instances)), 1) if total else 0

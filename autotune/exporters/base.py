"""What launch scripts have in common: arguments, environment, required variables and the template."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from autotune.documents.deployment import Deployment, Pool, PoolRole
from autotune.errors import ExportError
from autotune.exporters.quoting import FILTERS, Shell, finalize, word
from autotune.resolving import resolve_drafter
from cost_models.catalog import looks_like_path
from cost_models.drafters import Drafter
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from search_spaces.rules import RULES, Subject, findings
from search_spaces.rules.requirements import Needed
from search_spaces.schema import Value
from search_spaces.spelling import Spelled

if TYPE_CHECKING:
    from jinja2 import Environment

PHASES: tuple[PoolRole, ...] = ("prefill", "decode", "serve")
ROLE_TITLES = {"prefill": "prefill", "decode": "decode", "serve": "aggregated"}
OTHER_SIDE = {"prefill": "decode", "decode": "prefill"}
"""Of a disaggregated pair."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One option and its value; None for a switch."""

    flag: str
    value: str | int | float | Shell | None = None

    def rendered(self) -> Shell:
        """Both as words of a command."""
        return word(self.flag) if self.value is None else Shell(f"{word(self.flag)} {word(self.value)}")

    def words(self) -> tuple[str | int | float | Shell, ...]:
        """Both, as they are."""
        return (self.flag,) if self.value is None else (self.flag, self.value)


@dataclass(frozen=True, slots=True)
class Required:
    """A variable the operator must set, and what for."""

    name: str
    help: str


@dataclass(frozen=True, slots=True)
class Beside:
    """A variable that names a file; by default one that lies beside the script."""

    name: str
    file: str
    help: str


@dataclass(frozen=True, slots=True)
class Script:
    """A file of a launch folder."""

    name: str
    text: str
    executable: bool = True


@dataclass(frozen=True, slots=True)
class NodePlacement:
    """How an instance lies on nodes."""

    nodes: int
    gpus_per_node: int
    """GPUs of one instance on each node."""
    per_node: int
    """Instances that share one node (1 when an instance fills it)."""


def single_pools(deployment: Deployment) -> list[Deployment]:
    """A deployment for every pool, prefill first, with its own hardware and precision; the other pool stays known."""
    phases: list[PoolRole] = [phase for phase in PHASES if phase in deployment.pools]
    parts = []
    for phase in phases:
        pool = deployment.pools[phase]
        changes = {
            "phase": phase,
            "hardware": pool.hardware or deployment.hardware,
            "precision": pool.precision or deployment.precision,
        }
        parts.append(deployment.model_copy(update=changes))
    return parts


def placement(pool: Pool, hardware: HardwareSpec) -> NodePlacement:
    """Whole nodes, or a share of one; raises ExportError when the instance does not divide."""
    gpus, node = pool.layout.gpus, hardware.gpus_per_node
    if gpus <= node:
        if node % gpus:
            raise ExportError(f"{gpus} GPUs per instance do not divide a node of {node} GPUs")
        return NodePlacement(1, gpus, node // gpus)
    if gpus % node:
        raise ExportError(f"{gpus} GPUs per instance are not whole nodes of {node} GPUs")
    return NodePlacement(gpus // node, node, 1)


def json_value(value: Any) -> str:
    """Compact JSON for an option that takes a document."""
    return json.dumps(value, separators=(",", ":"))


def knob_arguments(knobs: Spelled) -> list[Argument]:
    """The options that a plan's knobs are spelled with."""
    return [Argument(name, json_value(value) if isinstance(value, dict) else value) for name, value in knobs.options.items()]


def recipe_name(deployment: Deployment) -> str:
    """Name of the plan's precision recipe."""
    return deployment.precision if isinstance(deployment.precision, str) else deployment.precision.recipe


def own_drafter(pool: Pool, model: ModelSpec) -> Drafter:
    """The drafter that a pool names; raises ExportError where it names none."""
    found = resolve_drafter(pool.drafter, model, pool.tp)
    if found is None:
        raise ExportError("the pool names no drafter")
    return found


def checkpoint(deployment: Deployment, model: ModelSpec) -> str:
    """Published checkpoint of the plan's precision, or the model's name for MODEL to override."""
    return model.checkpoints.get(recipe_name(deployment), model.name)


def served_name(deployment: Deployment, model: ModelSpec) -> str:
    """The name that clients ask for: the checkpoint of the decoding side, whatever file MODEL names and prefill loads."""
    decoding = next(pool for phase, pool in reversed(_ordered(deployment)) if phase in deployment.pools)
    served = deployment.model_copy(update={"precision": decoding.precision or deployment.precision})
    return checkpoint(served, model).replace(":", "-")  # SGLang keeps the colon for adapters


def _ordered(deployment: Deployment) -> list[tuple[PoolRole, Pool]]:
    return [(phase, deployment.pools[phase]) for phase in PHASES if phase in deployment.pools]


def notes_of(subject: Subject) -> list[str]:
    """What the engine's rules say without refusing it, for the header."""
    return [finding.text for finding in findings(RULES, subject) if not finding.stops]


def backend_flags(subject: Subject, flags: dict[str, Value]) -> dict[str, Value]:
    """Knobs with the all-to-all of the pool, where they do not say one."""
    choice = subject.choice()
    return {"all2all_backend": choice.value, **flags} if choice else flags


def needed_arguments(needed: Needed) -> list[Argument]:
    """Options that the engine's rules ask for."""
    return [Argument(name, values[0] if values else None) for name, values in needed.options.items()]


def hardware_name(deployment: Deployment) -> str:
    """Catalogue name, or a file's own without the folders it lies in: scripts are passed on."""
    return plain_name(deployment.hardware)


def plain_name(hardware: str) -> str:
    """A name of the catalogue as it is, a file's without its folders and ending."""
    return PurePath(hardware).stem if looks_like_path(hardware) else hardware


def feed_requirement(deployment: Deployment, tokens_per_s: float) -> str:
    """What must feed, or take from, the one pool of a pair that a plan holds, at its predicted rate."""
    workload = deployment.workload
    if deployment.phase == "prefill":
        requests = tokens_per_s / (workload.isl_tokens * (1 - workload.prefix_cache_hit_rate))
        return (
            f"Prefill side of a disaggregated pair: it generates no answers. At the predicted {tokens_per_s:,.0f} prompt "
            f"tokens/s it fills the KV caches of {requests:,.1f} requests/s, for decode instances that generate "
            f"{requests * workload.osl_tokens:,.0f} tokens/s, and a router that sends each request to one of either."
        )
    requests = tokens_per_s / workload.osl_tokens
    return (
        f"Decode side of a disaggregated pair: it computes no prompts. At the predicted {tokens_per_s:,.0f} tokens/s it "
        f"needs prefill instances that deliver the KV cache of {requests:,.1f} requests/s "
        f"({requests * workload.isl_tokens:,.0f} prompt tokens/s), "
        "and a router that sends each request to one prefill and one decode instance."
    )


def render_script(
    *,
    title: str,
    comments: list[str],
    required: list[Required],
    beside: list[Beside] | None = None,
    optional: dict[str, str],
    place: NodePlacement,
    environment: dict[str, str | Shell],
    network: dict[str, str | Shell] | None = None,
    command: Shell,
    arguments: list[Argument],
    defaults: dict[str, str] | None = None,
    strides: dict[str, int] | None = None,
    offsets: dict[str, int] | None = None,
) -> str:
    """A bash script from the shared template.

    defaults : variables that the operator's own win over; network : those set only where NIC names an interface; strides : what
    ports move by from slot to slot; offsets : ports that lie so far from PORT unless the operator says otherwise.
    """
    return render_template(
        "node.sh.j2",
        title=title,
        comments=comments,
        required=required,
        beside=beside or [],
        optional=optional,
        place=place,
        slot_ports=strides or {},
        offsets=offsets or {},
        defaults=defaults or {},
        environment=environment,
        network=network or {},
        command=command,
        arguments=[argument.rendered() for argument in arguments],
    )


def render_template(name: str, **values: Any) -> str:
    """A packaged bash template, with delimiters that bash does not use; every value in it is quoted where it stands."""
    return _templates().get_template(name).render(**values)


@functools.cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("autotune", "exporters/templates"),
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  (bash, not HTML)
        finalize=finalize,
    )
    environment.filters.update(FILTERS)
    return environment

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
from cost_models.catalog import looks_like_path
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from search_spaces.spelling import Spelled

if TYPE_CHECKING:
    from jinja2 import Environment

CONTEXT_ROUNDING_TOKENS = 64
PHASES: tuple[PoolRole, ...] = ("prefill", "decode", "serve")
ROLES = {"prefill": "prefill", "decode": "decode", "serve": "aggregated"}
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
class Placement:
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


def placement(pool: Pool, hardware: HardwareSpec) -> Placement:
    """Whole nodes, or a share of one; raises ExportError when the instance does not divide."""
    gpus, node = pool.layout.gpus, hardware.gpus_per_node
    if gpus <= node:
        if node % gpus:
            raise ExportError(f"{gpus} GPUs per instance do not divide a node of {node} GPUs")
        return Placement(1, gpus, node // gpus)
    if gpus % node:
        raise ExportError(f"{gpus} GPUs per instance are not whole nodes of {node} GPUs")
    return Placement(gpus // node, node, 1)


def json_value(value: Any) -> str:
    """Compact JSON for an option that takes a document."""
    return json.dumps(value, separators=(",", ":"))


def knob_arguments(knobs: Spelled) -> list[Argument]:
    """The options that a plan's knobs are spelled with."""
    return [Argument(name, json_value(value) if isinstance(value, dict) else value) for name, value in knobs.options.items()]


def max_model_len(deployment: Deployment, model: ModelSpec) -> int:
    """Longest request, rounded up, within the model's context."""
    longest = deployment.workload.isl_tokens + deployment.workload.osl_tokens
    rounded = -(-longest // CONTEXT_ROUNDING_TOKENS) * CONTEXT_ROUNDING_TOKENS
    return min(rounded, model.max_context_tokens)


def recipe_name(deployment: Deployment) -> str:
    """Name of the plan's precision recipe."""
    return deployment.precision if isinstance(deployment.precision, str) else deployment.precision.recipe


def checkpoint(deployment: Deployment, model: ModelSpec) -> str:
    """Published checkpoint of the plan's precision, or the model's name for MODEL to override."""
    return model.checkpoints.get(recipe_name(deployment), model.name)


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


def render(
    *,
    title: str,
    comments: list[str],
    required: list[Required],
    beside: list[Beside] | None = None,
    optional: dict[str, str],
    place: Placement,
    environment: dict[str, str | Shell],
    command: Shell,
    arguments: list[Argument],
) -> str:
    """A bash script from the shared template."""
    strides = {"PORT": 1, "NIXL_PORT": place.gpus_per_node, "BOOTSTRAP_PORT": 1}  # NIXL listens on one port per rank
    return render_template(
        "node.sh.j2",
        title=title,
        comments=comments,
        required=required,
        beside=beside or [],
        optional=optional,
        place=place,
        slot_ports={name: stride for name, stride in strides.items() if name in optional},
        environment=environment,
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

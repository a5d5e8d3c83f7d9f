"""What kind of work each operator of a step is: the groups that charts, shares and answers speak in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from cost_models.context_parallel import COMBINE, GATHER
from cost_models.hyper_connections import FAMILY as HYPER_CONNECTIONS
from cost_models.specs.model import ModelSpec
from cost_models.specs.precision import PrecisionRecipe

Group = Literal[
    "attention",
    "projections and dense layers",
    "experts",
    "dispatch",
    "combine",
    "all-reduce and hops",
    "small kernels",
    "host, gaps and waits",
    "drafts",
    "overlap",
]
GROUPS: tuple[Group, ...] = get_args(Group)
COMMUNICATION_GROUPS: tuple[Group, ...] = ("dispatch", "combine", "all-reduce and hops", "overlap")
"""What ranks spend on each other; overlap is negative, it takes back what it hides."""
WAITING_GROUPS: tuple[Group, ...] = ("host, gaps and waits",)
TENSOR_PARALLEL = ("tp_all_reduce", "norm_all_reduce", "moe_all_reduce", "ffn_all_reduce", GATHER, COMBINE)
"""Collectives of a tensor-parallel group."""
OF_EVERY_MODEL: Mapping[Group, tuple[str, ...]] = {
    "experts": ("experts",),
    "dispatch": ("dispatch",),
    "combine": ("combine",),
    "all-reduce and hops": (*TENSOR_PARALLEL, "pipeline_hops"),
    "small kernels": ("elementwise", "moe_elementwise", HYPER_CONNECTIONS, "sampling", "eplb_moves", "shared_stream"),
    "host, gaps and waits": ("host", "launch_gaps", "offload_stall", "output_processing_wait"),
    "drafts": ("mtp_drafts",),
    "overlap": ("overlap",),
}
"""Operators that do not depend on how a model attends or which matrices it has."""
NO_INPUTS = {
    "sequences": 1.0, "context_tokens": 1.0, "new_tokens": 1.0, "prefix_tokens": 0.0, "tp": 1.0, "dcp": 1.0,
}  # fmt: skip
"""An attention kind names the same operators whatever their sizes."""


def operator_groups(model: ModelSpec, recipe: PrecisionRecipe) -> dict[str, Group]:
    """Group of every operator that a step of the model can have: its matrices, what its attention kinds run, and the rest."""
    groups: dict[str, Group] = {}
    for kind in model.attentions:
        priced = kind.sources(recipe, "decode", NO_INPUTS) | kind.sources(recipe, "prefill", NO_INPUTS)
        groups |= dict.fromkeys(priced, "attention")
    groups |= dict.fromkeys((matrix.name for matrix in model.matrices()), "projections and dense layers")
    for group, names in OF_EVERY_MODEL.items():
        groups |= dict.fromkeys(names, group)
    return groups

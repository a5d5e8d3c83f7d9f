"""Placements as the engines read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from autotune.errors import ProblemError
from autotune.files import whole_folder, write_whole
from autotune.placement.loads import Loads
from autotune.placement.placing import Placement
from cost_models.specs.model import ModelSpec


class Located(Protocol):
    """What a map needs of a placement."""

    @property
    def gpus(self) -> int: ...
    @property
    def slots(self) -> int: ...
    @property
    def experts(self) -> tuple[tuple[tuple[int, ...], ...], ...]: ...


def sglang_expert_location(placement: Located, model: ModelSpec) -> str:
    """`--init-expert-location`: physical to logical experts of every hidden layer (srt/eplb/expert_location.py)."""
    experts = len({e for gpu in placement.experts[0] for e in gpu})
    plain = [slot % experts for slot in range(placement.slots)]
    placed = dict(zip(model.moe_positions, (_flat(layer) for layer in placement.experts), strict=True))
    return json.dumps({"physical_to_logical_map": [placed.get(layer, plain) for layer in range(model.layers)]}) + "\n"


def trtllm_load_balancer(placement: Located, model: ModelSpec) -> str:
    """`moe_config.load_balancer`: slots of every MoE layer by its index in the model; static (0 layer updates)."""
    layers = (f"  {at}: {_flat(layer)}\n" for at, layer in zip(model.moe_positions, placement.experts, strict=True))
    return f"num_slots: {placement.slots}\ninitial_global_assignments:\n{''.join(layers)}layer_updates_per_iter: 0\n"


def ascend_expert_map(placement: Located, model: ModelSpec) -> str:
    """vLLM-Ascend `expert_map_path`: experts by MoE layer and device."""
    layers = [
        {
            "layer_id": at,
            "device_count": placement.gpus,
            "device_list": [{"device_id": gpu, "device_expert": list(slots)} for gpu, slots in enumerate(layer)],
        }
        for at, layer in zip(model.moe_positions, placement.experts, strict=True)
    ]
    return json.dumps({"moe_layer_count": len(layers), "layer_list": layers}) + "\n"


def plain_json(placement: Placement, _model: ModelSpec) -> str:
    """Everything, with balance and bounds; `autotune place --json` prints the same."""
    return placement.model_dump_json(indent=1) + "\n"


FILES: dict[str, Callable[[Placement, ModelSpec], str]] = {
    "placement.json": plain_json,
    "sglang_expert_location.json": sglang_expert_location,
    "trtllm_moe_load_balancer.yaml": trtllm_load_balancer,
    "vllm_ascend_expert_map.json": ascend_expert_map,
}


PICTURES = ("balance_by_layer.png", "load_by_gpu.png", "nodes_by_layer.png")


def write_files(placement: Placement, model: ModelSpec, folder: Path, drawn_loads: Loads | None = None) -> list[Path]:
    """Every format into a folder, with pictures where the loads to draw are given: all of them or none.

    Pictures of an earlier placement that is replaced go with it. Raises OutputError, and ProblemError as `draw` does.
    """
    with whole_folder(folder, lambda path: path.name in (*FILES, *PICTURES)) as scratch:
        for name, render in FILES.items():
            write_whole(scratch / name, render(placement, model))
        drawn = draw(placement, drawn_loads, scratch) if drawn_loads else []
    return [folder / name for name in (*FILES, *(path.name for path in drawn))]


def draw(placement: Placement, loads: Loads, folder: Path) -> list[Path]:
    """Pictures beside the maps; raises ProblemError without matplotlib (extra `plots`)."""
    try:
        from autotune.placement.plots import balance_by_layer, load_by_gpu, nodes_by_layer
    except ImportError as error:
        raise ProblemError("--pictures needs matplotlib: pip install 'moe-autotune[plots]'") from error
    paths = [folder / name for name in PICTURES[:2]]
    balance_by_layer(placement, paths[0])
    load_by_gpu(placement, loads, paths[1])
    if placement.nodes_per_token:
        paths.append(folder / PICTURES[2])
        nodes_by_layer(placement.nodes_per_token, placement.layers[0].layer, paths[2])
    return paths


def _flat(layer: tuple[tuple[int, ...], ...]) -> list[Any]:
    return [expert for gpu in layer for expert in gpu]

"""Expert maps of models whose layers with experts are not all at the end."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import yaml

from autotune.placement.formats import ascend_expert_map, sglang_expert_location, trtllm_load_balancer
from autotune.placement.loads import read_loads
from cost_models.catalog import load_model


def test_maps_name_the_layers_that_have_experts():
    # the first five blocks of Nemotron-3-Super are M E M E M: experts in layers 1 and 3
    model = load_model("nemotron-3-super-120b-a12b").scaled_to_layers(5)
    assert model.moe_positions == (1, 3)
    forth = tuple(tuple(range(gpu * 128, gpu * 128 + 128)) for gpu in range(4))
    back = forth[::-1]
    placement = SimpleNamespace(experts=(forth, back), slots=512, gpus=4)
    rows = json.loads(sglang_expert_location(placement, model))["physical_to_logical_map"]
    assert len(rows) == 5
    assert rows[3] == [expert for gpu in back for expert in gpu]
    assert rows[0] == rows[1] == list(range(512))
    assert list(yaml.safe_load(trtllm_load_balancer(placement, model))["initial_global_assignments"]) == [1, 3]
    assert [layer["layer_id"] for layer in json.loads(ascend_expert_map(placement, model))["layer_list"]] == [1, 3]


def test_recorded_loads_of_every_layer_are_taken_where_experts_are(tmp_path):
    model = load_model("nemotron-3-super-120b-a12b").scaled_to_layers(5)
    loads = np.zeros((5, 512))
    loads[1], loads[3] = 1.0, 2.0
    np.save(tmp_path / "loads.npy", loads)
    found = read_loads([tmp_path / "loads.npy"], model)
    assert [float(found.layer(i).max()) for i in (0, 1)] == [1.0, 2.0]

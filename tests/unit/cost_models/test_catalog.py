"""Catalogue documents: every one loads, counts exactly and names its sources."""

from __future__ import annotations

import json

import pytest
import yaml

from cost_models import catalog
from cost_models.errors import CatalogError, MissingFactError, UnsupportedModelError
from cost_models.huggingface import model_from_config
from cost_models.specs.base import Fact

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "num_attention_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "vocab_size": 100,
    "max_position_embeddings": 1024,
}


@pytest.mark.parametrize("name", catalog.model_names())
def test_parameter_count_equals_the_published_one(name):
    model = catalog.load_model(name)
    published = model.published
    assert published is not None
    exact = published.parameters % 10**7 != 0  # a model card rounds to two or three digits
    counted = model.parameters() + published.elsewhere
    assert counted == pytest.approx(published.parameters, rel=1e-6 if exact else 0.01)


def test_parameter_count_by_hand():
    # attention per layer: 64*(16+12) + 16*2*12 + 8*2*16 + 64*16 + norms 16+8 = 1792+384+256+1024+24 = 3480
    # dense layer: 3*64*128 = 24576; MoE layer: 4*3*64*32 + 3*64*32 + 4*64 + 4 = 24576+6144+256+4 = 30980
    # head: 2*100*64 = 12800; norms: 7*64 = 448
    model = model_from_config(CONFIG, name="tiny", source="test")
    assert model.parameters() == 3 * 3480 + 24576 + 2 * 30980 + 12800 + 448


def test_active_parameters_of_deepseek_v3_are_37_billion():
    assert catalog.load_model("deepseek-v3").active_parameters() == pytest.approx(36.6e9, rel=0.01)


@pytest.mark.parametrize("name", catalog.hardware_names())
def test_hardware_loads_and_every_fact_has_a_source(name):
    hardware = catalog.load_hardware(name)
    facts = [f for f in vars(hardware.gpu).values() if isinstance(f, Fact)]
    facts += [*hardware.gpu.flops_per_s.values(), hardware.scale_up.bytes_per_s, hardware.host_link.bytes_per_s]
    assert all(fact.source and fact.accessed and fact.value > 0 for fact in facts)
    assert hardware.name == name


def test_hardware_numbers_people_will_check():
    gb200, h20 = catalog.load_hardware("gb200-nvl72"), catalog.load_hardware("h20-4node-25gbe")
    assert gb200.gpus_per_node == 4
    assert gb200.scale_up.domain_gpus == 72
    assert gb200.scale_up.bytes_per_s.value == 900e9
    assert gb200.host_link_bytes_per_s == 225e9
    # 25 Gb/s over eight GPUs: 0.39 GB/s each
    assert h20.scale_out_bytes_per_s == pytest.approx(0.390625e9)
    assert h20.max_gpus == 32


def test_a_missing_peak_is_not_guessed():
    with pytest.raises(MissingFactError, match="H200 has no nvfp4"):
        catalog.load_hardware("hgx-h200").gpu.peak_flops_per_s("nvfp4")


@pytest.mark.parametrize("name", catalog.calibration_names())
def test_calibrations_load_with_status_and_source(name):
    calibration = catalog.load_calibration(name)
    entries = [entry for variants in calibration.families.values() for entry in variants.values()]
    assert entries
    assert all(entry.source for entry in entries)


def test_a_calibration_for_a_sibling_gpu_measures_nothing_itself():
    calibration = catalog.load_calibration("blackwell-vllm")
    assert {e.status for v in calibration.families.values() for e in v.values()} == {"transferred", "assumed"}
    assert calibration.applies_to.gpus == ("GB300", "B200", "B300")


def test_missing_coefficients_name_what_there_is():
    with pytest.raises(MissingFactError, match=r"no dense_gemm coefficients for int4 \(it has: bf16"):
        catalog.load_calibration("gb200-vllm").entry("dense_gemm", "int4")


@pytest.mark.parametrize(
    ("load", "name", "near"),
    [
        (catalog.load_hardware, "gb200", "gb200-nvl72"),
        (catalog.load_model, "deepseek-v4", "deepseek-v3"),
        (catalog.load_recipe, "fp8", "fp8-block"),
        (catalog.load_calibration, "gb200-vlm", "gb200-vllm"),
    ],
)
def test_unknown_names_list_near_matches(load, name, near):
    with pytest.raises(CatalogError, match=near):
        load(name)


def test_a_users_own_hardware_file_has_the_same_schema(tmp_path):
    data = catalog.load_hardware("hgx-h100").model_dump(mode="json")
    data["name"] = "mine"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data))
    assert catalog.load_hardware(str(path)).name == "mine"
    path.write_text(yaml.safe_dump({**data, "colour": "green"}))
    with pytest.raises(CatalogError, match="colour: unknown key"):
        catalog.load_hardware(str(path))
    path.write_text(yaml.safe_dump({**data, "gpus_per_node": 3}))
    with pytest.raises(CatalogError, match="not a multiple"):
        catalog.load_hardware(str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["Phi9ForCausalLM"]}, "Phi9ForCausalLM is not supported: it is none of"),
        ({"architectures": ["DeepseekV41ForCausalLM"]}, "not modelled: compressed"),
        ({"index_topk": 2048}, "sparse attention"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
        ({"hidden_size": -1}, "hidden_size must be a whole number from 1"),
        ({"architectures": []}, "'architectures' is missing"),
    ],
)
def test_unsupported_configurations_are_named(change, message):
    with pytest.raises(UnsupportedModelError, match=message):
        model_from_config({**CONFIG, **change}, name="x", source="config.json")


def test_a_missing_key_is_named():
    config = {key: value for key, value in CONFIG.items() if key != "kv_lora_rank"}
    with pytest.raises(UnsupportedModelError, match="needs the key 'kv_lora_rank'"):
        model_from_config(config, name="x", source="config.json")


def test_config_file_equals_preset(tmp_path):
    folder = tmp_path / "DeepSeek-V3"
    folder.mkdir()
    preset = yaml.safe_load((catalog.resources.files("cost_models") / "data/models/deepseek-v3.yaml").read_text())
    config = {**preset["config"], "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (folder / "config.json").write_text(json.dumps(config))
    model = catalog.load_model(str(folder / "config.json"))
    assert model.name == "DeepSeek-V3"
    assert model.parameters() == catalog.load_model("deepseek-v3").parameters()
    assert list(model.checkpoints) == ["fp8-block"]


def test_gpt_oss_windows_half_of_its_layers_and_flags_its_sinks():
    model = catalog.load_model("gpt-oss-120b")
    assert {kind.window_tokens: layers for kind, layers in model.attentions.items()} == {128: 18, None: 18}
    assert any("sinks" in flag for flag in model.flags)


def test_truncated_layers_keep_dense_layers_first():
    model = catalog.load_model("deepseek-v3").scaled_to_layers(5)
    assert (model.layers, model.dense_layers, model.moe_layers) == (5, 3, 2)

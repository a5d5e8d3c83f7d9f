"""Drafters of their own weights: what they weigh, keep and cost, by hand and against what was published."""

from __future__ import annotations

import numpy as np
import pytest

from autotune.resolving import resolve_drafter
from cost_models import catalog
from cost_models.acceptance import published_rates
from cost_models.drafters import drafter_from_config, find_drafter, known_drafters
from cost_models.errors import AutotuneError, UnsupportedModelError
from cost_models.machine import Machine
from cost_models.memory import decode_memory
from cost_models.prefill import prefill_step
from cost_models.rows import Rows
from cost_models.specs.workload import Workload
from cost_models.step import decode_step

GPT_OSS, DSPARK = "nvidia/gpt-oss-120b-Eagle3-v3", "RadixArk/Kimi-K3-DSpark"
WORKLOAD = Workload(isl_tokens=2000, osl_tokens=1000)


def machine_with(drafter, model, hardware="hgx-h200", recipe="mxfp4"):
    spec, hw = catalog.load_model(model), catalog.load_hardware(hardware)
    calibration = catalog.calibration_for(hw.gpu.name, "vllm")
    return Machine(spec, hw, catalog.recipe_of(recipe, spec), calibration, drafter=find_drafter(drafter))


@pytest.mark.parametrize(
    ("name", "published", "share"),
    [
        (GPT_OSS, 787e6, 0.001),  # model card
        ("lmsys/SGLang-EAGLE3-Qwen3-235B-A22B-Instruct-2507-SpecForge-Meituan", 0.6e9, 0.02),  # model card
        (DSPARK, 4_498_585_858 / 2, 0.001),  # bytes of model.safetensors, BF16
    ],
)
def test_parameters_are_those_of_the_published_files(name, published, share):
    assert find_drafter(name).parameters() == pytest.approx(published, rel=share)


def test_every_drafter_is_for_a_preset_and_fits_it():
    for name, drafter in known_drafters().items():
        assert resolve_drafter(name, catalog.load_model(drafter.target)) is drafter


def test_one_draft_of_a_lone_sequence_reads_the_drafter_once():
    # memory bound: 786.9 M x 2 B / 4.8 TB/s = 328 us
    step = decode_step(machine_with(GPT_OSS, "gpt-oss-120b"), Rows.of(drafts=1), 2000.0, (0.8,))
    assert step.operators["mtp_drafts"].bound_s[0] == pytest.approx(786.9e6 * 2 / 4.8e12, rel=0.03)
    assert step.operators["mtp_drafts"].time_s[0] >= step.operators["mtp_drafts"].bound_s[0]


def test_a_chain_takes_a_pass_for_every_draft_and_a_block_one_for_all():
    chain = decode_step(machine_with(GPT_OSS, "gpt-oss-120b"), Rows.of(drafts=np.arange(8)), 2000.0, (0.8,))
    block = decode_step(machine_with(DSPARK, "kimi-k3", "hgx-b300"), Rows.of(tp=8, ep=8, drafts=np.arange(8)), 2000.0, (0.8,))
    chain_s, block_s = (step.operators["mtp_drafts"].time_s for step in (chain, block))
    assert chain_s[0] == block_s[0] == 0
    assert chain_s[7] == pytest.approx(7 * chain_s[1], rel=0.05)
    assert block_s[7] < 2 * block_s[1]
    assert np.all(np.diff(block_s) > 0)


def test_memory_holds_the_drafter_and_its_cache_where_it_drafts():
    rows = Rows.of(batch=16, drafts=[0, 3])
    machine = machine_with(GPT_OSS, "gpt-oss-120b")
    memory = decode_memory(machine, rows, WORKLOAD)
    assert memory.lines["drafter weights"].tolist() == [0.0, pytest.approx(786.9e6 * 2, rel=1e-3)]
    # one layer of 2 x 8 heads x 64 in BF16: 2,048 B a token
    grown = memory.sequence.mean[1] - memory.sequence.mean[0]
    assert grown == pytest.approx(2048 * WORKLOAD.context_tokens, rel=1e-6)


def test_a_prompt_passes_a_chain_drafter_and_only_fills_the_cache_of_a_block_drafter():
    rows = Rows.of(tp=8, ep=8, batched_tokens=8192, drafts=[0, 3])
    chain = machine_with("lightseekorg/kimi-k2.5-eagle3-mla", "kimi-k2.5", "hgx-b300", "nvfp4")
    block = machine_with(DSPARK, "kimi-k3", "hgx-b300")
    chain_s, block_s = (prefill_step(m, rows, WORKLOAD).operators["mtp_drafts"].time_s for m in (chain, block))
    assert chain_s[0] == block_s[0] == 0
    # fused: 8,192 tokens x 2 x 5 x 7,168 x 7,168 FLOP at 2.5 PFLOP/s is the least a block drafter takes
    assert block_s[1] > 8192 * 2 * 5 * 7168**2 / 2.5e15
    assert chain_s[1] > 0


def test_drafters_of_other_models_and_unknown_ones_are_refused():
    with pytest.raises(AutotuneError, match="is not for qwen3-235b-a22b"):
        resolve_drafter(GPT_OSS, catalog.load_model("qwen3-235b-a22b"))
    with pytest.raises(AutotuneError, match="its shapes are not at hand"):
        resolve_drafter("someone/Else-EAGLE3", catalog.load_model("gpt-oss-120b"))
    with pytest.raises(AutotuneError, match="tp 128 does not divide the 64 attention heads of the drafter"):
        resolve_drafter(GPT_OSS, catalog.load_model("gpt-oss-120b"), 128)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architectures": ["MedusaModel"]}, "drafter MedusaModel is not modelled"),
        ({"hidden_size": None}, "hidden_size"),
        ({"architectures": ["DSparkDraftModel"]}, "needs the key 'markov_rank'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number"),
    ],
)
def test_a_configuration_that_is_no_drafter_is_named(changed, message):
    config = {
        "architectures": ["LlamaForCausalLMEagle3"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000, **changed,
    }  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=message):
        drafter_from_config(config, name="x", target="gpt-oss-120b", source="config.json")


def test_a_curve_is_taken_for_the_drafter_that_it_was_measured_with():
    assert published_rates("kimi-k2.5", "coding", "eagle3")[0] == pytest.approx(0.8)
    with pytest.raises(UnsupportedModelError, match="measured with eagle3"):
        published_rates("kimi-k2.5", "coding")

"""Known checkpoints: exact names, their models and precisions, and that nothing is taken for something else."""

from __future__ import annotations

import re

import pytest

from cost_models import catalog
from cost_models.checkpoints import find_checkpoint, in_folder_called, known_checkpoints
from cost_models.errors import AutotuneError, CatalogError, UnsupportedModelError
from cost_models.huggingface import ARCHITECTURES, NOT_MODELLED


def test_names_are_said_once_and_sources_always():
    names = [checkpoint.name.casefold() for checkpoint in known_checkpoints()]
    assert len(names) == len(set(names)) > 400
    assert all(checkpoint.source and checkpoint.name.count("/") == 1 for checkpoint in known_checkpoints())


def test_every_checkpoint_is_priced_or_refused_by_name():
    refused = {"preset": 0, "precision": 0}
    for checkpoint in known_checkpoints():
        part = "preset" if checkpoint.model not in catalog.model_names() else "precision"
        if part == "preset" or checkpoint.precision not in catalog.recipes():
            with pytest.raises(UnsupportedModelError, match=re.escape(checkpoint.name)):
                catalog.load_model(checkpoint.name)
            refused[part] += 1
            continue
        model = catalog.load_model(checkpoint.name)
        recipe = catalog.recipe_of(checkpoint.precision, model)
        assert all(getattr(recipe, name) == value for name, value in checkpoint.stored)
    assert refused["preset"]
    assert refused["precision"]


def test_an_architecture_named_here_is_known():
    named = {checkpoint.architecture for checkpoint in known_checkpoints() if checkpoint.architecture}
    assert named <= set(NOT_MODELLED) | set(ARCHITECTURES)


@pytest.mark.parametrize("preset", catalog.model_names())
def test_a_presets_own_checkpoints_are_known_as_what_they_are(preset):
    for recipe, name in catalog.load_model(preset).checkpoints.items():
        known = find_checkpoint(name)
        assert known is not None, name
        assert known.precision == recipe
        if (preset, recipe) != ("kimi-k2", "nvfp4"):  # NVIDIA published the NVFP4 weights of Kimi-K2-Thinking alone
            assert known.model == preset


def test_a_preset_is_priced_as_its_own_checkpoint_is_stored():
    # the same weights under two names, preset and checkpoint: every field of their recipes is one
    differing = {
        (preset, recipe): checkpoint
        for preset in catalog.model_names()
        for recipe, checkpoint in catalog.load_model(preset).checkpoints.items()
        if catalog.recipe_of(recipe, catalog.load_model(preset)) != catalog.recipe_of(recipe, catalog.load_model(checkpoint))
    }
    assert not differing


def test_nvidias_qwen3_235b_has_its_attention_in_nvfp4():
    # hf_quant_config.json (ModelOpt 0.33): NVFP4 but for the routers and lm_head, KV cache FP8
    recipe = catalog.recipe_of("nvfp4", catalog.load_model("qwen3-235b-a22b"))
    assert (recipe.attention_in, recipe.o_proj, recipe.experts, recipe.kv_cache) == ("nvfp4", "nvfp4", "nvfp4", "fp8")


@pytest.mark.parametrize(
    ("name", "model", "precision"),
    [
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "llama-3.1-70b", "bf16"),
        ("deepseek-ai/deepseek-r1-0528-qwen3-8b", "qwen3-8b", "bf16"),
        ("moonshotai/Kimi-K2.5", "kimi-k2.5", "int4"),
        ("cognitivecomputations/DeepSeek-R1-0528-AWQ", "deepseek-r1", "int4"),
        ("nvidia/DeepSeek-V3.1-NVFP4", "deepseek-v3", "nvfp4"),
        ("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek-v3.2", "fp8-block"),
        ("/root/.cache/huggingface/hub/models--Qwen--Qwen3-32B-FP8/snapshots/0a1b", "qwen3-32b", "fp8-block"),
    ],
)
def test_a_known_name_is_its_model(name, model, precision):
    found = find_checkpoint(name)
    assert found is not None
    assert (found.model, found.precision) == (model, precision)


@pytest.mark.parametrize(
    "name",
    ["deepseek-ai/DeepSeek-V3.3", "deepseek-ai/DeepSeek-R1-0528-mine", "Qwen/Qwen3-235B-A22B-FP8-v2", "someone/DeepSeek-V3"],
)
def test_a_name_that_begins_like_a_known_one_is_unknown(name):
    assert find_checkpoint(name) is None
    with pytest.raises(CatalogError) as error:
        catalog.load_model(name)
    assert "--model" in str(error.value)
    assert "did you mean" not in str(error.value).lower()


def test_a_model_is_refused_by_its_missing_part_under_every_name():
    for name in ("lfm2.5-8b-a1b", "LiquidAI/LFM2.5-8B-A1B"):
        with pytest.raises(AutotuneError, match="convolution layers"):
            catalog.load_model(name)


def test_deepseek_v3_2_is_never_v3():
    assert catalog.load_model("deepseek-ai/DeepSeek-V3.2").attentions != catalog.load_model("deepseek-ai/DeepSeek-V3").attentions


def test_a_format_without_a_recipe_is_said():
    with pytest.raises(UnsupportedModelError, match="stored in gguf"):
        catalog.load_model("unsloth/DeepSeek-R1-GGUF")


def test_the_longest_context_is_the_checkpoints_own():
    assert catalog.load_model("Qwen/Qwen3-235B-A22B-Instruct-2507").max_context_tokens == 262144
    assert catalog.load_model("Qwen/Qwen3-235B-A22B").max_context_tokens == 40960


def test_folders_of_public_recipes():
    assert {c.name for c in in_folder_called("/weights/DeepSeek-r1_w8a8_mtp")} == {"vllm-ascend/DeepSeek-R1-W8A8"}

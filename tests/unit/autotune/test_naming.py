"""Which model a command serves and what it is stored in: public reports of both kinds, and what contradicts itself."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from autotune.auditing.checking import check
from autotune.auditing.commands import read_command
from autotune.auditing.goals import Goals
from autotune.auditing.naming import is_run_of, served_model, served_precision
from autotune.cli.main import app
from autotune.documents.problem import Problem
from autotune.errors import ProblemError
from autotune.resolving import resolve_problem, usable_recipes
from cost_models import catalog
from cost_models.errors import AutotuneError, UnsupportedModelError
from cost_models.specs.precision import DTYPES

V3 = {
    "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 7168, "num_hidden_layers": 61, "vocab_size": 129280,
    "max_position_embeddings": 163840, "num_attention_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256, "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048, "n_shared_experts": 1, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3,
    "intermediate_size": 18432, "num_nextn_predict_layers": 1,
}  # fmt: skip
MODELOPT = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}


def deployment_of(command: str, hardware: str = "hgx-h200", **said):
    return read_command(command, hardware=hardware, isl_tokens=1000, osl_tokens=1000, **said).deployment


@pytest.mark.parametrize(
    ("name", "document", "recipe"),
    [
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1", "fp8-block"),
        ("DEEPSEEK-AI/deepseek-r1", "deepseek-r1", "fp8-block"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "llama-3.1-70b", "bf16"),
        ("meta-llama/Llama-3.3-70B-Instruct", "llama-3.1-70b", "bf16"),
        ("Qwen/Qwen3-30B-A3B-FP8", "qwen3-30b-a3b", "fp8-block"),
        ("moonshotai/Kimi-K2.5", "kimi-k2.5", "int4"),
        ("nvidia/Kimi-K2.6-NVFP4", "nvidia/Kimi-K2.6-NVFP4", "nvfp4"),
        ("cognitivecomputations/DeepSeek-R1-0528-AWQ", "cognitivecomputations/DeepSeek-R1-0528-AWQ", "int4"),
        ("/models/Qwen3-235B-A22B-FP8", "qwen3-235b-a22b", "fp8-block"),
        ("/models/DeepSeek-R1", "deepseek-r1", "fp8-block"),
        ("openai/gpt-oss-20b", "gpt-oss-20b", "mxfp4"),
        ("zai-org/GLM-4.5-Air-FP8", "glm-4.5-air", "fp8-tensor"),
    ],
)
def test_exact_names_are_their_models(name, document, recipe):
    served = served_model(name)
    assert (served.document, served_precision(served, name, None)) == (document, recipe)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inclusionAI/Ling-2.6-1T", "not modelled: linear .lightning. attention"),
        ("baidu/ERNIE-4.5-VL-28B-A3B-PT", "not modelled: separate experts for text and images"),
        ("LiquidAI/LFM2.5-8B-A1B", "not modelled: convolution layers"),
        ("someone/DeepSeek-R1", "deepseek-ai/DeepSeek-R1, unsloth/DeepSeek-R1 have the same name"),
        ("/models/DeepSeek-R1-mine", "other models and are not taken for it"),
        ("deepseek-ai/DeepSeek-V9", "not taken for it"),
        ("internlm/Intern-S1", "no configuration of it is shipped"),
        ("amd/gpt-oss-120b-w-mxfp4-a-fp8", "mxfp4 with fp8 activations, which no precision recipe describes"),
    ],
)
def test_other_names_are_refused_and_never_steered(name, message):
    with pytest.raises(AutotuneError, match=message):
        served_model(name)


def test_a_local_folder_that_is_not_here_is_taken_for_its_name_with_a_remark():
    assert "/models/DeepSeek-R1 is taken for deepseek-ai/DeepSeek-R1" in served_model("/models/DeepSeek-R1").remarks[0]
    assert served_model("deepseek-ai/DeepSeek-R1").remarks == ()


def test_a_folder_in_the_command_is_read(tmp_path):
    folder = tmp_path / "my-finetune"
    folder.mkdir()
    config = {**V3, "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}}
    (folder / "config.json").write_text(json.dumps(config))
    deployment = deployment_of(f"vllm serve {folder} --tensor-parallel-size 8")
    assert (deployment.model, deployment.precision) == (str(folder), "int4")
    by_option = deployment_of("vllm serve me/thing --tensor-parallel-size 8", model=str(folder / "config.json"))
    assert by_option.precision == "int4"


@pytest.mark.parametrize(
    ("name", "quantization", "recipe"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "fp8", "fp8-tensor"),  # quantised as it is loaded
        ("moonshotai/Kimi-K2-Instruct", "fp8", "fp8-block"),
        ("QuantTrio/GLM-4.6-AWQ", "awq_marlin", "int4"),
        ("nvidia/DeepSeek-R1-0528-NVFP4-v2", "modelopt_fp4", "nvfp4"),
        ("vllm-ascend/DeepSeek-V3-W8A8", "ascend", "int8"),
    ],
)
def test_the_quantization_option_agrees_with_the_checkpoint(name, quantization, recipe):
    assert served_precision(served_model(name), name, quantization) == recipe


@pytest.mark.parametrize(
    ("name", "quantization", "asked", "message"),
    [
        ("deepseek-ai/DeepSeek-V3", "awq", None, "is stored in fp8-block, --quantization awq loads int4"),
        ("deepseek-ai/DeepSeek-V3", None, "nvfp4", "is stored in fp8-block, --precision says nvfp4"),
        ("deepseek-v3", None, None, r"nothing tells what deepseek-v3 is stored in: say it with --precision \(bf16, fp8-block"),
        ("deepseek-ai/DeepSeek-V3", "bitsandbytes", None, "no precision recipe describes it"),
        ("deepseek-v3", None, "fp7", "unknown precision fp7"),
    ],
)
def test_precision_that_contradicts_itself_or_is_untold_is_asked_for(name, quantization, asked, message):
    with pytest.raises(ProblemError, match=message):
        served_precision(served_model(name), name, quantization, asked)


def test_a_preset_takes_the_precision_that_is_said():
    assert served_precision(served_model("deepseek-v3"), "deepseek-v3", None, "nvfp4") == "nvfp4"
    assert served_precision(served_model("deepseek-v3"), "deepseek-v3", "modelopt_fp4") == "nvfp4"


def test_search_takes_modelopts_precision_from_the_file_beside_the_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(V3))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(MODELOPT))
    for model in (str(tmp_path), str(tmp_path / "config.json")):
        resolved = resolve_problem(Problem(hardware="hgx-b200", model=model, trials=0))
        assert resolved.machine.recipe.name == "nvfp4"
        assert resolved.machine.recipe.kv_cache == "fp8"
    on_hopper = resolve_problem(Problem(hardware="hgx-h200", model=str(tmp_path), trials=0)).machine.recipe
    assert (on_hopper.name, on_hopper.experts) == ("nvfp4", "nvfp4_a16")  # widened, for want of FP4 tensor cores
    with pytest.raises(ProblemError, match="no checkpoint in a precision that mi355x runs; checkpoints: nvfp4"):
        resolve_problem(Problem(hardware="mi355x", model=str(tmp_path), trials=0))


@pytest.mark.parametrize(("hardware", "weight_bytes"), [("hgx-h200", 1 + 1 / 32), ("mi300x", 2.0), ("hgx-b200", 1 + 1 / 32)])
def test_mxfp8_is_widened_where_tensor_cores_do_not_scale_blocks(hardware, weight_bytes):
    """A byte and a 32nd on Hopper, whose kernels widen; two on MI300X, where vLLM widens once for all."""
    machine = resolve_problem(Problem(hardware=hardware, model="minimax-m3", precision="mxfp8", trials=0, engine="vllm")).machine
    assert DTYPES[machine.recipe.experts].weight_bytes == weight_bytes
    assert DTYPES[machine.recipe.experts].compute == ("fp8" if hardware == "hgx-b200" else "bf16")


@pytest.mark.parametrize(
    ("command", "hardware", "says", "works"),
    [
        ("vllm serve MiniMaxAI/MiniMax-M3-MXFP8 -tp 8 --block-size 128", "hgx-h200", "by kernels that were not timed", True),
        ("sglang serve --model-path MiniMaxAI/MiniMax-M3-MXFP8 --tp 8", "hgx-h200", "SGLang has no kernels for MXFP8", False),
        ("sglang serve --model-path MiniMaxAI/MiniMax-M3-MXFP8 --tp 8", "mi300x", "makes FP8 blocks of MXFP8", True),
    ],
)
def test_what_widens_mxfp8_is_said(command, hardware, says, works):
    """Served on H200 with vLLM (InferenceX#1731); SGLang asks for compute capability 10.0."""
    found = read_command(command, hardware=hardware, isl_tokens=1000, osl_tokens=1000)
    verdict = check(found.deployment, Goals(), found)
    assert (verdict.answer == "does not work") != works
    assert any(says in line for line in (*verdict.conflicts, *verdict.unmodelled, *verdict.remarks))
    if works:  # its speed is nobody's measurement
        assert check(found.deployment, Goals(tpot_s=0.05), found).answer == "cannot say"


def test_mxfp4_takes_mxfp8_activations_where_tensor_cores_do_and_bf16_elsewhere():
    asked = {"model": "gpt-oss-120b", "precision": "mxfp4-mxfp8", "trials": 0}
    on = {name: resolve_problem(Problem(hardware=name, **asked)).machine.recipe for name in ("hgx-b200", "hgx-h100")}
    assert (on["hgx-b200"].experts, on["hgx-b200"].dispatch) == ("mxfp4_mxfp8", "mxfp8")
    assert (on["hgx-h100"].experts, on["hgx-h100"].dispatch) == ("mxfp4", "bf16")
    assert resolve_problem(Problem(hardware="hgx-b200", model="gpt-oss-120b", trials=0)).machine.recipe.name == "mxfp4"


def test_the_checkpoint_decides_the_kv_cache_unless_the_command_does():
    fp8 = deployment_of("vllm serve nvidia/Llama-3.3-70B-Instruct-FP8 --tensor-parallel-size 2")
    assert (fp8.model, fp8.precision) == ("nvidia/Llama-3.3-70B-Instruct-FP8", "fp8-tensor")
    said = deployment_of("vllm serve nvidia/Llama-3.3-70B-Instruct-FP8 --tensor-parallel-size 2 --kv-cache-dtype fp8")
    assert said.precision.kv_cache == "fp8"


def test_a_result_belongs_to_the_deployment_of_its_model_only():
    assert is_run_of("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1")
    assert is_run_of("/models/DeepSeek-R1", "deepseek-r1")
    assert is_run_of("/data/my-finetune", "/mnt/my-finetune/config.json")
    assert not is_run_of("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "deepseek-r1")
    assert not is_run_of("deepseek-ai/DeepSeek-V3.2", "deepseek-v3")
    assert not is_run_of("default", "deepseek-v3")


@pytest.mark.parametrize(
    ("command", "arguments", "code", "said"),
    [
        ("vllm serve LiquidAI/LFM2.5-8B-A1B --tensor-parallel-size 8", [], 1, "convolution layers"),
        ("vllm serve deepseek-ai/DeepSeek-R1-Distill-Llama-70B --tensor-parallel-size 8", [], 0, "works"),
        ("vllm serve deepseek-v3 --tensor-parallel-size 8", [], 1, "say it with --precision"),
        ("vllm serve deepseek-v3 --tensor-parallel-size 8", ["--precision", "fp8-block"], 0, "works"),
        ("vllm serve mine --tensor-parallel-size 8", ["--model", "qwen3-32b", "--precision", "bf16"], 0, "works"),
        ("vllm serve deepseek-ai/DeepSeek-V3 --tensor-parallel-size 8 --quantization awq", [], 1, "the engine refuses"),
    ],
)
def test_the_installed_command_says_so(tmp_path, command, arguments, code, said):
    script = tmp_path / "run.sh"
    script.write_text(command)
    result = CliRunner().invoke(app, ["check", str(script), "--hw", "hgx-h200", *arguments])
    text = result.output + (str(result.exception) if result.exception else "")
    assert said in text
    assert isinstance(result.exception, UnsupportedModelError | AutotuneError | None | SystemExit)
    assert result.exit_code in ({0} if code == 0 else {1, 2})


def test_a_checkpoint_that_must_be_widened_is_the_last_choice():
    hardware, model = catalog.load_hardware("hgx-h200"), catalog.load_model("deepseek-r1")
    usable = usable_recipes(model, hardware, catalog.calibration_for("H200", "vllm"))
    assert (usable[0], usable[-1]) == ("fp8-block", "nvfp4")

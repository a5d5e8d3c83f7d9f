"""Memory that engines take by themselves: defaults by version, SGLang's own formula, the longest sequence, padded weights."""

from __future__ import annotations

import pytest

from autotune.auditing.commands import read_command
from autotune.auditing.engine_memory.base import Launched, Said
from autotune.auditing.engine_memory.sglang import sglang_fraction
from autotune.auditing.engine_memory.vllm import expanded_bytes
from autotune.predicting.step import predict
from cost_models.memory import expert_bytes
from cost_models.rows import Rows
from tests.conftest import machine_of

SPREAD = ("--data-parallel-size 8 --enable-expert-parallel", "--tensor-parallel-size 8")
QWEN = "vllm serve Qwen/Qwen3-235B-A22B-FP8 --tensor-parallel-size 4"


def read(command: str, hardware: str = "hgx-h100", version: str | None = None, tokens: int = 1000, **said):
    return read_command(command, hardware=hardware, version=version, isl_tokens=tokens, osl_tokens=tokens, **said)


def cache_bytes(command: str, **said) -> float:
    return next(line.bytes for line in predict(read(command, **said).deployment).memory if line.name == "kv_cache")


def test_the_fraction_of_a_silent_script_is_the_versions():
    silent, said = (read(QWEN + flag, version="0.11").deployment.pool for flag in ("", " --gpu-memory-utilization 0.9"))
    assert silent.memory_fraction == said.memory_fraction
    newer = read(QWEN, version="0.24").deployment.pool.memory_fraction
    explicit = read(QWEN + " --gpu-memory-utilization 0.92", version="0.24").deployment.pool.memory_fraction
    assert newer == explicit


def room_bytes(command: str, version: str) -> float:
    """What the engine's own memory leaves for its cache."""
    deployment = read(command, version=version).deployment
    step = predict(deployment)
    return step.memory_limit_bytes - sum(line.bytes for line in step.memory if line.name != "kv_cache")


@pytest.mark.parametrize(
    ("model", "tp", "logged_gib"),
    [
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", 2, 32.00),
        ("meta-llama/Llama-3.1-8B-Instruct", 1, 51.38),
        ("Qwen/Qwen3-32B", 1, 4.45),
        ("Qwen/Qwen3-32B", 2, 34.49),
    ],
)
def test_rooms_that_vllm_logged_on_h100(model, tp, logged_gib):
    # github.com/llm-d-incubation/llm-d-planner, docs/empirical-vllm-memory-results.md (vLLM 0.11.0). Llama 8B:
    # 0.9 x 79.18 - 14.99 weights - 1,024 x 128,256 x 38.5 B to sort for sampling - 0.13 beside tensors = 51.4 GiB
    command = f"vllm serve {model} --tensor-parallel-size {tp} --gpu-memory-utilization 0.9 --max-model-len 16000"
    assert room_bytes(command, "0.11") / 2**30 == pytest.approx(logged_gib, abs=0.15)


def test_communicators_lie_beside_the_share_of_vllm():
    # vllm-project/vllm#21348, before 0.11 took its snapshot of free memory after them: TP4 on H100 had 8.11 GiB
    # = 178,880 tokens of 94 x 2 x 128 x 2 B; communicators are 3.0e9 B of the runtime at most
    reported = 178_880 * 94 * 2 * 128 * 2
    assert reported == pytest.approx(8.11 * 2**30, rel=0.02)
    assert reported < cache_bytes(QWEN, version="0.11") < reported + 3.0e9


def test_a_small_cache_beside_an_unsure_estimate_is_said():
    # gpt-oss-120b on one H100 in vLLM 0.24 kept 2.04 GiB, 4.3 GiB less of graphs than one figure has room for
    tight = read("vllm serve openai/gpt-oss-120b --gpu-memory-utilization 0.92 --max-num-seqs 256", version="0.24", size=8)
    assert any("which may leave" in line for line in tight.remarks)
    for wide in ("vllm serve meta-llama/Llama-3.1-8B-Instruct", "vllm serve openai/gpt-oss-120b --enforce-eager"):
        assert not any("which may leave" in line for line in read(wide, version="0.24").remarks)


def test_latent_attention_expands_a_prefix_when_vllm_starts():
    # 65,536 tokens x 128 heads x (128 + 128) x 2 B = 4.29e9; of eight ranks that share the heads an eighth
    shared, split = (read(f"vllm serve deepseek-ai/DeepSeek-V3 {flag}", "hgx-h200", version="0.24").deployment for flag in SPREAD)
    assert expanded_bytes(shared) == 65_536 * 128 * 256 * 2
    assert expanded_bytes(split) == expanded_bytes(shared) / 8
    assert expanded_bytes(read(QWEN).deployment) == 0


def test_start_up_sampling_takes_what_more_sequences_need():
    # 0.11 sorts the vocabulary: 38.5 B per logit of every sequence that may run
    few, many = (cache_bytes(f"{QWEN} --max-num-seqs {n}", version="0.11", size=8) for n in (1024, 1024))
    assert few == many
    pools = [read(f"{QWEN} --max-num-seqs {n}", version="0.11").deployment.pool.memory_fraction for n in (512, 1024)]
    visible = 85.52e9
    assert (pools[0] - pools[1]) * visible == pytest.approx(512 * 151_936 * 38.5, rel=0.02)


def test_vllm_refuses_a_longest_sequence_that_does_not_fit():
    # MoonshotAI/Kimi-K2#76: FP8 on 8 H200 does not hold 131,072 tokens
    kimi = "vllm serve moonshotai/Kimi-K2-Instruct --tensor-parallel-size 8 --trust-remote-code"
    for length in ("", " --max-model-len 131072", " --max-model-len 128k"):
        assert any("vLLM does not start" in line for line in read(kimi + length, "hgx-h200").conflicts)
    assert not read(kimi + " --max-model-len auto", "hgx-h200").conflicts
    assert not read(kimi + " --decode-context-parallel-size 8", "hgx-h200").conflicts  # an eighth of the cache on each
    assert not read("vllm serve Qwen/Qwen3-32B --tensor-parallel-size 8", "hgx-h200").conflicts


def test_requests_longer_than_the_command_lets_in_are_said():
    short = QWEN.replace("--tensor", "--max-model-len 1500 --tensor")
    assert any("longer than the 1,500" in line for line in read(short).remarks)
    assert not any("lets in" in line for line in read(short, tokens=500).remarks)


def test_sixteen_gpus_hold_what_eight_do_not():
    wide = "vllm serve moonshotai/Kimi-K2-Instruct --tensor-parallel-size 16 --trust-remote-code --max-model-len 131072"
    assert not any("does not start" in line for line in read(wide, "hgx-h200").conflicts)


def test_deepseek_v4_is_wider_on_hopper_before_sglang_0_5_16():
    # SemiAnalysisAI/InferenceX#2128: 125.65 GiB of weights on each of eight H200 leave nothing of 0.88 of 140.4 GiB
    command = (
        "sglang serve --model-path deepseek-ai/DeepSeek-V4-Pro --tp 8 --dp 8 --enable-dp-attention --mem-fraction-static 0.88"
    )
    old, new = (read(command, "hgx-h200", version=version).deployment for version in ("0.5.14", "0.5.17"))
    visible, more = 150.75e9, 61 * 16 * 1024 * 4096  # a byte more of every weight of o_a
    assert (new.pool.memory_fraction - old.pool.memory_fraction) * visible == pytest.approx(more, rel=0.01)
    step = predict(old)
    weights = sum(line.bytes for line in step.memory if line.name.endswith("weights"))
    assert weights + more == pytest.approx(125.65 * 2**30, rel=0.01)
    assert step.memory_limit_bytes < sum(line.bytes for line in step.memory if line.name != "kv_cache")


SGLANG = "sglang serve --tp-size 8 --model-path "
H200_MIB = 150.75e9 / 2**20


def reserved_mib(flags: str, version: str, said: Said | None = None, role: str | None = None) -> float:
    """What SGLang leaves beside weights and cache on an H200 where nothing is given."""
    deployment = read(SGLANG + flags, "hgx-h200", version=version, role=role).deployment
    said = said or Said(aggregated=role is None)
    return H200_MIB * (1 - sglang_fraction(Launched.of(deployment), said))


ROUNDING_MIB = pytest.approx(0, abs=0.0005 * H200_MIB + 1)


def test_sglang_reserves_by_its_formula():
    # 143,766 MiB of an H200, TP8 of DeepSeek-R1, which has a latent: 512 + 1.5 x 8192 + 1024 + 2 x 512 = 14,848 MiB, and since
    # 0.5.23 graphs of prompts, 1,536
    assert reserved_mib("deepseek-ai/DeepSeek-R1", "0.5.10") - 14_848 == ROUNDING_MIB
    assert reserved_mib("deepseek-ai/DeepSeek-R1", "0.5.23") - 16_384 == ROUNDING_MIB
    # without a latent 0.5.23 sizes the cache after its graphs: 1,536 and 1,024 for eight ranks
    assert reserved_mib("Qwen/Qwen3-32B", "0.5.23") - 2560 == ROUNDING_MIB


def test_sparse_latents_and_indexed_attention_are_not_measured_after_graphs():
    # attention_arch is MLA of DeepSeek-V3.2 too; MiniMax-M3 and DeepSeek-V4 are left out by name (overrides.py:1858). V4 captures
    # no prompts: 14,848; M3 captures them in 58 sizes of 8 MiB: 8 + 14 + 8 + 8 + 12 up to 4,096, and 8 more to 8,192
    assert reserved_mib("deepseek-ai/DeepSeek-V3.2", "0.5.23") - 16_384 == ROUNDING_MIB
    assert reserved_mib("deepseek-ai/DeepSeek-V4-Pro", "0.5.23") - 14_848 == ROUNDING_MIB


def test_what_runs_eagerly_is_not_measured_after_graphs():
    # Qwen3-32B with its decode steps eager: 512 + 12,288 + 1,024 and 58 x 8 = 464 for graphs of prompts; by stages no prompts are
    # captured: 512 + 12,288 + 2,048 of 16 ranks + 1,024
    assert reserved_mib("Qwen/Qwen3-32B --disable-cuda-graph", "0.5.23") - 14_288 == ROUNDING_MIB
    assert reserved_mib("Qwen/Qwen3-32B --pp-size 2", "0.5.23") - 15_872 == ROUNDING_MIB


def test_sglang_keeps_memory_for_images():
    # Qwen3.5 captures prompts: 8 GiB beside the 2,560; Qwen3-VL does not: 0.95 of what 512 + 12,288 + 1,024 + 1,024 leave. Its
    # decode side gets no images: 512 + 1.5 x 2,048 + 1,024 + 1,024 = 5,632, at least 10,240
    assert reserved_mib("Qwen/Qwen3.5-397B-A17B-FP8", "0.5.23") - (2560 + 8192) == ROUNDING_MIB
    left = 0.95 * (H200_MIB - 14_848)
    assert reserved_mib("Qwen/Qwen3-VL-235B-A22B-Instruct", "0.5.23") - (H200_MIB - left) == ROUNDING_MIB
    sides = reserved_mib("Qwen/Qwen3-VL-235B-A22B-Instruct --disaggregation-mode decode", "0.5.10", Said(aggregated=False))
    assert sides - 10_240 == ROUNDING_MIB


def test_a_vision_tower_of_unknown_size_is_said():
    silent = read(SGLANG + "Qwen/Qwen3-VL-235B-A22B-Instruct", "hgx-h200", version="0.5.20")
    assert any("vision tower" in line for line in silent.remarks)
    for known in (" --mem-fraction-static 0.8", " --disaggregation-mode decode"):
        said = read(SGLANG + "Qwen/Qwen3-VL-235B-A22B-Instruct" + known, "hgx-h200", version="0.5.20")
        assert not any("vision tower" in line for line in said.remarks)


def test_a_given_fraction_of_sglang_is_of_weights_and_cache():
    given = read("sglang serve --model-path Qwen/Qwen3-235B-A22B-FP8 --tp-size 4 --mem-fraction-static 0.8").deployment
    lines = {line.name: line.bytes for line in predict(given).memory}
    held = sum(size for name, size in lines.items() if name.endswith("weights") or name == "kv_cache")
    assert held == pytest.approx(0.8 * (85.53e9 - 2.7 * 2**30), rel=0.01)  # what 2.7 GiB of driver and communicators leave


def test_the_kv_cache_that_sglang_reported():
    # vllm-project/vllm#21348: TP4 on H100, 0.93: 8.23 + 8.23 GiB of keys and values
    given = "sglang serve --model-path Qwen/Qwen3-235B-A22B-FP8 --tp-size 4 --mem-fraction-static 0.93 --max-running-requests 8"
    step = predict(read(given).deployment)
    room = step.memory_limit_bytes - sum(line.bytes for line in step.memory if line.name != "kv_cache")
    assert room == pytest.approx(2 * 8.23 * 2**30, rel=0.02)


def test_padded_experts_of_gpt_oss():
    # 2,880 wide and deep become 2,944 (a multiple of 128) and 3,072 (of 256): 36 x 128 x 3 x 2944 x 3072 x 17/32 B = 66.4e9;
    # reports of loaded weights: 65.97 GiB with Marlin, 4.25 GB of them attention and embeddings
    machine = machine_of("hgx-h100", model="gpt-oss-120b", recipe="mxfp4")
    whole, split = (float(expert_bytes(machine, Rows.of(tp=tp))[0]) for tp in (1, 8))
    assert whole == pytest.approx(36 * 128 * 3 * 2944 * 3072 * 17 / 32)
    assert whole + 4.25e9 == pytest.approx(65.97 * 2**30, rel=0.01)
    assert split == pytest.approx(36 * 128 * 3 * 384 * 3072 * 17 / 32)  # 360 columns of a rank become 384
    block = machine_of("hgx-h200", model="qwen3-235b-a22b", recipe="fp8-block")
    assert float(expert_bytes(block, Rows.of(tp=8))[0]) == pytest.approx(94 * 128 * 3 * 4096 * 192 * (1 + 4 / 128**2))


def test_logits_are_gathered_on_every_rank():
    from cost_models.memory import decode_memory
    from cost_models.specs.workload import Workload

    machine, lengths = machine_of("hgx-h200", recipe="fp8-block"), Workload(isl_tokens=1000, osl_tokens=1000)
    few, many = (decode_memory(machine, Rows.of(tp=8, batch=b, batched_tokens=512), lengths).lines for b in (256, 512))
    assert many["activations"][0] - few["activations"][0] == pytest.approx(256 * 129_280 * 6)

"""Memory that engines take by themselves: defaults by version, SGLang's own formula, the longest sequence, padded weights."""

from __future__ import annotations

import pytest

from autotune.auditing.commands import read_command
from autotune.auditing.engine_memory import Said, sglang_fraction
from autotune.predicting.step import predict
from cost_models.memory import expert_bytes
from cost_models.rows import Rows
from tests.conftest import machine_of

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


def test_the_kv_cache_that_a_public_start_reported():
    # vllm-project/vllm#21348: TP4 on H100, default fraction: 8.11 GiB = 178,880 tokens of 94 x 2 x 128 x 2 B
    reported = 178_880 * 94 * 2 * 128 * 2
    assert reported == pytest.approx(8.11 * 2**30, rel=0.02)
    assert cache_bytes(QWEN, version="0.11") == pytest.approx(reported, rel=0.10)


def test_start_up_sampling_takes_what_more_sequences_need():
    # 0.11 sorts the vocabulary: 27 B per logit of every sequence that may run
    few, many = (cache_bytes(f"{QWEN} --max-num-seqs {n}", version="0.11", size=8) for n in (1024, 1024))
    assert few == many
    pools = [read(f"{QWEN} --max-num-seqs {n}", version="0.11").deployment.pool.memory_fraction for n in (512, 1024)]
    visible = 85.52e9
    assert (pools[0] - pools[1]) * visible == pytest.approx(512 * 151_936 * 27, rel=0.02)


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


def test_sglang_reserves_by_its_formula():
    # H100 of 81,559 MiB, TP8 of DeepSeek-R1, which has a latent: 512 + 1.5 x 8192 + 1024 + 2 x 512 + 1.5 x 1024 = 16,384 MiB
    deployment = read("sglang serve --model-path deepseek-ai/DeepSeek-R1 --tp-size 8", "hgx-h200").deployment
    total = 150.75e9 / 2**20
    assert sglang_fraction(deployment, (0, 5, 23), Said()) == pytest.approx((total - 16_384) / total, abs=0.002)
    older = sglang_fraction(deployment, (0, 5, 10), Said())
    assert older == pytest.approx((total - (16_384 - 1536)) / total, abs=0.002)
    # without a latent 0.5.23 sizes the cache after its graphs: 1,536 and 1,024 for eight ranks
    dense = read("sglang serve --model-path Qwen/Qwen3-32B --tp-size 8", "hgx-h200").deployment
    assert sglang_fraction(dense, (0, 5, 23), Said()) == pytest.approx((total - 2560) / total, abs=0.002)


def test_a_given_fraction_of_sglang_is_of_weights_and_cache():
    given = read("sglang serve --model-path Qwen/Qwen3-235B-A22B-FP8 --tp-size 4 --mem-fraction-static 0.8").deployment
    lines = {line.name: line.bytes for line in predict(given).memory}
    held = sum(size for name, size in lines.items() if name.endswith("weights") or name == "kv_cache")
    assert held <= 0.8 * 85.53e9
    assert held > 0.77 * 85.53e9


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

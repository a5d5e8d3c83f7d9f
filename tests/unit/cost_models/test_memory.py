"""Memory lines against hand counts and published capacities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.dispatch import BACKENDS
from cost_models.memory import decode_memory, sequence_bytes, state_bytes
from cost_models.rows import Rows
from cost_models.specs.workload import Workload
from tests.conftest import machine_of

TWO_K = Workload(isl_tokens=2000, osl_tokens=2000)


def test_routed_experts_of_deepseek_v3_at_ep32_in_bf16():
    # 58 layers x 256 x 3 x 7168 x 2048 = 653.9e9 parameters; / 32 x 2 B = 40.9e9 B
    memory = decode_memory(machine_of("hgx-h20", recipe="bf16"), Rows.of(dp=32, ep=32, backend=1), TWO_K)
    assert memory.lines["expert weights"][0] == pytest.approx(653.9e9 / 32 * 2, rel=1e-3)


def test_mla_cache_is_576_elements_stored_once():
    # 576 x 61 layers x 1 B (FP8) = 35,136 B per token, as the GB200 deployment states
    assert state_bytes(machine_of(), Rows.of(dp=8, ep=8, backend=1), 1)[0] == 35_136


def test_tensor_parallelism_replicates_the_latent_and_shards_kv_heads():
    mla, gqa = machine_of(), machine_of(model="llama-3.1-70b", recipe="bf16")
    assert state_bytes(mla, Rows.of(tp=4), 1)[0] == state_bytes(mla, Rows.of(tp=1), 1)[0]
    # 80 layers x 2 x 8 heads x 128 x 2 B = 327,680 B; eight KV heads: TP16 shards no further than TP8
    per_tp = [state_bytes(gqa, Rows.of(tp=tp), 1)[0] for tp in (1, 8, 16)]
    assert per_tp == [327_680, 40_960, 40_960]


def test_published_gb200_run_had_room_for_its_cache():
    # vLLM on 8 GB200: 119.52 GB of KV cache (3,401,600 tokens) per GPU beside NVFP4 weights
    memory = decode_memory(
        machine_of(), Rows.of(dp=8, ep=8, batch=1024, backend=BACKENDS.index("allgather_reducescatter")), TWO_K
    )
    free = 198.67e9 * 0.97 - memory.without_kv_bytes[0]
    assert free == pytest.approx(119.52e9, rel=0.05)


def test_low_latency_buffers_by_their_formula():
    # 4 x 288 experts x 256 tokens x (2 x 7168 + 7168/32) B = 4.29e9 B (DeepEP layout)
    rows = Rows.of(dp=72, ep=72, batch=256, redundant_experts=32, backend=BACKENDS.index("deepep_low_latency"))
    memory = decode_memory(machine_of(), rows, TWO_K)
    assert memory.lines["dispatch buffers"][0] == pytest.approx(4.29e9, rel=2e-3)


def test_pipeline_stages_share_weights_and_cache():
    machine = machine_of(model="llama-3.1-70b", recipe="bf16")
    whole, halved = (decode_memory(machine, Rows.of(tp=4, pp=pp, batch=8), TWO_K).lines for pp in (1, 2))
    assert halved["kv_cache"][0] == pytest.approx(whole["kv_cache"][0] / 2)
    assert halved["other weights"][0] < whole["other weights"][0]


def test_mean_context_is_length_biased():
    assert Workload(isl_tokens=1000, osl_tokens=500).context_tokens == 1250
    assert Workload(isl_tokens=1000, osl_tokens=500, mean_context_tokens=1100).context_tokens == 1100


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 5000))
def test_batch_that_fits_inverts_the_bytes_needed(isl, osl, batch):
    sequence = sequence_bytes(machine_of(), Rows.of(), Workload(isl_tokens=isl, osl_tokens=osl))
    needed = sequence.of_batch(batch)
    assert sequence.fitting(needed) == batch
    assert sequence.fitting(needed * (1 - 1e-6)) <= batch


def test_a_single_sequence_needs_its_full_length():
    assert sequence_bytes(machine_of(), Rows.of(), TWO_K).of_batch(1) == pytest.approx(4000 * 35_136, rel=0.05)

"""Laws that every attention kind obeys; a new kind needs an example and one calibrated machine here, nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.attention.base import AttentionKind
from cost_models.attention.block_sparse import BlockSparseSpec
from cost_models.attention.compressed import CompressedSpec
from cost_models.attention.dsa import DsaSpec
from cost_models.attention.gated_delta import GatedDeltaSpec
from cost_models.attention.gqa import GqaSpec
from cost_models.attention.kda import KdaSpec
from cost_models.attention.mamba2 import Mamba2Spec
from cost_models.attention.mla import MlaSpec
from cost_models.attention.registry import KINDS
from cost_models.attention.windowed_mla import WindowedMlaSpec
from cost_models.calibration import Calibration
from cost_models.catalog import calibration_for, load_hardware, load_recipe
from cost_models.context_parallel import COMBINE, GATHER
from cost_models.errors import MissingFactError
from cost_models.machine import Machine
from cost_models.memory import decode_memory, state_bytes
from cost_models.operators import Timing, attention_operators
from cost_models.prefill import PromptBatch
from cost_models.prefill import prompt_attention_operators as prefill_operators
from cost_models.rows import Rows
from cost_models.specs.model import DenseSpec, ModelSpec
from cost_models.specs.workload import Workload

HIDDEN = 4096
LATENT = {"heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_dim": 128, "qk_rope_dim": 64, "v_dim": 128}
STREAM = {
    "heads": 128,
    "head_dim": 512,
    "rope_dim": 64,
    "q_lora_rank": 1536,
    "o_lora_rank": 1024,
    "o_groups": 16,
    "window_tokens": 128,
}
EXAMPLES: dict[str, AttentionKind] = {
    "mla": MlaSpec(**LATENT),
    "mla without a latent of queries": MlaSpec(**{**LATENT, "heads": 32, "q_lora_rank": 0}),
    "mla with a gate": MlaSpec(**{**LATENT, "heads": 96}, output_gate=True),
    "mla with a gate per head": MlaSpec(**{**LATENT, "heads": 32, "q_lora_rank": 0}, output_gate=True, head_gate=True),
    "windowed_mla": WindowedMlaSpec(**{**LATENT, "heads": 64, "kv_lora_rank": 1024}, window_tokens=512),
    "gqa": GqaSpec(heads=64, kv_heads=8, head_dim=128, bias=True, qk_norm=True, sinks=True),
    "gqa with a window": GqaSpec(heads=64, kv_heads=8, head_dim=64, window_tokens=128),
    "gqa normed across heads": GqaSpec(heads=48, kv_heads=8, head_dim=128, qk_norm=True, qk_norm_across_heads=True),
    "gqa with a gate": GqaSpec(heads=32, kv_heads=2, head_dim=256, qk_norm=True, output_gate=True),
    "gqa with narrow values": GqaSpec(heads=64, kv_heads=4, head_dim=192, value_dim=128, sinks=True),
    "gqa whose keys are values": GqaSpec(heads=32, kv_heads=4, head_dim=512, qk_norm=True, keys_are_values=True),
    "block_sparse": BlockSparseSpec(
        heads=64, kv_heads=4, head_dim=128, qk_norm=True, block_tokens=128, top_blocks=16, index_heads=4, index_dim=128
    ),
    "dsa": DsaSpec(**LATENT, index_heads=64, index_dim=128, top_k=2048),
    "dsa that reuses an index": DsaSpec(**LATENT, index_heads=32, index_dim=128, top_k=2048, computes_index=False),
    "dsa with pooled keys, without rope": DsaSpec(
        **{**LATENT, "qk_rope_dim": 0}, index_heads=32, index_dim=128, top_k=2048, key_pool=4
    ),
    "compressed with an indexer": CompressedSpec(**STREAM, ratio=4, index_heads=64, index_dim=128, top_k=1024),
    "compressed": CompressedSpec(**STREAM, ratio=128),
    "window alone": CompressedSpec(**STREAM, ratio=0),
    "gated_delta": GatedDeltaSpec(key_heads=16, value_heads=64, key_dim=128, value_dim=128, conv=4),
    "kda": KdaSpec(heads=96, head_dim=128, conv=4, full_rank_gate=True),
    "kda with a whole decay": KdaSpec(heads=32, head_dim=128, conv=4, full_rank_gate=True, full_rank_decay=True),
    "kda with a narrow gate": KdaSpec(heads=32, head_dim=128, conv=4),
    "mamba2": Mamba2Spec(heads=128, head_dim=64, state_dim=128, groups=8, conv=4),
}
MACHINES = (("gb200-nvl72", "vllm"), ("hgx-h200", "sglang"))
PHASES = ("decode", "prefill")


def machine_with(kind: AttentionKind, hw: str = "gb200-nvl72", engine: str = "vllm", layers: int = 4) -> Machine:
    hardware = load_hardware(hw)
    model = ModelSpec.uniform(
        name="example", title="", source="", hidden=HIDDEN, vocab=1000, max_context_tokens=2**20,
        layers=layers, attention=kind, dense_intermediate=1024,
    )  # fmt: skip
    return Machine(model, hardware, load_recipe("bf16"), calibration_for(hardware.gpu.name, engine))


def decode(machine: Machine, sequences=8.0, queries=1.0, tp=1.0, context=4096.0, dcp=1.0) -> dict[str, Timing]:
    (kind,) = machine.model.attentions
    b, q, t, n = (np.atleast_1d(np.asarray(x, dtype=float)) for x in np.broadcast_arrays(sequences, queries, tp, dcp))
    return attention_operators(machine, kind, b, q, t, context, n)


def prefill(machine: Machine, sequences=1.0, new=2048.0, prefix=0.0, tp=1.0, dcp=1.0) -> dict[str, Timing]:
    (kind,) = machine.model.attentions
    columns = np.broadcast_arrays(sequences, new, prefix, tp, dcp)
    b, s, x, t, n = (np.atleast_1d(np.asarray(v, dtype=float)) for v in columns)
    return prefill_operators(machine, kind, PromptBatch(b, s, x, np.ones(len(b))), t, n)


def total_s(operators: dict[str, Timing]) -> np.ndarray:
    return np.sum([timing.time_s for timing in operators.values()], axis=0)


@pytest.fixture(params=EXAMPLES.values(), ids=EXAMPLES.keys(), scope="module")
def kind(request: pytest.FixtureRequest) -> AttentionKind:
    return request.param


def test_every_registered_kind_has_an_example():
    assert {example.kind for example in EXAMPLES.values()} == set(KINDS)


def test_nothing_to_do_costs_nothing(kind):
    machine = machine_with(kind)
    assert total_s(decode(machine, sequences=0.0)) == 0
    assert total_s(prefill(machine, sequences=0.0)) == 0


@pytest.mark.parametrize(("hw", "engine"), MACHINES)
def test_decode_never_gets_cheaper_with_context_or_sequences(kind, hw, engine):
    machine = machine_with(kind, hw, engine)
    by_context = [total_s(decode(machine, context=tokens))[0] for tokens in np.geomspace(64, 200_000, 40)]
    assert np.all(np.diff(by_context) >= -1e-12)
    batches = np.unique(np.rint(np.geomspace(1, 2048, 60)))
    by_batch = np.sum([t.time_s for name, t in decode(machine, sequences=batches).items() if name in kind.sources(
        machine.recipe, "decode", {"sequences": 1.0, "context_tokens": 1.0, "tp": 1.0})], axis=0)  # fmt: skip
    assert np.all(np.diff(by_batch) >= -1e-12)


@pytest.mark.parametrize(("hw", "engine"), MACHINES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_no_operator_beats_its_roofline(kind, hw, engine, data):
    machine = machine_with(kind, hw, engine)
    tp = data.draw(st.sampled_from((1, 2, 8)))
    batch = data.draw(st.integers(1, 2000))
    context = data.draw(st.integers(1, 150_000))
    new = data.draw(st.integers(1, 40_000))
    dcp = data.draw(st.sampled_from([n for n in (1, 2, 8) if n <= kind.context_ranks(tp)]))
    for operators in (decode(machine, batch, 1.0, tp, context, dcp), prefill(machine, 1.0, new, context, tp, dcp)):
        for name, timing in operators.items():
            assert timing.time_s[0] >= timing.bound_s[0] * (1 - 1e-9), name


def test_weights_in_memory_are_the_matrices(kind):
    machine = machine_with(kind, layers=3)
    lines = decode_memory(machine, Rows.of(batch=1), Workload(isl_tokens=100, osl_tokens=100)).lines
    matrices = [*kind.matrices(HIDDEN, 3), *DenseSpec(intermediate=1024).matrices(HIDDEN, 3), *machine.model.head_matrices()]
    assert lines["other weights"][0] == pytest.approx(2 * sum(m.parameters for m in matrices))
    counted = machine.model.parameters() - sum(m.parameters for m in matrices)
    assert counted == 7 * HIDDEN + kind.vector_parameters(3)  # two norms a layer and the last one


def test_state_grows_with_context_and_sharding_loses_none_of_it(kind):
    machine = machine_with(kind)
    contexts = np.rint(np.geomspace(1, 2**20, 60))
    assert np.all(np.diff(kind.state_bytes(contexts, 1, machine.recipe)) >= 0)
    whole = state_bytes(machine, Rows.of(), 5000)[0]
    assert whole == pytest.approx(4 * float(kind.state_bytes(5000, 1, machine.recipe)))
    for tp in (1, 2, 4, 8, 16):
        assert kind.state_bytes(5000, tp, machine.recipe) * tp == pytest.approx(whole / 4 * kind.state_copies(tp))


def test_ranks_that_share_a_context_hold_all_of_it_between_them(kind):
    machine, tp = machine_with(kind), 16
    one = float(kind.state_bytes(40_000, tp, machine.recipe))
    most = float(kind.context_ranks(tp))
    assert 1 <= most <= max(kind.state_copies(tp), 1)
    assert (most > 1) <= (kind.shared_context is not None)
    for dcp in (1, 2, 4):
        held = float(kind.shared_state_bytes(40_000, tp, dcp, machine.recipe))
        assert held == pytest.approx(one / dcp if kind.shared_context else one)


def test_sharing_a_context_changes_the_core_and_what_is_exchanged_alone(kind):
    machine = machine_with(kind)
    plain, one = decode(machine, tp=16.0, context=60_000.0), decode(machine, tp=[16.0, 16.0], context=60_000.0, dcp=[1.0, 2.0])
    assert all(one[name].time_s[0] == timing.time_s[0] for name, timing in plain.items())
    core = {name for name in plain if one[name].time_s[1] != plain[name].time_s[0]}
    added = {name: one[name].time_s for name in set(one) - set(plain)}
    if kind.shared_context is None:
        assert not core
        assert not added
        return
    assert core <= set(kind.sources(machine.recipe, "decode", {"sequences": 8.0, "context_tokens": 1.0, "tp": 1.0}))
    assert set(added) == {GATHER, COMBINE}
    assert all(time_s[0] == 0 and time_s[1] > 0 for time_s in added.values())
    for name in core:  # twice the heads over half of the keys: between half of the work and all of it
        assert plain[name].bound_s[0] / 2 * (1 - 1e-12) <= one[name].bound_s[1] <= plain[name].bound_s[0]


def test_nothing_to_exchange_costs_nothing(kind):
    machine = machine_with(kind)
    assert total_s(decode(machine, sequences=0.0, tp=16.0, dcp=2.0)) == 0
    assert total_s(prefill(machine, sequences=0.0, prefix=100.0, tp=16.0, dcp=2.0)) == 0


def test_ranks_hold_the_matrices_between_them(kind):
    for matrix in kind.matrices(HIDDEN, 1):
        for tp in (2, 8):
            held = float(matrix.rank_n(tp) * matrix.rank_k(tp)) * tp
            assert matrix.n * matrix.k <= held * (1 + 1e-12)
            assert held <= matrix.n * matrix.k * tp


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("hw", "engine"), MACHINES)
def test_every_operator_is_calibrated_and_says_by_what(kind, hw, engine, phase):
    machine = machine_with(kind, hw, engine)
    inputs = {"sequences": 8.0, "tp": 2.0, "context_tokens": 4096.0, "new_tokens": 512.0, "prefix_tokens": 0.0}
    sources = kind.sources(machine.recipe, phase, inputs)
    priced = decode(machine, tp=2.0) if phase == "decode" else prefill(machine, tp=2.0)
    gemms = {matrix.name for matrix in kind.matrices(HIDDEN, 1)}
    assert set(sources) <= set(priced)
    assert set(priced) - gemms - {"tp_all_reduce", "norm_all_reduce", "elementwise"} <= set(sources)
    for family, variant, box in sources.values():
        entry = machine.calibration.entry(family, variant)
        assert set(entry.box) <= set(box) | {"kv_heads", "head_dim", "m", "n", "k"}
    for family, variant in kind.requirements(machine.recipe, phase):
        assert machine.calibration.has(family, variant)


@pytest.mark.parametrize("phase", PHASES)
def test_what_is_not_calibrated_is_named(kind, phase):
    machine = machine_with(kind)
    (family, _), *_ = kind.requirements(machine.recipe, phase)
    bare = Calibration.model_validate({**machine.calibration.model_dump(), "families": {
        name: entries for name, entries in machine.calibration.families.items() if name != family}})  # fmt: skip
    lacking = Machine(machine.model, machine.hardware, machine.recipe, bare)
    with pytest.raises(MissingFactError, match=family):
        decode(lacking) if phase == "decode" else prefill(lacking)


def test_prefill_of_one_token_runs_the_projections_of_a_decode_step(kind):
    machine = machine_with(kind)
    one, step = prefill(machine, new=1.0, prefix=0.0), decode(machine, sequences=1.0, context=1.0)
    shared = {matrix.name for matrix in kind.matrices(HIDDEN, 1)} & set(step)
    assert shared
    assert all(one[name].time_s == step[name].time_s for name in shared)


def test_equal_layers_are_one_group_and_documents_round_trip(kind):
    model = machine_with(kind, layers=6).model
    assert len(model.groups) == 1
    again = ModelSpec.model_validate_json(model.model_dump_json())
    assert again == model
    assert type(next(iter(again.attentions))) is type(kind)

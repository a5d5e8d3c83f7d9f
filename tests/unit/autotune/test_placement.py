"""Placing expert replicas: bounds, EPLB as baseline, formats and files."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.documents.problem import Problem
from autotune.errors import ProblemError
from autotune.exporters.folders import plan_scripts
from autotune.placement.eplb import balanced_packing, global_placement, hierarchical_placement, replicate_experts
from autotune.placement.formats import FILES, write_files
from autotune.placement.loads import Loads, read_loads
from autotune.placement.moving import replace_some
from autotune.placement.placing import place, place_again, sweep_redundancy
from autotune.placement.skew import RecordedSkew
from autotune.placement.solve import (
    counts_of,
    gpu_loads,
    lower_bound,
    normalised,
    pack,
    place_layer,
    relieve,
    replicate,
    worst_gpu,
)
from autotune.placement.synthetic import described_drift, synthetic_loads
from autotune.predicting.step import predict
from autotune.searching.pools import search
from cost_models.catalog import load_model

MODEL = load_model("deepseek-v3")


def skewed(seed: int, scenarios: int, experts: int, sigma: float = 1.0) -> np.ndarray:
    """Log-normal loads with a common part, so scenarios resemble each other."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, sigma, experts)
    return np.exp(common + rng.normal(0, sigma / 3, (scenarios, experts)))


def model_loads(layers: int = 58, scenarios: int = 2, seed: int = 0) -> Loads:
    counts = np.stack([skewed(seed + i, scenarios, 256) for i in range(layers)], axis=1) * 1e4
    return Loads(tuple(f"workload {i}" for i in range(scenarios)), np.rint(counts))


def test_replication_by_hand():
    # loads 6, 3, 1 on five slots: 6 -> 3 + 3 with one more replica, then 3 and 3, 3 tie: the first gets it, 2 + 2 + 2
    assert replicate(np.array([[6.0, 3.0, 1.0]]), 5).tolist() == [3, 1, 1]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 4))
def test_greedy_replication_has_the_smallest_busiest_replica(seed, extra):
    loads = normalised(skewed(seed, 2, 4))
    best = min(
        float((loads / np.array(counts)).max())
        for counts in itertools.product(range(1, extra + 2), repeat=4)
        if sum(counts) == 4 + extra
    )
    assert float((loads / replicate(loads, 4 + extra)).max()) == pytest.approx(best)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 3),
    st.sampled_from([(16, 4), (16, 8), (24, 8), (32, 8)]),
    st.sampled_from([0.3, 1.0, 2.0]),
)
def test_never_worse_than_eplb_and_never_better_than_the_bound(seed, scenarios, size, sigma):
    experts, gpus = size
    loads = skewed(seed, scenarios, experts, sigma)
    slots = experts + gpus
    placed = place_layer(loads, slots, gpus)
    shares = normalised(loads)
    assert counts_of(placed, experts).min() >= 1
    assert placed.shape == (gpus, slots // gpus)
    assert gpu_loads(shares, placed).sum(axis=1) == pytest.approx(1.0)
    baseline = global_placement(shares.sum(axis=0), slots, gpus)
    assert lower_bound(loads, slots, gpus) <= worst_gpu(shares, placed) + 1e-12
    assert worst_gpu(shares, placed) <= worst_gpu(shares, baseline) + 1e-12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_swaps_only_relieve(seed):
    loads = normalised(skewed(seed, 2, 16))
    packed = pack(loads, replicate(loads, 24), 8)
    relieved = relieve(loads, packed)
    assert worst_gpu(loads, relieved) <= worst_gpu(loads, packed)
    assert (counts_of(relieved, 16) == counts_of(packed, 16)).all()


def test_near_the_best_of_all_placements_on_small_cases():
    # six experts, no replicas, three GPUs of two: 15 pairings
    found, best = [], []
    for seed in range(30):
        loads = normalised(skewed(seed, 1, 6))
        found.append(worst_gpu(loads, place_layer(loads, 6, 3)))
        best.append(min(worst_gpu(loads, np.array(p).reshape(3, 2)) for p in itertools.permutations(range(6))))
    assert np.allclose(found, best)


def test_scenarios_that_disagree_are_balanced_where_eplb_sees_only_their_sum():
    # the sum is even, so EPLB pairs expert i with i + 4: busy in the same workload
    loads = np.array([[4, 4, 1, 1, 4, 4, 1, 1], [1, 1, 4, 4, 1, 1, 4, 4]], dtype=float)
    shares = normalised(loads)
    assert worst_gpu(shares, place_layer(loads, 8, 4)) == pytest.approx(0.25)  # one of each kind on every GPU
    assert worst_gpu(shares, global_placement(shares.sum(axis=0), 8, 4)) == pytest.approx(0.4)


def test_eplb_by_hand():
    assert balanced_packing(np.array([4.0, 3.0, 2.0, 1.0]), 2).tolist() == [0, 1, 1, 0]
    assert replicate_experts(np.array([6.0, 3.0, 1.0]), 5).tolist() == [0, 1, 2, 0, 0]
    placed = hierarchical_placement(np.arange(1.0, 17.0), 16, 4, 4, 2)
    assert sorted(placed.ravel().tolist()) == list(range(16))
    for node in (placed[:2], placed[2:]):  # groups of four stay on one node
        assert all(len({int(e) // 4 for e in gpu} - {int(e) // 4 for e in node.ravel()}) == 0 for gpu in node)
        assert len({int(e) // 4 for e in node.ravel()}) == 2


def test_a_placement_of_a_whole_model(tmp_path):
    placement = place(model_loads(), MODEL, 32, 32, 8)
    assert len(placement.experts) == 58
    assert placement.balance.worst_scenario > placement.eplb.worst_scenario
    assert all(layer.placed <= layer.bound + 1e-12 for layer in placement.layers)
    assert placement.layers[0].layer == 3  # three dense layers come first
    paths = {path.name: path for path in write_files(placement, MODEL, tmp_path)}
    assert set(paths) == set(FILES)
    flat = [[e for gpu in layer for e in gpu] for layer in placement.experts]
    sglang = json.loads(paths["sglang_expert_location.json"].read_text())["physical_to_logical_map"]
    assert len(sglang) == 61
    assert sglang[3:] == flat
    assert all(set(layer) == set(range(256)) for layer in sglang)
    trtllm = yaml.load(paths["trtllm_moe_load_balancer.yaml"].read_text(), Loader=yaml.CSafeLoader)
    assert trtllm["num_slots"] == 288
    assert list(trtllm["initial_global_assignments"].values()) == flat
    ascend = json.loads(paths["vllm_ascend_expert_map.json"].read_text())
    assert ascend["moe_layer_count"] == 58
    assert [d["device_expert"] for d in ascend["layer_list"][0]["device_list"]] == [list(gpu) for gpu in placement.experts[0]]
    assert type(placement).model_validate_json(paths["placement.json"].read_text()) == placement


COUNTS = np.rint(np.stack([skewed(i, 1, 256)[0] for i in range(58)]) * 1000)


@pytest.mark.parametrize("dense", [False, True])
def test_loads_are_read_from_every_format(dense, tmp_path):
    whole = np.concatenate([np.zeros((3, 256)), COUNTS]) if dense else COUNTS
    np.savez(tmp_path / "a.npz", logical_count=whole)
    np.save(tmp_path / "b.npy", np.stack([whole, whole]))  # two steps: summed
    np.savetxt(tmp_path / "c.csv", whole, delimiter=",")
    loads = read_loads([tmp_path / name for name in ("a.npz", "b.npy", "c.csv")], MODEL)
    assert loads.counts.shape == (3, 58, 256)
    assert (loads.counts[1] == 2 * COUNTS).all()
    assert (loads.counts[2] == COUNTS).all()
    assert loads.drift == pytest.approx(0.0)


def test_chosen_experts_per_token_are_counted(tmp_path):
    rng = np.random.default_rng(0)
    chosen = np.stack([np.stack([rng.permutation(256)[:8] for _ in range(58)]) for _ in range(400)])  # tokens, layers, top k
    np.save(tmp_path / "tokens.npy", chosen)
    loads = read_loads([tmp_path / "tokens.npy"], MODEL)
    assert loads.counts[0].sum(axis=1).tolist() == [3200.0] * 58
    assert loads.counts[0, 5, 7] == (chosen[:, 5] == 7).sum()


class _Storage:
    """Pickles as torch does: a storage by persistent id, rebuilt by a torch function."""


def torch_file(path: Path, array: np.ndarray, poison: object = None) -> None:
    """A file as torch.save writes it, made without torch."""

    class Stub:
        def __init__(self, module: str, name: str) -> None:
            self.module, self.name = module, name

    class Writer(pickle._Pickler):  # the Python pickler lets a stub be written as a global of a module that is not there
        def save(self, obj, save_persistent_id=True):
            if isinstance(obj, Stub):
                self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
                return
            super().save(obj, save_persistent_id)

        def persistent_id(self, obj):
            return ("storage", Stub("torch", "LongStorage"), "0", "cpu", array.size) if isinstance(obj, _Storage) else None

    buffer = io.BytesIO()
    writer = Writer(buffer, protocol=2)
    strides = tuple(s // array.itemsize for s in array.strides)
    writer.write(pickle.PROTO + bytes([2]))
    writer.write(pickle.EMPTY_DICT)
    writer.save("logical_count")
    writer.save(Stub("torch._utils", "_rebuild_tensor_v2"))
    writer.save((_Storage(), 0, array.shape, strides, False))
    writer.write(pickle.REDUCE + pickle.SETITEM)
    if poison is not None:
        writer.save("x")
        writer.save(poison)
        writer.write(pickle.SETITEM)
    writer.write(pickle.STOP)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/data/0", array.tobytes())


def test_recorder_dumps_are_read_without_torch(tmp_path):
    counts = np.concatenate([np.zeros((3, 256)), COUNTS]).astype(np.int64)
    torch_file(tmp_path / "dump.pt", counts)
    assert (read_loads([tmp_path / "dump.pt"], MODEL).counts[0] == COUNTS).all()


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    torch_file(tmp_path / "evil.pt", COUNTS.astype(np.int64), poison=print)
    with pytest.raises(ProblemError, match=r"holds __builtin__\.print, which is not a plain tensor; nothing was run"):
        read_loads([tmp_path / "evil.pt"], MODEL)


def _save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (COUNTS[:, :100], "58 layers x 100 experts; deepseek-v3 has 61 layers"),
        (COUNTS[:20], "20 layers x 256 experts"),
        (np.where(np.arange(58)[:, None] == 4, 0, COUNTS), "no tokens in MoE layer 7"),
        (np.where(np.arange(58)[:, None] == 4, np.nan, COUNTS), "finite and not negative"),
        (-COUNTS, "finite and not negative"),
        (np.zeros((5, 58, 8), dtype=np.int64) + 300, "experts 300..300 chosen"),
        (np.zeros(7), "1 dimensions"),
    ],
)
def test_loads_that_make_no_sense_are_refused(array, message, tmp_path):
    with pytest.raises(ProblemError, match=message):
        read_loads([_save(tmp_path / "loads.npy", array)], MODEL)


def test_slots_must_divide():
    with pytest.raises(ProblemError, match="288 physical experts do not divide over 30 GPUs"):
        place(model_loads(), MODEL, 30, 32, 8)
    with pytest.raises(ProblemError, match="use 32 redundant experts"):
        place(model_loads(), MODEL, 72, 0, 8)


@pytest.mark.parametrize(
    ("name", "text", "message"), [("a.txt", "1", "are read from"), ("b.csv", "x,y", "not a table"), ("c.pt", "1", "torch.save")]
)
def test_files_of_other_kinds_are_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ProblemError, match=message):
        read_loads([tmp_path / name], MODEL)


def save_loads(folder: Path, sigma: float) -> list[str]:
    """Two synthetic workloads."""
    paths = []
    for workload in range(2):
        counts = np.stack([skewed(i, 2, 256, sigma)[workload] for i in range(58)]) * 1e4
        paths.append(str(_save(folder / f"workload{workload}_{sigma}.npy", np.rint(counts + 1))))
    return paths


def test_recorded_skew_is_that_of_the_placement():
    loads = model_loads(layers=6)
    with_map, with_eplb = (RecordedSkew(loads, loads_maps=maps) for maps in (True, False))
    linear = with_map.of(32, 0, 0)
    assert linear > with_eplb.of(32, 32, 1) > with_map.of(32, 32, 1) > 1.0
    expected = np.mean([32 * worst_gpu(layer, np.arange(256).reshape(32, 8)) for layer in with_map.layers])
    assert linear == pytest.approx(expected, rel=0.02)  # the worst workload on average, against the worst in every layer
    assert np.isnan(with_map.of(1, 0, 0))
    assert np.isnan(with_map.of(24, 0, 0))  # 256 experts do not divide


@pytest.mark.slow
def test_recorded_loads_change_the_plan(tmp_path):
    def best(**changes):
        return search(Problem(hardware="gb200-nvl72", engine="sglang", gpus=16, trials=0, **changes)).best

    even, skew = (best(expert_load=tuple(save_loads(tmp_path, sigma))) for sigma in (0.05, 2.0))
    assert even.prediction.tokens_per_s_per_gpu > skew.prediction.tokens_per_s_per_gpu
    assert even.deployment.pool.expert_balance.skew < skew.deployment.pool.expert_balance.skew
    assert skew.deployment.pool.redundant_experts >= even.deployment.pool.redundant_experts > 0
    assert predict(skew.deployment) == skew.prediction


@pytest.mark.slow
def test_a_tensorrt_llm_plan_from_recorded_loads_starts_from_its_map(tmp_path):
    """Its load balancer holds copies that nothing moves; the settings of the best plan have every layer's slots."""
    problem = Problem(
        hardware="gb200-nvl72", engine="trtllm", gpus=16, trials=0, top_k=1, expert_load=tuple(save_loads(tmp_path, 1.5))
    )
    plan = search(problem).best
    pool = plan.deployment.pool
    assert (pool.expert_balance.kind, plan.placement is not None) == ("static", True)
    (settings,) = (yaml.safe_load(script.text) for script in plan_scripts(plan) if script.name.endswith(".yml"))
    balancer = settings["moe_config"]["load_balancer"]
    assert balancer["num_slots"] == 256 + pool.redundant_experts
    assert {len(slots) for slots in balancer["initial_global_assignments"].values()} == {balancer["num_slots"]}


def set_of(slots: np.ndarray) -> Counter:
    """What one GPU holds, whatever the order."""
    return Counter(slots.tolist())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12))
def test_few_moves_help_and_never_hurt(seed, max_moves):
    old, new = (Loads(("a",), np.stack([skewed(seed + shift + i, 1, 16) for i in range(3)], axis=1)) for shift in (0, 100))
    current = np.stack([place_layer(old.layer(i), 24, 8) for i in range(3)])
    changed, moves = replace_some(new, current, max_moves)
    pairs = [(set_of(a), set_of(b)) for a, b in zip(current.reshape(24, 3), changed.reshape(24, 3), strict=True)]
    really = sum(3 - (before & after).total() for before, after in pairs)
    assert really <= moves <= max_moves
    for i in range(3):
        share = normalised(new.layer(i))
        assert counts_of(changed[i], 16).min() >= 1
        assert worst_gpu(share, changed[i]) <= worst_gpu(share, current[i]) + 1e-12


@pytest.mark.slow
def test_more_moves_balance_better_up_to_a_fresh_placement():
    old, new = model_loads(layers=58, scenarios=1), model_loads(layers=58, scenarios=1, seed=500)
    held = place(old, MODEL, 32, 32, 8)
    found = [place_again(new, MODEL, held, moves, 8).balance.worst_scenario for moves in (0, 100, 1000)]
    fresh = place(new, MODEL, 32, 32, 8).balance.worst_scenario
    assert found[0] < found[1] < found[2] < fresh
    assert 90 <= place_again(new, MODEL, held, 100, 8).moves <= 100  # some swaps undo others


def test_loads_of_another_model_are_refused(tmp_path):
    problem = Problem(hardware="hgx-h200", model="qwen3-235b-a22b", expert_load=tuple(save_loads(tmp_path, 1.0)))
    with pytest.raises(ProblemError, match="58 layers x 256 experts; qwen3-235b-a22b has"):
        search(problem)


@pytest.mark.parametrize(("spread", "apart"), [(0.5, 0.0), (1.0, 0.6), (1.7, 0.4)])
def test_synthetic_loads_have_the_spread_they_were_asked_for(spread, apart):
    loads = synthetic_loads(MODEL, spread, 2 if apart else 1, apart)
    found = described_drift(loads)
    assert found[0] == pytest.approx(spread, rel=0.08)
    assert found[1] == pytest.approx(apart, rel=0.08)
    assert (loads.counts.max(axis=2) <= loads.counts.sum(axis=2) / 8 * 1.01).all()  # one choice of every token at most


def test_workloads_cannot_be_further_apart_than_their_spread_allows():
    with pytest.raises(ProblemError, match=r"at most 1\.41"):
        synthetic_loads(MODEL, 1.0, 2, 1.5)


@pytest.mark.slow
def test_more_replicas_balance_better_and_never_beyond_the_bound():
    choices = sweep_redundancy(synthetic_loads(MODEL, 1.7, 2, 0.4), MODEL, 64)
    assert [choice.slots_per_gpu for choice in choices] == [4, 5, 6, 7, 8]
    assert all(choice.eplb <= choice.placed <= choice.bound for choice in choices)
    placed = [choice.placed for choice in choices]
    assert placed == sorted(placed)

"""Flag spaces by version, the evaluator against predict, and the study."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

from autotune.documents.problem import Problem
from autotune.errors import OutputError
from autotune.flags.decode import DecodeFlagEvaluator, api_servers
from autotune.flags.evaluate import CONSTRAINTS, FlagEvaluator
from autotune.flags.space import FlagSpace, flag_space
from autotune.flags.study import tune_flags
from autotune.layouts.table import largest_fitting_size
from autotune.predicting.step import predict
from autotune.resolving import resolve_problem
from autotune.searching.realising import deployment_of
from cost_models.dispatch import BACKENDS
from cost_models.rows import Rows

AGRS, LL, ONE_SIDED = (BACKENDS.index(b) for b in ("allgather_reducescatter", "deepep_low_latency", "nvlink_one_sided"))


def evaluator_of(
    version: str | None = None, engine: str = "vllm", backend: int = LL, batch: int = 256, **problem
) -> FlagEvaluator:
    resolved = resolve_problem(Problem(hardware="gb200-nvl72", gpus=8, engine=engine, engine_version=version, **problem))
    row = Rows.of(dp=8, ep=8, batch=batch, backend=backend, eplb=1, eplb_interval_steps=3000)
    space = flag_space(resolved, row, int(largest_fitting_size(resolved, row)[0]))
    return DecodeFlagEvaluator(resolved, row, space, 1)


@pytest.mark.parametrize(
    ("version", "has", "lacks"),
    [
        ("0.11", {"moe_dp_chunk_tokens", "output_proc_chunk"}, {"enable_moe_dp_chunk", "enable_activation_chunk"}),
        ("0.13", {"moe_dp_chunk_tokens", "enable_moe_dp_chunk", "enable_activation_chunk"}, set()),
        ("0.17", {"moe_dp_chunk_tokens", "enable_moe_dp_chunk", "enable_activation_chunk"}, set()),
        ("0.18", {"moe_dp_chunk_tokens", "enable_moe_dp_chunk"}, {"enable_activation_chunk", "activation_chunk_rows"}),
        ("0.24", {"output_proc_chunk"}, {"moe_dp_chunk_tokens", "enable_moe_dp_chunk"}),
        ("0.33", {"output_proc_chunk"}, {"moe_dp_chunk_tokens", "enable_moe_dp_chunk"}),
    ],
)
def test_a_knob_the_version_lacks_is_not_searched(version, has, lacks):
    names = set(evaluator_of(version).space.values)
    assert has <= names
    assert not lacks & names


@pytest.mark.parametrize(("version", "servers"), [("0.13", 2), ("0.15", 8), ("0.33", 8)])
def test_api_servers_follow_the_version(version, servers):
    # DP8 on two 4-GPU trays: one API server per tray, from 0.15 on one per DP rank
    evaluator = evaluator_of(version)
    assert api_servers(evaluator.resolved, evaluator.row) == servers


@pytest.mark.parametrize("version", ["0.13", "0.33"])
def test_tensor_parallel_instances_have_one_api_server(version):
    resolved = resolve_problem(Problem(hardware="gb200-nvl72", gpus=8, engine="vllm", engine_version=version))
    assert api_servers(resolved, Rows.of(tp=8, batch=64)) == 1


def test_one_sided_backend_appears_with_its_version():
    assert "flashinfer_nvlink_one_sided" not in evaluator_of("0.17").space.values["all2all_backend"]
    assert "flashinfer_nvlink_one_sided" in evaluator_of("0.18").space.values["all2all_backend"]


def test_engine_default_of_the_memory_fraction_follows_the_version():
    assert evaluator_of("0.19").space.defaults["gpu_memory_fraction"] == 0.9
    assert evaluator_of("0.24").space.defaults["gpu_memory_fraction"] == 0.92


def test_index_and_params_are_inverse():
    space = FlagSpace({"a": (1, 2, 3), "b": (True, False)}, {}, {})
    grid = space.grid()
    assert space.size == space.distinct == len(grid.codes) == 6
    for position in range(space.size):
        params = grid.params_at(position)
        assert grid.positions(space.columns([params])) == [position]
        assert params == {"a": 1 + position // 2, "b": position % 2 == 0}


def test_knobs_that_do_not_count_are_not_enumerated():
    # off: 1 way, whatever its interval; on: 3 intervals; each with 2 batches
    space = FlagSpace({"enable_eplb": (False, True), "eplb_interval_steps": (3000, 1000, 300), "max_num_seqs": (8, 16)}, {}, {})
    grid = space.grid()
    assert (space.size, space.distinct, len(grid.codes)) == (12, 8, 8)
    off = [{"enable_eplb": False, "eplb_interval_steps": steps, "max_num_seqs": 16} for steps in (3000, 1000, 300)]
    assert grid.positions(space.columns(off)).tolist() == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "version"), [("vllm", "0.33"), ("vllm", "0.17"), ("sglang", None)])
def test_the_evaluator_and_predict_price_the_same_deployment(engine, version):
    evaluator = evaluator_of(version, engine)
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(60):
        params = {name: values[rng.integers(len(values))] for name, values in evaluator.space.values.items()}
        evaluation = evaluator.one(params)
        if not evaluation.feasible[0]:
            continue
        deployment = deployment_of(evaluator.resolved, evaluator.effective_row(params), 1, params)
        prediction = predict(deployment)
        assert prediction.tokens_per_s_per_gpu == pytest.approx(evaluation.tokens_per_s_per_gpu[0], rel=1e-6)
        assert prediction.tpot_s == pytest.approx(evaluation.latency_s[0], rel=1e-6)
        checked += 1
    assert checked >= 3


def test_grid_evaluation_equals_one_by_one():
    evaluator = evaluator_of()
    grid = evaluator.space.grid()
    whole = evaluator.evaluate(grid.columns)
    for position in np.random.default_rng(1).integers(evaluator.space.distinct, size=25):
        alone = evaluator.one(grid.params_at(int(position)))
        assert alone.score[0] == pytest.approx(whole.score[position], rel=1e-9)
        for name in CONSTRAINTS:
            assert alone.constraints[name][0] == pytest.approx(whole.constraints[name][position], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "violated"),
    [
        ({"enable_dbo": True, "all2all_backend": "allgather_reducescatter"}, "dbo_needs_deepep"),
        ({"redundant_experts": 32, "enable_eplb": False}, "redundant_experts_need_eplb"),
        ({"gpu_memory_fraction": 0.99}, "memory_fraction_leaves_margin"),
        ({"gpu_memory_fraction": 0.3}, "memory_fits"),
    ],
)
def test_constraints_name_what_is_wrong(change, violated):
    evaluator = evaluator_of()
    values = {**evaluator.space.values}
    for name, value in change.items():
        values[name] = tuple(dict.fromkeys([*values[name], value]))
    space = FlagSpace(values, evaluator.space.defaults, evaluator.space.analytic)
    evaluator = DecodeFlagEvaluator(evaluator.resolved, evaluator.row, space, 1)
    params = {**space.analytic, **change}
    assert evaluator.one(params).constraints[violated][0] > 0
    assert evaluator.one(space.analytic).constraints[violated][0] <= 1e-9


def test_the_batch_is_what_the_cache_holds():
    evaluator = evaluator_of()
    small = {**evaluator.space.analytic, "gpu_memory_fraction": 0.85, "max_num_seqs": 256}
    assert evaluator.one(small).size[0] == 256
    defaults = {**evaluator.space.analytic, "kv_cache_dtype": "auto", "max_num_seqs": max(evaluator.space.values["max_num_seqs"])}
    fp8 = {**defaults, "kv_cache_dtype": "fp8"}
    assert evaluator.one(defaults).size[0] < evaluator.one(fp8).size[0]


def test_dp_chunk_equal_to_the_batch_wins_in_0_17():
    # document 000: DP chunk = batch for decode; a chunk of 256 repeats dispatch, experts and combine
    evaluator = evaluator_of("0.17", batch=768)
    base = {**evaluator.space.analytic, "enable_moe_dp_chunk": True}
    rates = {c: float(evaluator.one({**base, "moe_dp_chunk_tokens": c}).tokens_per_s_per_gpu[0]) for c in (128, 256, 768)}
    assert rates[768] > 1.05 * rates[256] > rates[128]


def test_a_study_beats_the_defaults_and_finds_the_exact_optimum():
    found = tune_flags(evaluator_of(), trials=100, seed=1)
    assert found.exact is not None
    assert found.tokens_per_s_per_gpu == pytest.approx(found.exact, rel=1e-3)
    assert found.tokens_per_s_per_gpu > found.defaults or found.defaults_violate
    assert found.study <= found.exact * (1 + 1e-9)
    assert [row.origin for row in found.trials[:2]] == ["analytic", "defaults"]
    assert len(found.trials) == 100


def test_the_grid_holds_every_combination_that_differs_from_all_others():
    # all products, against the grid without those that only differ in knobs that do not count
    evaluator = evaluator_of()
    space = evaluator.space
    sizes = [len(values) for values in space.values.values()]
    product = dict(zip(space.values, np.unravel_index(np.arange(space.size), sizes), strict=True))
    grid = space.grid()
    assert len(grid.codes) == space.distinct < space.size
    assert np.all(np.diff(grid.codes) > 0)
    everything, distinct = evaluator.evaluate(product), evaluator.evaluate(grid.columns)
    where = grid.positions(product)
    assert np.allclose(distinct.score[where], everything.score, rtol=1e-12)
    assert np.array_equal(distinct.feasible[where], everything.feasible)
    best = everything.best()
    assert grid.params_at(int(where[best])) == {name: values[product[name][best]] for name, values in space.values.items()}


def test_without_trials_asked_for_the_exact_optimum_is_the_answer_and_optuna_stays_away():
    evaluator = evaluator_of()
    found, studied = tune_flags(evaluator, trials=None, seed=0), tune_flags(evaluator, trials=5, seed=0)
    assert found.trials == ()
    assert found.study is None
    assert found.exact == studied.exact
    assert found.tokens_per_s_per_gpu == pytest.approx(found.exact, rel=1e-4)
    assert found.random <= found.exact * (1 + 1e-9)


def test_defaults_put_back_one_at_a_time_cost_the_same_in_one_call():
    evaluator = evaluator_of()
    found = tune_flags(evaluator, trials=0, seed=0)
    for setting in found.settings:
        alone = evaluator.one({**found.params, setting.name: setting.default})
        expected = 1 - float(alone.score[0]) / found.tokens_per_s_per_gpu
        assert setting.loss == pytest.approx(expected, abs=1e-9)


@pytest.mark.slow
def test_studies_repeat_with_their_seed():
    first, second = (tune_flags(evaluator_of(), trials=60, seed=7) for _ in range(2))
    assert [r.params for r in first.trials] == [r.params for r in second.trials]


@pytest.mark.slow
def test_a_study_resumes_from_its_storage(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    first = tune_flags(evaluator_of(), trials=8, seed=0, storage=url, study_name="s")
    second = tune_flags(evaluator_of(), trials=12, seed=0, storage=url, study_name="s")
    assert [r.params for r in second.trials[:8]] == [r.params for r in first.trials]
    assert len(second.trials) == 12


@pytest.mark.slow
def test_a_foreign_study_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    tune_flags(evaluator_of(), trials=3, seed=0, storage=url, study_name="s")
    with pytest.raises(OutputError, match="another flag space"):
        tune_flags(evaluator_of("0.17"), trials=3, seed=0, storage=url, study_name="s")


@pytest.mark.slow
def test_a_locked_storage_is_one_message(tmp_path):
    path = tmp_path / "study.db"
    url = f"sqlite:///{path}?timeout=0.1"
    tune_flags(evaluator_of(), trials=2, seed=0, storage=url, study_name="s")
    holder = sqlite3.connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(OutputError, match=r"cannot be used.*locks"):
            tune_flags(evaluator_of(), trials=4, seed=0, storage=url, study_name="s")
    finally:
        holder.close()


def test_a_broken_storage_is_one_message(tmp_path):
    path = tmp_path / "not-a-database.db"
    path.write_text("this is no SQLite file, although it is long enough to be read as one" * 20)
    with pytest.raises(OutputError, match="cannot be used"):
        tune_flags(evaluator_of(), trials=3, seed=0, storage=f"sqlite:///{path}")
    with pytest.raises(OutputError, match="cannot be used"):
        tune_flags(evaluator_of(), trials=3, seed=0, storage="nonsense://x")

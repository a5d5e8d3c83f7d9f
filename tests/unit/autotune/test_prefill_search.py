"""Searching prefill pools: sizes, budgets, offload and chunk settings."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import yaml

from autotune.documents.problem import Problem
from autotune.errors import NoFeasiblePlan, ProblemError
from autotune.flags.prefill import PrefillFlagEvaluator
from autotune.flags.space import flag_space
from autotune.layouts.enumerate import layout_rows
from autotune.layouts.table import largest_fitting_size
from autotune.predicting.step import predict
from autotune.resolving import resolve_problem
from autotune.searching.pools import search
from autotune.searching.realising import deployment_of
from cost_models.dispatch import BACKENDS
from cost_models.rows import Rows


def prefill(hardware: str = "gb200-nvl72", **changes) -> Problem:
    return Problem(**{"hardware": hardware, "target": "prefill", "gpus": 8, "trials": 0, **changes})


def evaluator_of(version: str, backend: str, tokens: int = 65_536, **changes) -> PrefillFlagEvaluator:
    resolved = resolve_problem(prefill(engine_version=version, **changes))
    row = Rows.of(dp=2, ep=2, batched_tokens=tokens, backend=BACKENDS.index(backend), graph_tokens=0, offload_group_size=2)
    space = flag_space(resolved, row, int(largest_fitting_size(resolved, row)[0]))
    return PrefillFlagEvaluator(resolved, row, space, 1)


@pytest.mark.slow
def test_two_gpus_beat_four_on_gb200_and_eight_win_on_h200():
    # the first source document recommends two GPUs per GB200 prefill instance: communication grows with the group, and the
    # host link hides half of the experts. PCIe cannot, and eight H200s hold the weights.
    gb200 = {size.gpus: size for size in search(prefill()).sizes}
    assert gb200[2].tokens_per_s_per_gpu > gb200[4].tokens_per_s_per_gpu > gb200[8].tokens_per_s_per_gpu
    assert gb200[2].communication_share < gb200[4].communication_share < gb200[8].communication_share
    h200 = {size.gpus: size.tokens_per_s_per_gpu for size in search(prefill("hgx-h200")).sizes}
    assert max(h200, key=h200.get) == 8


def test_with_a_slow_host_link_and_short_steps_four_beat_two(tmp_path):
    # two GPUs hold the weights only with 23 GB of experts or more in host memory, copied in every step: 0.1 s over C2C, 0.9 s
    # over a link of 50 GB/s per superchip, far more than a step of 0.15 s
    text = resources.files("cost_models").joinpath("data", "hardware", "gb200-nvl72.yaml").read_text()
    document = yaml.load(text, Loader=yaml.CSafeLoader)
    document["host_link"]["bytes_per_s"]["value"] = 50e9
    slow = tmp_path / "slow.yaml"
    slow.write_text(yaml.safe_dump(document))
    sizes = {size.gpus: size.tokens_per_s_per_gpu for size in search(prefill(str(slow), ttft_limit_s=0.15)).sizes}
    assert sizes.get(2, 0.0) < sizes[4]


def test_the_plan_fits_and_meets_its_limit():
    best = search(prefill(ttft_limit_s=1.0)).best
    assert best.prediction.fits
    assert best.prediction.prompt_s <= 1.0
    assert best.deployment.phase == "prefill"
    assert best.label.startswith(f"{best.deployment.pool.instances} x")


@pytest.mark.slow
def test_the_fastest_prompt_is_faster_than_the_most_efficient():
    fastest, efficient = (search(prefill(objective=o)).best.prediction for o in ("ttft", "tokens_per_s_per_gpu"))
    assert fastest.prompt_s < efficient.prompt_s
    assert fastest.tokens_per_s_per_gpu < efficient.tokens_per_s_per_gpu


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "version"), [("vllm", "0.33"), ("vllm", "0.17"), ("sglang", None)])
def test_the_evaluator_and_predict_price_the_same_deployment(engine, version):
    resolved = resolve_problem(prefill(engine=engine, engine_version=version))
    row = Rows.of(dp=4, ep=4, batched_tokens=16_384, backend=BACKENDS.index("deepep_normal"), graph_tokens=0)
    space = flag_space(resolved, row, int(largest_fitting_size(resolved, row)[0]))
    evaluator = PrefillFlagEvaluator(resolved, row, space, 1)
    rng, checked = np.random.default_rng(0), 0
    for _ in range(80):
        params = {name: values[rng.integers(len(values))] for name, values in space.values.items()}
        evaluation = evaluator.one(params)
        if not evaluation.feasible[0]:
            continue
        prediction = predict(deployment_of(resolved, evaluator.effective_row(params), 1, params))
        assert prediction.fits
        assert prediction.tokens_per_s_per_gpu == pytest.approx(evaluation.tokens_per_s_per_gpu[0], rel=1e-6)
        assert prediction.prompt_s == pytest.approx(evaluation.latency_s[0], rel=1e-6)
        checked += 1
        if checked == 20:
            break
    assert checked >= 3


def test_chunks_off_is_what_the_search_finds_and_the_defaults_cost_something():
    # document 000: MoE DP chunk off and activation chunk off for prefill; vLLM 0.17 has both switches
    settings = {s.name: s for s in search(prefill(engine_version="0.17")).best.flags.settings}
    assert settings["enable_moe_dp_chunk"].chosen is False
    assert settings["enable_moe_dp_chunk"].loss > 0.2  # 370 rounds of dispatch, experts and combine instead of one
    assert settings["enable_activation_chunk"].chosen is False
    assert settings["enable_activation_chunk"].loss > 0.005


def test_the_dp_chunk_applies_to_some_backends_only():
    on, off = ({"enable_moe_dp_chunk": value, "moe_dp_chunk_tokens": 256} for value in (True, False))
    for backend, applies in (("nvlink_one_sided", True), ("allgather_reducescatter", False)):
        evaluator = evaluator_of("0.17", backend)
        slow, fast = (float(evaluator.one({**evaluator.space.analytic, **flags}).tokens_per_s_per_gpu[0]) for flags in (on, off))
        assert (slow < fast) is applies


def test_versions_without_offload_are_not_given_any():
    without, having = (layout_rows(resolve_problem(prefill(engine_version=v))).offload_group_size for v in ("0.16", "0.17"))
    assert without.max() == 0
    assert having.max() > 0


def test_pipelines_only_where_the_connector_takes_them():
    stages = {
        (engine, target): layout_rows(resolve_problem(prefill(engine=engine, target=target))).pp.max()
        for engine in ("vllm", "sglang")
        for target in ("prefill", "decode")
    }
    assert stages == {("vllm", "prefill"): 1, ("vllm", "decode"): 1, ("sglang", "prefill"): 8, ("sglang", "decode"): 1}


def test_an_impossible_limit_says_by_how_much():
    with pytest.raises(NoFeasiblePlan, match=r"latency_limit cannot hold.*TTFT.*over the 1\.0 ms limit.*TTFT limit"):
        search(prefill(ttft_limit_s=0.001))


@pytest.mark.parametrize("changes", [{"objective": "tpot"}, {"min_concurrency": 5}])
def test_what_a_prefill_pool_cannot_be_asked(changes):
    with pytest.raises(ProblemError):
        search(prefill(**changes))


def test_an_engine_without_knobs_for_a_layout_still_gets_a_plan():
    best = search(prefill("hgx-h200", engine="trtllm", model="llama-3.1-70b")).best
    assert best.flags.space_size == 1
    assert best.prediction.fits

"""Tuning without a server: what is tried, what is learned, what is kept, in worlds whose optimum is known."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from autotune.cli.parsing import limits_of
from autotune.cli.tune import budget_of, varied
from autotune.documents.deployment import Deployment, Load
from autotune.documents.tuned import LAG_LIMIT, RATE, MeasuredLoad, read_trials, write_trials
from autotune.errors import OutputError, ProblemError
from autotune.tuning.advising import Adviser, Proposal, Tried
from autotune.tuning.gate import check_run
from autotune.tuning.generators.base import LoadRun
from autotune.tuning.generators.registry import GENERATORS, load_generator
from autotune.tuning.guessing import Guesses, PriorBand, worst_excess
from autotune.tuning.journal import TuneJournal
from autotune.tuning.noise import run_sigma, worth_another
from autotune.tuning.outcomes import TrialFailed
from autotune.tuning.processes import end_recorded, start_kept
from autotune.tuning.ratios import ratio_process
from autotune.tuning.reasons import reason_in
from autotune.tuning.space import ENGINE_DEFAULT, TuneSpace, tune_space
from autotune.tuning.tuner import Budget, Tuner, drift_warnings
from tests.simulated_engine.world import NONE, Distortions, WorldBench, best_rate, drawn

DEPLOYMENT = Deployment.model_validate(
    {
        "hardware": "hgx-h100",
        "model": "qwen3-30b-a3b",
        "precision": "bf16",
        "engine": {"name": "vllm", "version": "0.24"},
        "phase": "serve",
        "workload": {"isl_tokens": 1024, "osl_tokens": 256, "popularity_sigma": 0},
        "pools": {"serve": {"tp": 2, "max_batched_tokens": 8192, "batch_per_dp_rank": 256, "memory_fraction": 0.9}},
        "load": {"concurrency": 32},
    }
)
LIMITS = {"ttft_p99_s": 2.0, "tpot_s": 0.05}
KNOBS = {"max_num_batched_tokens": (2048, 16384)}


@pytest.fixture(scope="module")
def space() -> TuneSpace:
    return tune_space(DEPLOYMENT, knobs=KNOBS)


def test_an_engine_of_a_settings_file_is_loaded_and_not_varied():
    plan = DEPLOYMENT.model_copy(update={"engine": DEPLOYMENT.engine.model_copy(update={"name": "trtllm", "version": None})})
    with pytest.raises(ProblemError, match=r"TensorRT-LLM is told lies in a settings file: .* give its --url"):
        tune_space(plan)
    assert len(tune_space(plan, load_only=True).layouts) == 1


@pytest.fixture(scope="module")
def adviser(space: TuneSpace) -> Adviser:
    return Adviser(space, Guesses(space), LIMITS)


def run(**changes: object) -> MeasuredLoad:
    plain = {
        "requests": 100, "completed": 100, "duration_s": 10.0, "isl_tokens": 1024, "osl_tokens": 256, "tokens_per_s": 2560.0,
        "ttft_s": {"mean": 0.5, "p99": 1.0}, "tpot_s": 0.02,
    }  # fmt: skip
    return MeasuredLoad.model_validate({**plain, **changes})


# --- what is tried


def test_two_gpus_of_an_moe_model_split_four_ways(space):
    assert list(space.layouts) == ["TP2", "1 GPU", "DP2 EP2", "TP2 EP2"]
    assert all(pool.instances == 1 for pool in space.layouts.values())
    assert space.gpus == 2


def test_one_instance_gets_its_share_of_the_load(space):
    """32 in flight on two GPUs are 16 on each of two engines of one GPU."""
    load = space.load(space.candidate("1 GPU", 32.0))
    assert load.concurrency == 16
    assert load.requests == 16 * space.rounds
    assert space.load(space.candidate("TP2", 32.0)).concurrency == 32


def test_the_engines_defaults_have_no_flag_of_the_plan(space):
    bare = space.bare(32.0)
    assert bare.knobs == {}
    flags = space.one_instance(bare).pools["serve"].flags
    assert flags == {}
    planned = space.one_instance(space.candidate("TP2", 32.0, max_num_batched_tokens=2048)).pools["serve"]
    assert planned.flags == {"max_num_batched_tokens": 2048, "max_num_seqs": 256, "gpu_memory_fraction": 0.9}
    assert (planned.max_batched_tokens, planned.batch_per_dp_rank, planned.memory_fraction) == (2048, 256, 0.9)


def test_what_is_left_to_the_engine_is_priced_at_what_it_takes(space):
    pool = space.one_instance(space.bare(32.0)).pools["serve"]
    assert (pool.max_batched_tokens, pool.batch_per_dp_rank, pool.memory_fraction) == (8192, 1024, 0.92)


def test_limits_on_sequences_that_no_load_reaches_are_not_tried_twice():
    found = tune_space(DEPLOYMENT, knobs={"max_num_seqs": (16, 128)}).everything()
    at_8 = {dict(c.settings)["max_num_seqs"] for c in found if c.layout == "TP2" and c.level == 8 and c.knobs}
    at_64 = {dict(c.settings)["max_num_seqs"] for c in found if c.layout == "TP2" and c.level == 64 and c.knobs}
    assert at_8 == {256}  # of 16, 128, 256 and 1,024 (the engine's own) the plan's
    assert at_64 == {16, 256}


def test_candidates_survive_a_trial(space):
    for candidate in space.everything()[::7]:
        assert space.of_params(candidate.params()) == candidate


def test_engine_options_that_are_no_knobs_become_words():
    space = tune_space(DEPLOYMENT, knobs={"--block-size": (32,), "--async-scheduling": (True, False)})
    candidate = space.candidate("TP2", 32.0, **{"--block-size": 32, "--async-scheduling": False})
    assert space.options(candidate) == ["--block-size", "32", "--no-async-scheduling"]
    assert space.one_instance(candidate).pools["serve"].flags.keys().isdisjoint({"--block-size"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phase": "decode", "load": None, "pools": {"decode": {"batch_per_dp_rank": 4}}}, "a decode pool alone"),
        ({"load": {"trace": "t.csv"}}, "synthetic requests"),
    ],
)
def test_what_cannot_be_tuned_is_said(changes, words):
    raw = {**DEPLOYMENT.model_dump(mode="json"), **changes}
    with pytest.raises(ProblemError, match=words):
        tune_space(Deployment.model_validate(raw))


def test_an_unknown_knob_is_said():
    with pytest.raises(ProblemError, match="has no knob max_seqs"):
        tune_space(DEPLOYMENT, knobs={"max_seqs": (1, 2)})


# --- what is learned


def test_a_common_error_is_learned_from_one_measurement():
    """Measured 20 % below the prediction at one point, with a prior of 10 %: most of that is believed of points far away too."""
    near, far = np.zeros((1, 2)), np.full((1, 2), 9.0)
    process = ratio_process(near, np.array([math.log(0.8)]), np.array([0.01]), PriorBand(0.0, 0.1))
    assert process.at(near).mean[0] == pytest.approx(math.log(0.8), abs=0.01)
    assert math.log(0.8) < process.at(far).mean[0] < 0.25 * math.log(0.8)
    assert process.at(near).sigma[0] < 0.02 < process.at(far).sigma[0]


def test_leaving_one_out_is_fitting_without_it():
    rng = np.random.default_rng(0)
    points, seen, noise = rng.normal(size=(6, 2)), rng.normal(size=6) * 0.1, np.full(6, 0.02)
    whole = ratio_process(points, seen, noise, PriorBand(0.0, 0.1))
    rest = np.delete(np.arange(6), 2)
    from autotune.tuning.ratios import _fitted

    _, without = _fitted(points[rest], seen[rest], noise[rest], 0.0, whole.scale, whole.common)
    assert whole.left_out()[2] == pytest.approx(without.at(points[2:3]).mean[0])


@pytest.mark.slow
def test_the_first_trials_are_the_defaults_and_the_models_best_plan(adviser, space):
    defaults, best = adviser.seeds()
    assert defaults.candidate.engine == space.bare(1).engine
    guess = adviser.guesses.of(best.candidate)
    assert worst_excess(guess, LIMITS) <= 0
    rivals = [adviser.guesses.of(c) for c in adviser.candidates]
    assert guess[RATE] == max(g[RATE] for g in rivals if worst_excess(g, LIMITS) <= 0)


@pytest.mark.slow
def test_what_ran_out_of_memory_is_not_tried_with_more(adviser, space):
    failed = space.candidate("TP2", 32.0, max_num_batched_tokens=2048)
    allowed = adviser._allowed([Tried(failed, "failed", reason="out_of_memory_under_load")])
    kept = {candidate for candidate, allow in zip(adviser.candidates, allowed, strict=True) if allow}
    assert space.candidate("TP2", 64.0, max_num_batched_tokens=2048) not in kept
    assert space.candidate("TP2", 64.0, max_num_batched_tokens=16384) not in kept
    assert space.candidate("TP2", 24.0, max_num_batched_tokens=2048) in kept
    assert space.candidate("DP2 EP2", 64.0, max_num_batched_tokens=2048) in kept


@pytest.mark.slow
def test_an_engine_that_does_not_start_is_not_started_again(adviser, space):
    failed = space.candidate("TP2", 32.0, max_num_batched_tokens=2048)
    allowed = adviser._allowed([Tried(failed, "failed", reason="never_healthy")])
    kept = [c for c, allow in zip(adviser.candidates, allowed, strict=True) if allow]
    assert not any(c.engine == failed.engine for c in kept)
    assert any(c.layout == "TP2" for c in kept)


def test_noise_is_pooled_over_what_was_repeated():
    """Runs 4 % apart have a standard deviation of 2.8 %; the prior of 2 % counts for two repeats."""
    pairs = [({RATE: 100.0}, {RATE: 104.0})] * 4
    spread = math.log(1.04) ** 2 / 2
    assert run_sigma(pairs, RATE) == pytest.approx(math.sqrt((2 * 0.02**2 + 4 * spread) / 6))


def test_runs_are_repeated_where_they_decide_something():
    known = [[{RATE: 100.0, "tpot_s": 0.03}]]
    at = {"tpot_s": 0.05}
    assert worth_another([{RATE: 99.0, "tpot_s": 0.03}], known, at, 100.0, first=False)  # as good as the best
    assert worth_another([{RATE: 130.0, "tpot_s": 0.0501}], known, at, 100.0, first=False)  # at a limit
    assert not worth_another([{RATE: 130.0, "tpot_s": 0.03}], known, at, 100.0, first=False)  # clearly better
    assert not worth_another([{RATE: 70.0, "tpot_s": 0.0501}], known, at, 100.0, first=False)  # clearly worse
    assert not worth_another([{RATE: 100.0, "tpot_s": 0.03}] * 3, known, at, 100.0, first=False)  # enough
    assert worth_another([{RATE: 70.0, "tpot_s": 0.03}], [], at, None, first=True)  # how large is the noise?


# --- the loop, in worlds whose optimum is known


def tuned(space: TuneSpace, adviser: Adviser, world: Distortions, path: Path, trials: int = 15):
    bench = WorldBench(space, world)
    tuner = Tuner(adviser, TuneJournal(str(path / "j"), space, "q", resume=True), bench, Budget(trials=trials))
    return bench, tuner.result(tuner.run())


@pytest.mark.slow
def test_an_undistorted_world_is_solved_by_the_models_own_plan(space, adviser, tmp_path):
    bench, result = tuned(space, adviser, NONE, tmp_path)
    assert result.trial(result.best).measured[RATE] == pytest.approx(best_rate(space, bench, LIMITS)[0], rel=0.02)
    assert len(result.trials) <= 8


class ClockedBench(WorldBench):
    """A start takes 300 s, a run 20 s."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.now_s, self.started = 0.0, []

    def measure(self, candidate, trial, run):
        load = super().measure(candidate, trial, run).model_copy(update={"duration_s": 20.0})
        if not self.started or self.started[-1] != candidate.engine:
            self.started.append(candidate.engine)
            self.now_s += 300
        self.now_s += 20
        return load


def test_time_that_no_start_fits_in_is_used_for_loads_of_the_server_that_runs(tmp_path, monkeypatch):
    one = tune_space(DEPLOYMENT, load_only=True)
    bench = ClockedBench(one, Distortions(decode=1.3))
    monkeypatch.setattr("autotune.tuning.tuner.time", SimpleNamespace(monotonic=lambda: bench.now_s))
    adviser = Adviser(one, Guesses(one), {"tpot_s": 0.02})
    tuner = Tuner(adviser, TuneJournal(str(tmp_path / "j"), one, "q", resume=True), bench, Budget(seconds=600), began=0.0)
    result = tuner.result(tuner.run())
    # the start and its runs take 320 to 360 s: as much again would not fit into 600 s, another load (20 to 60 s) does
    assert len(bench.started) == 1
    assert len(result.trials) > 1
    assert bench.now_s <= 600


@pytest.mark.slow
def test_a_slow_world_with_traps_is_solved_within_fifteen_trials(space, adviser, tmp_path):
    world = Distortions(decode=1.2, prompt=1.15, host_s=0.003, data_parallel=1.1, crash_above=50, never_healthy=("DP2 EP2",))
    bench, result = tuned(space, adviser, world, tmp_path)
    best = result.trial(result.best)
    assert best.measured[RATE] >= 0.98 * best_rate(space, bench, LIMITS)[0]
    assert all(best.measured[name] <= limit for name, limit in LIMITS.items())
    failed = [trial for trial in result.trials if trial.state == "failed"]
    assert len({(t.layout, t.level, str(t.settings), t.reason) for t in failed}) == len(failed)
    assert sum(trial.layout == "DP2 EP2" for trial in result.trials) <= 2
    rate = next(line for line in result.accuracy if line.quantity == RATE)
    assert rate.after < rate.before / 2


def test_a_run_that_lags_behind_its_rate_is_over_saturated():
    """100 requests at 10/s are sent in 10 s; answers of 256 tokens at 20 ms take 5.1 s, half as much again is granted."""
    assert run(rate_per_s=10.0, duration_s=15.0).quantities(1)["lag"] == pytest.approx(15 / (10 + 1.5 * 256 * 0.02))
    assert (
        run(rate_per_s=10.0, duration_s=15.0).quantities(1)["lag"]
        < LAG_LIMIT
        < run(rate_per_s=10.0, duration_s=25.0).quantities(1)["lag"]
    )
    assert "lag" not in run().quantities(1)


@pytest.mark.slow
def test_a_rate_is_raised_until_the_service_no_longer_keeps_up(tmp_path):
    """On one GPU, without limits on times, the largest rate that the service keeps up with; larger ones lag and do not win."""
    raw = DEPLOYMENT.model_dump(mode="json") | {"load": {"rate_per_s": 4.0}}
    raw["pools"]["serve"]["tp"] = 1
    space = tune_space(Deployment.model_validate(raw), knobs={}, same_layout=True, rounds=2)
    adviser = Adviser(space, Guesses(space), {})
    bench, result = tuned(space, adviser, Distortions(decode=1.3, prompt=1.3, host_s=0.004), tmp_path)
    best = result.trial(result.best)
    assert result.limits == {"lag": LAG_LIMIT}
    assert best.measured[RATE] >= 0.98 * best_rate(space, bench, result.limits)[0]
    assert all(
        trial.constraints["lag"] > 0 for trial in result.trials if trial.measured.get(RATE, 0) > 1.02 * best.measured[RATE]
    )
    assert len(result.trials) <= 8


@pytest.mark.slow
def test_constraints_are_named_in_the_storage(space, adviser, tmp_path):
    tuned(space, adviser, NONE, tmp_path, trials=2)
    journal = TuneJournal(str(tmp_path / "j"), space, "q", resume=True)
    complete = [trial for trial in journal.frozen() if trial.state.name == "COMPLETE"]
    assert complete
    assert all(set(trial.constraints) == set(LIMITS) for trial in complete)


def test_a_study_goes_on_where_it_stopped(space, adviser, tmp_path):
    _, first = tuned(space, adviser, drawn(9), tmp_path, trials=3)
    _, second = tuned(space, adviser, drawn(9), tmp_path, trials=6)
    assert len(first.trials) == 3
    assert second.trials[:3] == first.trials


def test_a_trial_of_a_killed_worker_is_finished_with_its_runs(space, adviser, tmp_path):
    journal = TuneJournal(str(tmp_path / "j"), space, "q", resume=False)
    candidate = adviser.seeds()[0].candidate
    claim = journal.claim(Proposal(candidate, "engine defaults"), {RATE: 1.0})
    journal.add_run(claim, 0, run())
    claim.trial.set_user_attr("worker", json.dumps(["another-boot", 1, 1]))
    assert journal.left_behind() is None  # of another host nobody here can say
    import socket

    claim.trial.set_user_attr("worker", json.dumps([socket.gethostname(), 2**22 + 1, 1]))
    left = TuneJournal(str(tmp_path / "j"), space, "q", resume=True).left_behind()
    assert left is not None
    assert (left.candidate, left.number, len(left.runs)) == (candidate, claim.number, 1)


def test_workers_that_share_a_storage_do_not_try_the_same(space, adviser, tmp_path):
    """One measures the defaults; the other sees that, takes the model's plan, and then what neither has begun."""
    one, other = (TuneJournal(str(tmp_path / "j"), space, "q", resume=True) for _ in range(2))
    one.enqueue(adviser.seeds(), {})
    other.enqueue(adviser.seeds(), {})
    first, second = one.claim(None, {}), other.claim(None, {})
    assert not one.waiting
    assert [first.candidate, second.candidate] == [seed.candidate for seed in adviser.seeds()]
    assert other.left_behind() is None  # its worker, this process, lives
    third = adviser.next(other.history())
    assert isinstance(third, Proposal)
    assert third.candidate not in {first.candidate, second.candidate}


def test_a_study_is_not_mixed_with_another(space, tmp_path):
    TuneJournal(str(tmp_path / "j"), space, "one", resume=False)
    with pytest.raises(OutputError, match="another question"):
        TuneJournal(str(tmp_path / "j"), space, "two", resume=True)


def test_trials_need_resume(space, adviser, tmp_path):
    tuned(space, adviser, NONE, tmp_path, trials=1)
    with pytest.raises(OutputError, match="--resume"):
        TuneJournal(str(tmp_path / "j"), space, "q", resume=False)


def test_trials_come_back_from_their_table(space, adviser, tmp_path):
    _, result = tuned(space, adviser, NONE, tmp_path, trials=2)
    assert write_trials(tmp_path / "trials.jsonl", result.trials) == 2
    records = read_trials(tmp_path / "trials.jsonl")
    assert [record.loads for record in records] == [trial.loads for trial in result.trials]


def test_drift_is_flagged():
    from autotune.documents.tuned import TunedTrial

    def trial(number: int, clock: float) -> TunedTrial:
        return TunedTrial(
            number=number, origin="", layout="TP2", level=1, settings={}, state="measured", loads=(run(sm_clock_mhz=clock),)
        )  # fmt: skip

    assert drift_warnings([trial(0, 1980), trial(1, 1950), trial(2, 1965)]) == []
    assert "trial 2 1,400 MHz" in drift_warnings([trial(0, 1980), trial(1, 1950), trial(2, 1400)])[0]


# --- the gate, reasons, generators


@pytest.mark.parametrize(
    ("changes", "load", "reason"),
    [
        ({}, Load(concurrency=4), None),
        ({"completed": 98}, Load(concurrency=4), "requests_failed_under_load"),
        ({"tokens_per_s": 0.0}, Load(concurrency=4), "no_tokens_under_load"),
        ({"osl_tokens": 128}, Load(concurrency=4), "other_lengths_under_load"),
        ({"isl_tokens": 600}, Load(concurrency=4), "other_lengths_under_load"),
        ({"isl_tokens": 768, "osl_tokens": 192}, Load(concurrency=4, shortest=0.5), None),  # evenly between half and all
        ({}, Load(rate_per_s=13), None),  # 10 a second were answered: a limit of its own
    ],
)
def test_runs_that_do_not_count(changes, load, reason):
    if reason is None:
        check_run(run(**changes), load, DEPLOYMENT.workload)
        return
    with pytest.raises(TrialFailed) as failure:
        check_run(run(**changes), load, DEPLOYMENT.workload)
    assert failure.value.name == reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out_of_memory"),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "out_of_memory"),
        ("ValueError: Free memory on device (3/79 GiB) on startup is less than desired GPU memory utilization", "gpu_in_use"),
        ("vllm serve: error: unrecognized arguments: --no-such", "unknown_option"),
        ("OSError: [Errno 98] Address already in use", "port_in_use"),
        ("RuntimeError: NCCL error", "crashed"),
        ("", "crashed"),
    ],
)
def test_reasons_are_read_from_logs(line, reason):
    assert reason_in(["INFO starting", line, "INFO bye"])[0] == reason


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_say_the_load(name, tmp_path):
    """Every tool is given the URL, the lengths, the number of requests, and either a closed loop or a rate."""
    tool = load_generator(name)
    shared = {"url": "http://h:1", "model": "org/m", "served": "m", "engine": "vllm", "isl_tokens": 1024, "osl_tokens": 256,
              "seed": 3, "result": tmp_path / tool.result.format(run=0), "extra": ("--more",)}  # fmt: skip
    closed = " ".join(tool.command(LoadRun(load=Load(concurrency=7, requests=21), **shared)))
    opened = " ".join(tool.command(LoadRun(load=Load(rate_per_s=2.5, requests=21), **shared)))
    for words in (closed, opened):
        assert all(part in words for part in ("http://h:1", "1024", "256", "21", "--more"))
    assert "7" in closed.split("http://h:1")[1]
    assert "2.5" in opened
    assert "2.5" not in closed


VLLM_RESULT = {
    "model_id": "org/m", "num_prompts": 100, "completed": 99, "duration": 12.5, "total_input_tokens": 101376,
    "total_output_tokens": 25344,
    "output_throughput": 2027.52, "mean_ttft_ms": 200.0, "median_ttft_ms": 150.0, "p95_ttft_ms": 400.0, "p99_ttft_ms": 500.0,
    "mean_tpot_ms": 12.0, "median_tpot_ms": 11.0,
}  # fmt: skip
STATISTIC = {"mean": 200.0, "median": 150.0, "count": 99, "total_sum": 25344, "percentiles": {"p95": 400.0, "p99": 500.0}}
GUIDELLM_RESULT = {
    "benchmarks": [
        {
            "duration": 12.5,
            "metrics": {
                "request_totals": {"successful": 99, "incomplete": 0, "errored": 1, "total": 100},
                "request_latency": {"successful": {"count": 99}},
                "prompt_token_count": {"successful": {"mean": 1024.0}},
                "output_token_count": {"successful": {"mean": 256.0, "total_sum": 25344}},
                "time_to_first_token_ms": {"successful": STATISTIC},
                "inter_token_latency_ms": {"successful": {"mean": 12.0}},
            },
        }
    ]
}
AIPERF_RESULT = {
    "request_count": {"avg": 99}, "error_request_count": {"avg": 1}, "benchmark_duration": {"avg": 12.5},
    "input_sequence_length": {"avg": 1024}, "output_sequence_length": {"avg": 256}, "output_token_throughput": {"avg": 2027.52},
    "time_to_first_token": {"unit": "ms", "avg": 200.0, "p50": 150.0, "p95": 400.0, "p99": 500.0},
    "inter_token_latency": {"unit": "ms", "avg": 12.0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "file", "raw"),
    [
        ("vllm", "r.json", VLLM_RESULT),
        ("sglang", "r.jsonl", VLLM_RESULT),
        ("guidellm", "r.json", GUIDELLM_RESULT),
        ("aiperf", "profile_export_aiperf.json", AIPERF_RESULT),
    ],
)
def test_results_of_all_generators_say_the_same(name, file, raw, tmp_path):
    """99 requests of 1,024 and 256 tokens in 12.5 s: 2,027.52 tokens/s."""
    (tmp_path / file).write_text(json.dumps(raw))
    seen = load_generator(name).read(tmp_path if name == "aiperf" else tmp_path / file)
    assert (seen.completed, seen.duration_s) == (99, 12.5)
    assert (seen.isl_tokens, seen.osl_tokens) == (1024, 256)
    assert seen.tokens_per_s == pytest.approx(99 * 256 / 12.5)
    assert seen.ttft_s == {"mean": 0.2, "p50": 0.15, "p95": 0.4, "p99": 0.5}
    assert seen.tpot_s == pytest.approx(0.012)


def test_a_process_ends_with_the_pipe_that_holds_it(tmp_path):
    """Its whole group: the shell, and the sleep that it started."""
    kept = start_kept(["bash", "-c", "sleep 300 & echo $!; wait"], tmp_path / "r.process.json", tmp_path / "log")
    until = time.monotonic() + 20
    while not (tmp_path / "log").exists() or not (tmp_path / "log").read_text().strip():
        assert time.monotonic() < until
        time.sleep(0.02)
    sleeper = int((tmp_path / "log").read_text())
    assert kept.wait(0.05) is None
    kept.stop()
    assert json.loads((tmp_path / "r.process.json").read_text())["exit_code"] != 0
    assert not Path(f"/proc/{sleeper}").exists() or "Z" in Path(f"/proc/{sleeper}/stat").read_text().rpartition(")")[2][:3]


def test_what_a_record_names_is_ended_only_where_it_is_the_same_process(tmp_path):
    kept = start_kept(["sleep", "300"], tmp_path / "r.process.json", tmp_path / "log")
    while not (tmp_path / "r.process.json").exists():
        time.sleep(0.02)
    found = json.loads((tmp_path / "r.process.json").read_text())
    other = tmp_path / "other.process.json"
    other.write_text(json.dumps({**found, "started": found["started"] + 1}))  # the number was taken by another process
    assert not end_recorded(other)
    assert kept.exit_code() is None
    assert end_recorded(tmp_path / "r.process.json")
    assert kept.wait(20) is not None
    kept.stop()


def test_a_result_without_completed_requests_says_nothing(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({**VLLM_RESULT, "completed": 0}))
    with pytest.raises(TrialFailed, match="none of 100 requests"):
        load_generator("vllm").read(tmp_path / "r.json")


def test_llm_ds_benchmark_report_comes_back(space, tmp_path):
    from autotune.tuning.benchmark_report import benchmark_report, read_benchmark_report

    text = benchmark_report(run(), space.one_instance(space.bare(32.0)), "vllm bench serve", "0.24", "a/0")
    (tmp_path / "r.yaml").write_text(text)
    back = read_benchmark_report(tmp_path / "r.yaml")
    assert back.model_copy(update={"file": ""}) == run()
    (tmp_path / "r.yaml").write_text(text.replace("units: s/token", "units: ms/token"))
    assert read_benchmark_report(tmp_path / "r.yaml").tpot_s == pytest.approx(0.02 / 1e3)
    (tmp_path / "r.yaml").write_text(text.replace("version: 0.2.1", "version: 0.3"))
    with pytest.raises(ProblemError, match=r"Benchmark Report 0\.3"):
        read_benchmark_report(tmp_path / "r.yaml")


# --- what people type


def test_limits_budgets_and_knobs_as_people_type_them():
    assert limits_of(["ttft-p99=2s", "tpot=50ms"]) == {"ttft_p99_s": 2.0, "tpot_s": 0.05}
    assert budget_of("20") == Budget(trials=20)
    assert budget_of("90m") == Budget(seconds=5400)
    assert varied("max_num_seqs=128,256") == ("max_num_seqs", (128, 256))
    assert varied("--async-scheduling=true,false") == ("--async-scheduling", (True, False))


@pytest.mark.parametrize("text", ["2s", "=2s", "ttft=fast", "tpot=0s"])
def test_limits_that_are_none_are_said(text):
    with pytest.raises(ProblemError, match=r"--slo|duration"):
        limits_of([text])


@pytest.mark.parametrize("text", ["0", "many", "-3"])
def test_budgets_that_are_none_are_said(text):
    with pytest.raises(ProblemError, match="--budget"):
        budget_of(text)


def test_defaults_are_one_word():
    assert ENGINE_DEFAULT == "default"

"""Calibration from tuned trials: what a world adds to the host is found again; kernels stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from autotune.calibrating.service_trials import fit_service
from autotune.cli.main import app
from autotune.documents.deployment import Deployment
from autotune.documents.tuned import RATE, TrialRecord
from autotune.errors import ProblemError
from autotune.tuning.space import tune_space
from cost_models.catalog import calibration_for, load_calibration
from tests.simulated_engine.world import Distortions, WorldBench

DEPLOYMENT = Deployment.model_validate(
    {
        "hardware": "hgx-h100",
        "model": "llama-3.1-8b",
        "precision": "bf16",
        "engine": {"name": "vllm", "version": "0.24"},
        "phase": "serve",
        "workload": {"isl_tokens": 512, "osl_tokens": 128},
        "pools": {"serve": {"max_batched_tokens": 8192, "batch_per_dp_rank": 256, "memory_fraction": 0.9}},
        "load": {"concurrency": 16},
    }
)


@pytest.fixture(scope="module")
def records() -> list[TrialRecord]:
    """Two loads, far apart, of a host that needs 3 ms more in every step."""
    space = tune_space(DEPLOYMENT, knobs={})
    bench = WorldBench(space, Distortions(host_s=0.003))
    candidates = [space.candidate("1 GPU", level) for level in (4.0, 64.0)]
    return [TrialRecord(deployment=space.one_instance(c), loads=(bench.measure(c, 0, 0),)) for c in candidates]


@pytest.mark.slow
def test_a_slower_host_is_found_again(records):
    base = calibration_for("H100", "vllm")
    fit = fit_service(records, base, "a test")
    assert fit.before["tpot_s"] > 0.2
    assert fit.after["tpot_s"] < 0.03
    assert fit.after[RATE] < 0.03
    step = next(now for movable, _, now in fit.moved if movable.name == "step_s")
    assert step == pytest.approx(base.entry("host", "default").coefficients["step_s"] + 0.003, rel=0.25)
    assert {family for family, _, _ in fit.entries} <= {"host", "serving"}


@pytest.mark.slow
def test_the_command_writes_a_document_that_keeps_the_kernels(records, tmp_path: Path):
    (tmp_path / "trials.jsonl").write_text("".join(record.model_dump_json() + "\n" for record in records))
    out = tmp_path / "mine.yaml"
    done = CliRunner().invoke(app, ["calibrate", str(tmp_path / "trials.jsonl"), "--hw", "hgx-h100", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "host.step_s" in done.output
    assert "service plan" in done.output
    base, mine = calibration_for("H100", "vllm"), load_calibration(str(out))
    assert mine.families["dense_gemm"] == base.families["dense_gemm"]
    assert mine.entry("host", "default") != base.entry("host", "default")
    assert "trials.jsonl sha256" in yaml.safe_load(out.read_text())["families"]["host"]["default"]["source"]


@pytest.mark.slow
def test_what_would_make_rate_and_tpot_worse_moves_nothing():
    """Steps as predicted and first tokens twice as late: the host could only explain those by slowing the steps."""
    space = tune_space(DEPLOYMENT, knobs={})
    bench = WorldBench(space, Distortions())
    late = []
    for level in (4.0, 64.0):
        candidate = space.candidate("1 GPU", level)
        load = bench.measure(candidate, 0, 0)
        first = {name: 2 * value for name, value in load.ttft_s.items()}
        late.append(TrialRecord(deployment=space.one_instance(candidate), loads=(load.model_copy(update={"ttft_s": first}),)))
    fit = fit_service(late, calibration_for("H100", "vllm"), "a test")
    assert fit.moved == fit.entries == ()
    assert fit.after == fit.before
    assert fit.before["ttft_p50_s"] == pytest.approx(0.5, abs=0.05)


def test_trials_of_another_gpu_are_refused(records):
    with pytest.raises(ProblemError, match="ran on H100"):
        fit_service(records, calibration_for("H200", "vllm"), "a test")


def test_one_trial_tells_nothing_apart(records):
    with pytest.raises(ProblemError, match="2 at least"):
        fit_service(records[:1], calibration_for("H100", "vllm"), "a test")

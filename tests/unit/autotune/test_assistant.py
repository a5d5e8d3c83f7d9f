"""What an assistant hands in: a manifest's text is judged as the file is, and measured runs are held against it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autotune.assistant import tools
from autotune.assistant.tools import Given
from autotune.auditing.checking import check
from autotune.auditing.goals import Goals
from autotune.errors import ProblemError
from autotune.manifests.judging import GivenToo, read_manifest
from autotune.manifests.registry import read_file

FILES = Path(__file__).parents[2] / "fixtures" / "manifests"
LWS = FILES / "kubernetes" / "lws_decode_dp16.yaml"
ALPHA = FILES / "dynamo" / "alpha_aggregated.yaml"


def test_a_manifest_s_text_gets_the_verdict_of_the_file():
    read = read_manifest(read_file(LWS), GivenToo(), LWS)
    asked = tools.check(Given(manifest=LWS.read_text()), {"tpot_s": 0.05})
    assert asked == check(read.deployment, Goals(tpot_s=0.05), read).model_dump(mode="json")


def test_what_a_manifest_leaves_out_is_asked_for_and_taken_from_script():
    with pytest.raises(ProblemError, match="does not say what it runs on"):
        tools.check(Given(manifest=ALPHA.read_text()), None)
    found = tools.check(Given(manifest=ALPHA.read_text(), script={"hardware": "hgx-h200", "isl_tokens": 100}), None)
    assert found["gpus"] == 4 * 8  # four replicas of TP8


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Given(), "give one of"),
        (Given(command="vllm serve m", manifest="a: 1"), "give one of"),
        (Given(manifest="hello: 1"), "is of no kind that starts an engine here; known: DynamoGraphDeployment"),
        (Given(deployment={}, script={"hardware": "hgx-h200"}), "a deployment says everything itself"),
    ],
)
def test_what_is_no_single_plan_is_refused(given, says):
    with pytest.raises(ProblemError, match=says):
        given.read()


def test_a_run_is_verified_against_the_manifest_that_it_came_from(tmp_path):
    """16 ranks of 128 sequences are 2,048 in flight; 1 s a token is far outside of any interval, and over the limit of 50 ms."""
    run = {"model_id": "deepseek-ai/DeepSeek-R1", "completed": 2048, "total_input_tokens": 2048 * 2000,
           "total_output_tokens": 2048 * 500, "mean_tpot_ms": 1000.0, "median_tpot_ms": 1000.0, "median_itl_ms": 1000.0,
           "output_throughput": 2048.0, "max_concurrency": 2048}  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(run))
    found = tools.verify([str(tmp_path / "run.json")], Given(manifest=LWS.read_text()), {"tpot_s": 0.05})
    assert not found["passed"]
    (line,) = found["points"][0]["lines"]
    assert (line["measured"], line["inside"], line["within_limit"]) == (1.0, False, False)
    with pytest.raises(ProblemError, match="at least one benchmark"):
        tools.verify([], Given(manifest=LWS.read_text()), None)

"""What an assistant may send: any arguments get an answer or one message, and no run folder but the bench's own is read."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.assistant import tools
from autotune.assistant.tools import Given, Workbench
from autotune.errors import ProblemError
from cost_models.errors import AutotuneError

BENCH = Workbench(Path(__file__).parent)
POOL = {"dp": 8, "ep": 8, "batch_per_dp_rank": 8, "all2all_backend": "deepep_low_latency"}
DEPLOYMENT = {
    "hardware": "hgx-h200", "model": "deepseek-v3", "precision": "fp8-block", "engine": {"name": "vllm"},
    "workload": {"isl_tokens": 100, "osl_tokens": 100}, "pools": {"decode": POOL},
}  # fmt: skip
COMMAND = "vllm serve deepseek-ai/DeepSeek-R1-0528 --tensor-parallel-size 8"
SCRIPT = {"hardware": "hgx-h200", "version": "0.24", "isl_tokens": 9, "osl_tokens": 9, "size": 8, "model": "", "precision": ""}
POD = {
    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
    "spec": {"containers": {"0": {}}, "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"}},
}  # fmt: skip
GOALS = {"tpot_s": 0.05, "concurrency": 4}
ASKED: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[str, Any]]] = {
    "predict": (lambda a: tools.predict(a["deployment"]), {"deployment": DEPLOYMENT}),
    "deployment": (
        lambda a: tools.check(Given(deployment=a["deployment"]), a["goals"]),
        {"deployment": DEPLOYMENT, "goals": GOALS},
    ),
    "command": (
        lambda a: tools.check(Given(command=COMMAND, script=a["script"]), a["goals"]),
        {"goals": GOALS, "script": SCRIPT},
    ),
    "manifest": (
        lambda a: tools.check(Given(manifest=json.dumps(a["pod"]), script=a["script"]), None),
        {"pod": POD, "script": SCRIPT},
    ),
    "place": (tools.place, {"model": "deepseek-v3", "gpus": 16, "redundant_experts": 0, "gpus_per_node": 8, "synthetic": 1.0}),
}
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(),
    st.sampled_from(["\0", "9" * 500, "/dev/zero", "../x", [[]]]),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


def paths(data: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    below = [path for key, value in data.items() if isinstance(value, dict) for path in paths(value, (*above, key))]
    return [(*above, key) for key in data] + below


@pytest.mark.slow
@pytest.mark.parametrize("name", ASKED)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_argument_gets_an_answer_or_one_message(name, data):
    ask, arguments = ASKED[name]
    changed = copy.deepcopy(arguments)
    *above, last = data.draw(st.sampled_from([path for path in paths(arguments) if path not in {("deployment",)}]))
    inner = changed
    for key in above:
        inner = inner[key]
    inner[last] = data.draw(VALUES)
    with contextlib.suppress(AutotuneError):
        json.dumps(ask(changed), allow_nan=False)


@given(run=st.one_of(st.text(), st.sampled_from(["..", ".", "", "\0", "a" * 5000, "/etc", "../contracts"])))
def test_no_folder_but_a_run_of_the_bench_is_read(run):
    with pytest.raises(ProblemError, match="no run"):
        tools.read_file(BENCH, run, "plan.yaml")


@pytest.mark.parametrize("spread", [-1.0, 8.5, 1e29])
def test_a_spread_that_no_traffic_has_is_named(spread):
    with pytest.raises(ProblemError, match="between 0 and 8"):
        tools.place({"model": "deepseek-v3", "gpus": 16, "synthetic": spread})


def test_what_a_command_does_not_say_is_named_where_it_is_wrong():
    with pytest.raises(AutotuneError, match="needs `script` with its hardware"):
        tools.check(Given(command=COMMAND), None)
    with pytest.raises(AutotuneError, match="sise: unknown key"):
        tools.check(Given(command=COMMAND, script={"hardware": "hgx-h200", "sise": 8}), None)

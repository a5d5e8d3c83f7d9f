"""What each command imports: a library that a command has no use for costs its users time at every start."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parent.parent / "fixtures" / "recipes" / "vllm_r1_fp8_8xh200.sh"
DEPLOYMENT = """
hardware: hgx-h200
model: deepseek-v3
precision: fp8-block
engine: {name: vllm}
workload: {isl_tokens: 2000, osl_tokens: 2000}
pools: {decode: {dp: 8, ep: 8, batch_per_dp_rank: 64, all2all_backend: deepep_low_latency}}
"""
PROBE = """
import json, os, sys
before, environment = set(sys.modules), dict(os.environ)
from autotune.cli.main import main
try:
    main()
except SystemExit as stop:
    code = stop.code
names = set(sys.modules) - before
packages = {name.partition(".")[0] for name in names if getattr(sys.modules[name], "__spec__", None)}
rooms = {name.split(".")[1] for name in names if name.startswith("autotune.")}
inherited = {name for name in {*environment, *os.environ} if environment.get(name) != os.environ.get(name)}
print(json.dumps([code, sorted(packages - set(sys.stdlib_module_names)), sorted(rooms), sorted(inherited)]), file=sys.stderr)
"""
COMMAND_LINE = {"typer", "annotated_doc", "typing_extensions"}
MODELS = COMMAND_LINE | {
    "autotune",
    "cost_models",
    "search_spaces",
    "numpy",
    "yaml",
    "pydantic",
    "pydantic_core",
    "annotated_types",
}
MODELS |= {"typing_inspection"}
REPORT = {"rich"}
SCRIPTS = {"jinja2", "markupsafe"}


def imported(*arguments: str) -> tuple[int, set[str], set[str]]:
    """Exit code, packages outside the standard library and rooms of the package that a command imports."""
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False)
    code, packages, rooms, inherited = json.loads(done.stderr.splitlines()[-1])
    assert set(inherited) <= {"PYDANTIC_DISABLE_PLUGINS"}  # what a command starts sees the environment that it was started in
    shared = {name for name in packages if not name.startswith("_")} - {"pygments", "markdown_it", "mdurl", "shellingham"}
    return code, shared, set(rooms)


def test_help_imports_the_command_line_alone():
    code, packages, rooms = imported("--help")
    assert code == 0
    assert packages <= COMMAND_LINE | {"autotune", "cost_models"}
    assert rooms == {"cli", "errors"}


@pytest.fixture
def deployment(tmp_path) -> Path:
    path = tmp_path / "deployment.yaml"
    path.write_text(DEPLOYMENT)
    return path


@pytest.mark.slow
def test_predict_needs_neither_solver_nor_sampler_nor_templates(deployment):
    code, packages, _ = imported("predict", str(deployment), "--json")
    assert code == 0
    assert packages <= MODELS


@pytest.mark.slow
def test_a_printed_prediction_needs_neither_exporters_nor_a_page_nor_layouts(deployment):
    code, packages, rooms = imported("predict", str(deployment))
    assert code == 0
    assert packages <= MODELS | REPORT
    assert rooms == {"cli", "errors", "documents", "predicting", "report", "resolving", "threads"}


def test_check_needs_neither_solver_nor_sampler():
    code, packages, rooms = imported("check", str(RECIPE), "--hw", "hgx-h200")
    assert code == 0
    assert packages <= MODELS | REPORT | SCRIPTS | {"tree_sitter", "tree_sitter_bash"}
    assert not rooms & {"placement", "measuring", "calibrating", "searching", "flags", "layouts", "cp_sat"}


@pytest.mark.slow
def test_the_main_job_needs_neither_solver_nor_sampler_nor_placement(tmp_path):
    code, packages, rooms = imported("search", "--hw", "hgx-b200", "--out", str(tmp_path))
    assert code == 0
    assert packages <= MODELS | REPORT | SCRIPTS
    assert not rooms & {"placement", "measuring", "calibrating", "auditing", "validating"}
    (run,) = tmp_path.iterdir()
    code, packages, rooms = imported("export", str(run), "--format", "lws", "--out", str(tmp_path / "out"))
    assert code == 0
    assert packages <= MODELS | SCRIPTS
    assert not rooms & {"searching", "layouts", "report", "placement", "auditing", "manifests"}


@pytest.mark.slow
def test_a_service_is_searched_with_the_solver_and_without_its_tables(tmp_path):
    code, packages, rooms = imported("search", "--hw", "hgx-b200", "--target", "serve", "--out", str(tmp_path))
    assert code == 0
    assert packages <= MODELS | REPORT | SCRIPTS | {"ortools"}
    assert not rooms & {"placement", "measuring", "calibrating", "auditing", "validating"}

"""Shell completion, asked as a shell asks: by the environment of a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.cli import completing
from cost_models.catalog import hardware_names, model_names
from search_spaces.loader import engine_names

PROBE = "import sys; from autotune.cli.main import main; main()"
HEAVY = "import sys; from autotune.cli import completing; print(sorted({'pydantic', 'numpy', 'yaml', 'rich'} & set(sys.modules)))"


def completed(line: str, folder: Path) -> list[str]:
    words = line.split(" ")
    root = str(Path(__file__).parents[2])
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_AUTOTUNE_COMPLETE": "complete_bash", "PYTHONPATH": root}
    code = PROBE.replace("import sys; ", "import sys; sys.argv = ['autotune']; ")
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("autotune search --hw hgx-h1", ["hgx-h100"]),
        ("autotune hw show gb2", ["gb200-nvl72"]),
        ("autotune search --engine vllm-", ["vllm-ascend"]),
        ("autotune schema chec", ["check"]),
        ("autotune search --calibration m", ["mine.yaml"]),
        ("autotune explain results/2", ["results/2026_run"]),
    ],
)
def test_names_are_completed(line, found, tmp_path):
    (tmp_path / "results" / "2026_run").mkdir(parents=True)
    (tmp_path / "results" / "2026_run" / "plan.yaml").touch()
    (tmp_path / "mine.yaml").touch()
    assert completed(line, tmp_path) == found


def test_names_are_those_of_the_catalogues():
    assert completing.hardware("") == sorted(hardware_names())
    assert completing.models("") == sorted(model_names())
    assert completing.engines("") == sorted(engine_names())
    assert completing.hardware("hgx-h2") == ["hgx-h20", "hgx-h200"]
    assert completing.models("no-such") == []


def test_run_folders_are_found_where_one_types(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("results/a", "results/b", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "results" / "a" / "plan.yaml").touch()
    assert completing.runs("") == ["other/", "results/", "results/a", "results/b/"]
    assert completing.runs("results/") == ["results/a", "results/b/"]
    assert completing.runs("nowhere/x") == []
    assert completing.calibrations("nowhere/") == []


def test_completing_loads_no_library():
    done = subprocess.run([sys.executable, "-c", HEAVY], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

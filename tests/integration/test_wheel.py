"""The wheel holds exactly the three packages and works from another directory."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_wheel_contains_the_packages_and_their_data_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"autotune", "cost_models", "search_spaces", "moe_autotune-0.1.0.dist-info"}
    for needed in (
        "cost_models/data/hardware/gb200-nvl72.yaml",
        "cost_models/data/calibrations/gb200-vllm.yaml",
        "search_spaces/data/vllm.yaml",
        "autotune/exporters/templates/node.sh.j2",
        "autotune/ui/static/app.js",
        "autotune/ui/static/vendor/jsoneditor.js",
        "autotune/data/cases/published_decode.yaml",
        "autotune/py.typed",
    ):
        assert needed in names


@pytest.mark.slow
def test_the_installed_wheel_runs_from_another_directory(wheel, tmp_path):
    # dependencies come from the environment the tests run in, the package only from the wheel: .pth
    # files are not read on PYTHONPATH, so an editable installation there has no effect
    environment = tmp_path / "venv"
    venv.create(environment)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "-q", "--no-deps", str(wheel)], check=True, capture_output=True)
    site = next(path for path in sys.path if path.endswith("site-packages"))
    done = subprocess.run(
        [python, "-P", "-m", "autotune", "search", "--hw", "hgx-b200", "--trials", "4", "--out", "runs"],
        cwd=tmp_path,
        env={"PYTHONPATH": site, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "tokens/s/GPU" in done.stdout
    assert list((tmp_path / "runs").glob("*/launch/plan-1/*.sh"))

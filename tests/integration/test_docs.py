"""The pages say what works: their examples and commands are run as they stand."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.cli.main import main

DOCS = Path(__file__).parents[2] / "docs"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [body for name, body in FENCE.findall(text) if name == language]


@pytest.mark.slow
def test_the_examples_of_the_python_page_run_in_order(capsys):
    examples = blocks("api.md", "python")
    session: dict[str, object] = {}
    for number, example in enumerate(examples, 1):
        exec(compile(example, f"docs/api.md, example {number}", "exec"), session)
    assert len(examples) == 10
    assert "tokens/s/GPU" in capsys.readouterr().out


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run_in_order(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    ran = []
    for block in blocks("tutorial.md", "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = [str(next(Path().glob(word), word)) if "*" in word else word for word in shlex.split(line, comments=True)]
            if words[:1] == ["autotune"]:
                monkeypatch.setattr(sys, "argv", words)
                with pytest.raises(SystemExit) as stop:
                    main()
                assert int(stop.value.code or 0) == 0, f"{line}: {capsys.readouterr().err}"
                ran.append(words[1])
    assert {"search", "explain", "compare", "export", "check"} <= set(ran)


@pytest.mark.slow
def test_the_commands_of_the_tuning_page_run_on_the_simulated_engine(tmp_path):
    """Its bash blocks as one script, in a folder that stands for a clone."""
    (tmp_path / "tests").symlink_to(DOCS.parent / "tests")
    name = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "SIMULATED_PYTHON": sys.executable}
    (tmp_path / "bin").mkdir()
    own = tmp_path / "bin" / "autotune"
    own.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m autotune "$@"\n')
    own.chmod(0o755)
    name["PATH"] = f"{own.parent}{os.pathsep}{name['PATH']}"
    script = "\n".join(["set -eu", *blocks("tuning.md", "bash")])
    environment = {**os.environ, **name, "PYTHONPATH": str(DOCS.parent)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode in (0, 2), done.stderr  # `check` of a plan that only just meets its limits says so
    assert "best: trial" in done.stdout
    assert "out_of_memory_under_load" in done.stdout

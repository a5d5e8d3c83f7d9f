"""The pages say what works: their examples and commands are run as they stand."""

from __future__ import annotations

import re
import shlex
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

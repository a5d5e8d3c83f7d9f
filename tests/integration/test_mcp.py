"""A scripted client of the assistant's server: search, ask why, take the scripts; errors are messages."""

from __future__ import annotations

import asyncio
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(find_spec("mcp") is None, reason="needs the extra `mcp`"),  # found, not imported: that takes a second
]


def talk(out: Path, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """Results of tool calls on one server; an error is its text."""
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    async def run() -> list[Any]:
        server = StdioServerParameters(command=sys.executable, args=["-m", "autotune", "mcp", "--out", str(out)])
        async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            answers = []
            for name, arguments in calls:
                found = await session.call_tool(name, arguments)
                text = "".join(part.text for part in found.content if part.type == "text")
                answers.append(text if found.is_error else json.loads(text))
            return answers

    return asyncio.run(run())


def test_an_assistant_searches_asks_why_and_takes_the_scripts(tmp_path: Path) -> None:
    problem = {"hardware": "hgx-h200", "gpus": 8, "trials": 0}
    (found,) = talk(tmp_path, ("search", {"problem": problem}))
    run = found["run"]
    assert (tmp_path / run / "plan.yaml").is_file()
    why, scripts, missing, wrong = talk(
        tmp_path,
        ("explain", {"run": run, "layout": "tp8"}),
        ("export", {"run": run}),
        ("explain", {"run": "../secrets", "layout": "tp8"}),
        ("search", {"problem": {"hardware": "hgx-h200", "gpu": 8}}),
    )
    assert why["layout"].startswith("TP8")
    assert why["relative"] <= 0
    written = tmp_path / run / "launch" / "plan-1"
    assert scripts.keys() == {path.name for path in written.iterdir()} - {"README.md"}
    assert all((written / name).read_text() == text for name, text in scripts.items())
    assert "no run '../secrets'" in missing
    assert "gpu: unknown key" in wrong
    assert str(tmp_path) not in missing


def test_a_command_line_is_judged_and_a_deployment_predicted(tmp_path: Path) -> None:
    command = "vllm serve deepseek-ai/DeepSeek-R1-0528 --tensor-parallel-size 8"
    verdict, nothing = talk(
        tmp_path, ("check", {"command": command, "script": {"hardware": "hgx-h200"}}), ("check", {"command": command})
    )
    assert verdict["answer"] == "works"
    assert "needs `script` with its hardware" in nothing

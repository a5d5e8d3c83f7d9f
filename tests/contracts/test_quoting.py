"""Any text in any place of a script: run by bash with a stub for the engine, words compared, nothing executed."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import autotune.exporters
from autotune.documents.deployment import Deployment
from autotune.errors import ExportError
from autotune.exporters import export
from autotune.exporters.base import Argument, Beside, NodePlacement, Required, render_script, render_template
from autotune.exporters.quoting import Shell, json_word, name, note, word
from cost_models.catalog import _packaged

PIECES = [
    "$(touch pwned)", "`touch pwned`", "${HOME}", "$HOME", "$((1+1))", "$'a'", '"', "'", "\\", "\n", "\r", "}", "{a,b}", "*", "?",
    "~", "!!", "# ", ";", "&", "|", ">pwned", "<", "<(", ">(",
    "\t", "\u2028", "\x85", "%s", "--x", "a b", "é", "\x7f", "\x01", "EOF\n",
]  # fmt: skip
HOSTILE = st.one_of(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=30),
)
STUB = '#!/bin/bash\nprintf "%s\\0" "$@" > argv\n'
EXAMPLES = int(os.environ.get("AUTOTUNE_HOSTILE", "25"))
"""Scripts of eight hostile texts each."""
RUN = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def bash(text: str, folder: Path, **variables: str) -> list[str]:
    """The words that the stub `vllm` was called with; fails where anything else was run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "vllm").write_text(STUB)
    (folder / "vllm").chmod(0o755)
    (folder / "script.sh").write_text(text, encoding="utf-8", newline="")
    (folder / "map.json").write_text("{}")
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": "/nowhere", **variables}
    done = subprocess.run(["bash", "script.sh"], cwd=folder, env=environment, capture_output=True, check=False)
    assert not done.returncode, (text, done.stderr)
    assert {p.name for p in folder.iterdir()} == {"vllm", "script.sh", "map.json", "argv"}
    return (folder / "argv").read_bytes().decode().split("\0")[:-1]


@RUN
@given(st.lists(HOSTILE, min_size=8, max_size=8))
def test_text_in_every_field_of_the_template_arrives_whole(tmp_path, texts):
    title, comment, help_, default, variable, value, leaf, key = texts
    script = render_script(
        title=title,
        comments=[comment],
        required=[Required("URL", help_)],
        beside=[Beside("MAP", "map.json", help_)],
        optional={"MODEL": default},
        place=NodePlacement(1, 8, 1),
        environment={"FROM": variable},
        command=Shell('vllm serve "$MODEL" "$FROM"'),
        arguments=[Argument("--value", value), Argument(value), Argument("--json", json_word({key: [leaf, Shell("$URL")]}))],
    )
    words = bash(script, tmp_path / "run", URL="7")
    assert words == ["serve", default, variable, "--value", value, value, "--json", words[-1]]
    assert json.loads(words[-1]) == {key: [leaf, 7]}


@RUN
@given(HOSTILE)
def test_what_is_missing_is_said_without_running_what_the_help_holds(tmp_path, help_):
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / "run").mkdir()
    script = render_template(
        "bench.sh.j2", title="t", comments=[], required=[Required("URL", help_)], optional={}, command=Shell("true"), arguments=[]
    )
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path / "run", env={}, capture_output=True, check=False)
    assert done.returncode
    assert b"URL: set it to " in done.stderr
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.slow
@RUN
@given(folder=st.lists(st.sampled_from([p for p in PIECES if "/" not in p]), min_size=1, max_size=5).map("".join))
@pytest.mark.parametrize("engine", ["vllm", "sglang", "vllm-ascend"])
def test_a_checkpoint_s_folder_reaches_the_engine_as_it_is(tmp_path, engine, folder):
    where = tmp_path / "models" / f"a{folder}"
    where.mkdir(parents=True, exist_ok=True)
    hardware = "ascend-910b2" if engine == "vllm-ascend" else "hgx-h200"
    config = json.dumps({**small_config(), "torch_dtype": "bfloat16"})
    (where / "config.json").write_text(config)
    pool = {"tp": 8, "batch_per_dp_rank": 8}
    document = {
        "hardware": hardware, "model": str(where / "config.json"), "precision": "bf16", "engine": {"name": engine},
        "phase": "serve",
        "workload": {"isl_tokens": 100, "osl_tokens": 100}, "load": {"rate_per_s": 1.0}, "pools": {"serve": pool},
    }  # fmt: skip
    for script in export(Deployment.model_validate(document)):
        text = script.text.replace("python3 -m", "vllm -m")
        words = bash(text, tmp_path / "run", URL="http://u", NODE_ADDRESS="n", NIC="e", WAIT_S="0")
        assert str(where) in words


def small_config() -> dict:
    return _packaged("models", "qwen3-235b-a22b")["config"]


def test_a_plain_string_in_a_template_is_refused():
    with pytest.raises(TypeError, match="say how it is quoted"):
        render_template("bench.sh.j2", title="t", comments=[], required=[], optional={}, command="vllm serve", arguments=[])
    with pytest.raises(TypeError, match="say how it is quoted"):
        render_template("bench.sh.j2", title="t", comments=[], required=[], optional={}, command=Shell("a"), arguments=["--b c"])


def test_what_no_command_line_can_hold_is_refused():
    with pytest.raises(ExportError, match="NUL"):
        word("a\0b")
    with pytest.raises(ExportError, match="not a name"):
        name("A=1; touch")
    with pytest.raises(TypeError, match="whole numbers"):
        Shell("{a}").filled(a="$(touch pwned)")  # type: ignore[arg-type]
    assert note("one\ntwo\r\x85\u2028three") == "one\\ntwo\\r\\x85\\u2028three"


def test_shell_text_is_written_out_wherever_it_is_made():
    """Shell(...) takes a literal: only quoting.py, and the two words of an option, put shell text together."""
    folder = Path(autotune.exporters.__file__).parent
    made = []
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Shell" and path.name != "quoting.py":
                made += [path.name] if any(not isinstance(a, ast.Constant) for a in node.args) else []
    assert made == ["base.py"]  # Argument.rendered

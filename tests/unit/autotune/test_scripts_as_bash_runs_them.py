"""What is read of a script against what bash itself does: its own variables, arrays, branches, arithmetic, here-documents."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from autotune.auditing.bash.interpreter import Interpreter
from autotune.auditing.bash.printing import MOST_COUNTED
from autotune.auditing.commands import read_command
from autotune.auditing.shell import find_command, written_files
from autotune.cli.main import app
from autotune.errors import ProblemError, StartsNothing
from autotune.manifests.registry import read_any

BASH = shutil.which("bash")
RECORDER = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> Path:
    """A folder with a `vllm` that prints its words."""
    folder = tmp_path_factory.mktemp("engines")
    (folder / "vllm").write_text(RECORDER)
    (folder / "vllm").chmod(0o755)
    return folder


def by_bash(text: str, engines: Path, folder: Path, **variables: str) -> list[str]:
    """The words after `vllm serve` of what bash starts first."""
    done = subprocess.run(
        [str(BASH), "-c", text],
        env={"PATH": f"{engines}:{os.environ['PATH']}", **variables},
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    return json.loads(done.stdout.splitlines()[0])[1:]


SCRIPTS = {
    "variables, quoted and not": 'A="x y"; B=\'p q\'\nvllm serve m $A "$B" "$A-$B" x$A"z" \\w',
    "nothing in an unquoted variable is no word": 'E=""; S=" --ep "; vllm serve m $E "$E" $S end',
    "defaults": 'vllm serve m ${A:-1} "${B:-x y}" ${TP-7} ${C:+c} ${TP:+t} ${D:-$(( TP * 3 / 2 > 8 ? TP * 3 / 2 : 8 ))}',
    "arrays": 'A=(--a "x y")\nA+=(--c $TP)\nN=()\nvllm serve m "${A[@]}" "${N[@]}" ${A[@]} "$A"',
    "arrays over lines": 'A=(\n  --a 1  # a note\n  --b\n)\nvllm serve m "${A[@]}"',
    "appended": "A=1\nA+=2\nvllm serve m $A",
    "if": 'if [ "$TP" -gt 4 ]; then EP=--ep; else EP=; fi\nvllm serve m $EP',
    "elif": "if [[ $TP -eq 4 ]]; then X=1\nelif [[ $TP == 8 && $ISL != 1 ]]; then X=2\nelse X=3; exit 1; fi\nvllm serve m $X",
    "nested": 'if [[ $TP -ge 8 ]]; then\n  if [ "$ISL" = 1024 ]; then X=a; else X=b; fi\nfi\nvllm serve m $X',
    "not and or": 'if ! [[ -z "$TP" || $TP -lt 3 ]]; then X=1; fi\nvllm serve m ${X:-0}',
    "parentheses": '[[ ( $TP -eq 8 && $ISL -lt 2000 ) || "$ISL" == x* ]] && X=1 || X=2\nvllm serve m $X',
    "patterns": 'M=/models/x; if [[ "$M" == /* ]]; then L=local; fi; if [[ "$M" == "/*" ]]; then L=never; fi; vllm serve m $L',
    "case": 'case "$TP" in\n  1|2) X=small ;;\n  [4-8]) X=mid ;;\n  *) X=big ;;\nesac\nvllm serve m $X',
    "arithmetic": "vllm serve m $((TP * 2 + 1)) $(( TP > 4 ? TP : 4 )) $(( (ISL + 63) / 64 * 64 )) $((-7 / 2)) $(( !TP ))",
    "what is not looked at": "vllm serve m $(( 0 && 1 / 0 )) $(( 1 || 1 / 0 )) $(( TP ? 3 : 4 )) $((-7 % 3))",
    "arithmetic branch": "X=0; if (( TP >= 8 )); then X=1; fi; (( TP < 2 )) && X=2\nvllm serve m $X",
    "unquoted json": 'vllm serve m --k "{\\"n\\": $TP, \\"p\\": \\"$(dirname /a/b/c)/d\\"}" --j \'{"a": [1]}\'',
    "substituted": "vllm serve m $( [[ $TP -gt 4 ]] && echo 30 || echo 10 ) \"$(printf '%s, ' 1 2)\" $(seq 2 3 9)",
    "cut": 'L="1, 2, "; P=a/b/c.tar.gz; vllm serve m "[${L%, }]" ${P##*/} ${P%%.*} ${P#*/} ${P%/*}',
    "function": 'run() { vllm serve m "$1" --n $2; }\nrun "a b" 3',
    "loop": "for i in 3 5; do vllm serve m --port 800$i; done",
    "inside another": "bash -c 'X=1; vllm serve m --x $X'",
    "redirected": "vllm serve m --a 2> log &\nwait",
    "continued": "vllm serve m \\\n  --a \\\n  b",
    "one line of variables after another": "A=1 B=2\nC=3\nvllm serve m $A $B $C",
    "comments": "vllm serve m --a # not this\n# nor this",
    "dollar quotes": "vllm serve m $'a\\tb' \"\\$x\" '\\n'",
}


@pytest.mark.skipif(BASH is None, reason="bash is not here")
@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_words_are_those_that_bash_passes_on(text, engines, tmp_path):
    variables = {"TP": "8", "ISL": "1024"}
    expected = tuple(word for word in by_bash(text, engines, tmp_path, **variables) if word)
    assert find_command(text, variables).words == expected


@pytest.mark.skipif(BASH is None, reason="bash is not here")
@pytest.mark.parametrize("dp", ["true", "false"])
def test_files_are_those_that_bash_writes(tmp_path, dp):
    text = (
        'F="c.yml"\nMODE="a: 1\nb: 2"\ncat > $F <<EOF\ndp: $DP\n  x: "${N:-3}"\n$MODE\nEOF\n'
        'if [[ "$DP" == "true" ]]; then\n  cat << EOF >> $F\nmore: yes\nEOF\nfi\n'
        "cat <<'EOF' > raw\n$DP\nEOF\necho \"e: $DP\" >> $F\ntee t.yml <<-EOF\n\tz: 1\n\tEOF\n"
    )
    subprocess.run(
        [str(BASH), "-c", text], env={"PATH": os.environ["PATH"], "DP": dp}, cwd=tmp_path, check=True, capture_output=True
    )
    found = written_files(text, {"DP": dp})
    assert found == {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert ("more" in found["c.yml"]) == (dp == "true")


SIGNS = ("+", "-", "*", "/", "%", "<", ">", "<=", ">=", "==", "!=", "&&", "||")
NUMBERS = st.integers(-50, 50)
TERMS = st.recursive(
    NUMBERS.map(str),
    lambda inner: st.tuples(st.sampled_from(["({})", "{}"]), inner, st.sampled_from(SIGNS), inner).map(
        lambda t: t[0].format(" ".join(t[1:]))
    ),
    max_leaves=6,
)


@pytest.mark.slow
@pytest.mark.skipif(BASH is None, reason="bash is not here")
@given(terms=st.lists(TERMS, min_size=20, max_size=20))
def test_arithmetic_is_bash_s(terms):
    """Division by zero alone has no number."""
    asked = "\n".join(f"(echo $(( {term} ))) 2>/dev/null || echo none" for term in terms)
    expected = subprocess.run([str(BASH), "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    for term, value in zip(terms, expected, strict=True):
        found = find_command(f"vllm serve m $(( {term} ))").words[1]
        assert found == value or (value == "none" and found.startswith("$((")), term


def test_a_branch_on_what_nothing_sets_is_read_as_the_shell_would_and_said():
    text = 'ARGS=""\nif [ "${EVAL_ONLY}" = "true" ]; then ARGS="--max-model-len $LEN"; fi\nvllm serve m $ARGS'
    found = find_command(text)
    assert found.words == ("m",)
    assert found.remarks == (
        "the script's branches ask for EVAL_ONLY, which nothing sets: read as the shell would with nothing in them",
    )
    assert find_command(text, {"EVAL_ONLY": "true", "LEN": "9"}).words == ("m", "--max-model-len", "9")
    assert not find_command('[ -n "$SLURM_JOB_ID" ] && echo here\nvllm serve m').remarks  # nothing rests on it


def test_of_a_branch_that_cannot_be_decided_both_sides_are_read_and_it_is_said():
    text = "if nvidia-smi | grep -q H100; then TP=8; else TP=4; fi\nvllm serve m -tp $TP"
    found = find_command(text)
    assert found.words == ("m", "-tp", "4")
    assert "all sides were read and the last counts: 'if nvidia-smi" in found.remarks[0]
    assert find_command("if [[ $TP -eq 8 ]]; then X=1; fi\nvllm serve m").remarks  # no number, so bash itself would take 0


def test_a_script_that_ends_before_its_engine_says_so():
    text = "if [[ $TP -eq 3 ]]; then echo 'no such size'; exit 2; fi\nvllm serve m"
    with pytest.raises(ProblemError, match="ends with 'exit 2' before it starts an engine"):
        find_command(text, {"TP": "3"})
    assert find_command(text, {"TP": "4"}).words == ("m",)
    assert find_command(text).words == ("m",)  # not decided: it may go on


def test_what_a_function_does_that_nobody_calls_ends_no_script():
    assert find_command("usage() { echo how; exit 1; }\nvllm serve m").words == ("m",)
    assert find_command("main() { vllm serve m -tp 2; }").words == ("m", "-tp", "2")
    with pytest.raises(ProblemError, match="ends with 'exit 1'"):
        find_command("die() { exit 1; }\ndie\nvllm serve m")


def test_what_a_program_prints_is_not_known_and_stays_as_it_stands():
    assert find_command("N=$(nproc)\nvllm serve m --n $N -x $(hostname -I | cut -f1)").words == (
        "m", "--n", "$(nproc)", "-x", "$(hostname -I | cut -f1)",
    )  # fmt: skip
    assert find_command(f"vllm serve m $(seq 1 {MOST_COUNTED + 2})").words[1].startswith("$(seq")
    assert find_command('cd $(dirname $0)\nF=$(dirname "$0")/x\nvllm serve m --config $F').words[-1] == "./x"


def test_what_a_loop_counts_is_not_known_after_it():
    """The script that starts TensorRT-LLM over nodes counts its hosts, and ends where they are not as many as it needs."""
    text = "count=0 list=\nfor host in $HOSTS; do list+=,$host count=$((count + 1)) last=x; done\n"
    text += 'if (( count != 2 )); then exit 1; fi\nvllm serve m --n $count --l "$list" --x $last'
    assert find_command(text, {"HOSTS": "a b"}).words == ("m", "--n", "$count", "--l", "$list", "--x", "x")
    assert find_command('A=()\nwhile read x; do A+=(--a $x); done\nvllm serve m "${A[@]}"').words == ("m", "$A")


def test_an_engine_in_a_here_document_is_started():
    assert find_command("ssh node <<EOF\nvllm serve m -tp $TP\nEOF\n", {"TP": "8"}).words == ("m", "-tp", "8")


@pytest.mark.parametrize(
    "text", ["a" + " && a" * 5000, "x=" + "${a:-" * 400 + "}" * 400, "f() { f; }\nf", "((" * 3000, "A=$(A=$(" * 500]
)
def test_hostile_scripts_end_in_one_message(text):
    with pytest.raises((StartsNothing, ProblemError)):
        find_command(text)


@given(text=st.text(alphabet="ab$={}()[]|;&<> \t\n'\"\\#!-09", max_size=60))
def test_whatever_the_text_reading_it_ends(text):
    with contextlib.suppress(ProblemError):
        Interpreter({}).run(text)


OUTSIDE = "if [[ $TP -eq 8 ]]; then EP=--enable-expert-parallel; fi\nvllm serve deepseek-ai/DeepSeek-R1-0528 -tp $TP $EP"


def test_what_a_script_takes_from_outside_is_set_beside_it(tmp_path):
    (tmp_path / "serve.sh").write_text(OUTSIDE)
    asked = ["check", str(tmp_path / "serve.sh"), "--hw", "hgx-h200", "--json"]
    run = CliRunner().invoke(app, [*asked, "--set", "TP=8"])
    assert json.loads(run.stdout)["gpus"] == 8
    assert "--set NAME=VALUE says" in str(CliRunner().invoke(app, asked).exception)
    assert "takes NAME=VALUE, 'TP' was given" in str(CliRunner().invoke(app, [*asked, "--set", "TP"]).exception)


def test_what_is_set_beside_a_script_may_decide_what_it_starts(tmp_path):
    """Two engines by one variable, none without it: the commands are counted and roles told with what is set."""
    text = "if [[ $SIDE == both ]]; then vllm serve Qwen/Qwen3-8B --port 8001; fi\n"
    text += "if [[ -n $SIDE ]]; then vllm serve Qwen/Qwen3-8B -tp 2; fi\n"
    (tmp_path / "serve.sh").write_text(text)
    started = {side: read_any(tmp_path / "serve.sh", None, {"SIDE": side}).services for side in ("both", "one")}
    assert [(len(services), services[0].environment) for services in started.values()] == [
        (2, {"SIDE": "both"}), (1, {"SIDE": "one"}),
    ]  # fmt: skip
    with pytest.raises(StartsNothing):
        read_any(tmp_path / "serve.sh")
    asked = ["check", str(tmp_path / "serve.sh"), "--hw", "hgx-h200", "--json", "--set", "SIDE=one"]
    assert json.loads(CliRunner().invoke(app, asked).stdout)["gpus"] == 2


def pool_of(text: str, **said):
    return read_command(text, hardware="hgx-h200", isl_tokens=1000, osl_tokens=1000, **said).deployment.pool


@pytest.mark.parametrize("beside", [True, False])
def test_options_of_vllm_s_file_count_where_the_command_does_not_say_them(tmp_path, beside):
    """utils/argparse_utils.py puts them before the command line's, of which the last counts."""
    options = "tensor-parallel-size: 8\nmax-num-seqs: 64\nenable_expert_parallel: true\nenforce-eager: false\n"
    (tmp_path / "c.yaml").write_text(options)
    written = "" if beside else f"cat > c.yaml <<EOF\n{options}EOF\n"
    command = f"{written}vllm serve deepseek-ai/DeepSeek-R1-0528 --config c.yaml --max_num_seqs 32"
    pool = pool_of(command, folder=tmp_path if beside else None, size=None)
    assert (pool.tp, pool.ep, pool.batch_per_dp_rank, pool.cuda_graph) == (8, 8, 32, True)


def test_a_file_of_options_that_is_not_here_leaves_the_answer_open():
    found = read_command("vllm serve Qwen/Qwen3-32B --config gone.yaml", hardware="hgx-h200", isl_tokens=9, osl_tokens=9)
    assert [option.option for option in found.unmodelled] == ["--config gone.yaml"]
    with pytest.raises(ProblemError, match="no mapping of options"):
        pool_of("cat > c.yaml <<EOF\n- a\nEOF\nvllm serve Qwen/Qwen3-32B --config c.yaml")

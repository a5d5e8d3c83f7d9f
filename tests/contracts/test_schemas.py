"""What every command prints with --json is what its published schema says, and a published schema never changes."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml

from autotune.cli import printed
from autotune.cli.main import app, main
from autotune.cli.published import ENTRIES, find
from autotune.documents.results import load_plans
from autotune.errors import ProblemError

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "docs" / "schemas"
RECIPE = str(ROOT / "tests" / "fixtures" / "recipes" / "vllm_r1_fp8_8xh200.sh")
SMALL = {"hardware": "hgx-h200", "model": "llama-3.1-70b", "gpus": 1, "trials": 0}
PREFILL = {
    "hardware": "hgx-h200",
    "model": "llama-3.1-70b",
    "precision": "fp8-tensor",
    "engine": {"name": "vllm"},
    "phase": "prefill",
    "workload": {"isl_tokens": 1024, "osl_tokens": 128},
    "pools": {"prefill": {"tp": 4, "max_batched_tokens": 2048}},
}
SERVICE = {**PREFILL, "phase": "serve", "pools": {"serve": {"tp": 4}}, "load": {"concurrency": 4}}


@pytest.fixture
def output(monkeypatch, capsys):
    """The JSON document that a command prints."""

    def command(*arguments: str, code: int = 0):
        monkeypatch.setattr(sys, "argv", ["autotune", *arguments, "--json"])
        with pytest.raises(SystemExit) as stop:
            main()
        found = capsys.readouterr()
        assert int(stop.value.code or 0) == code, found.err
        return json.loads(found.out)

    return command


@pytest.fixture
def written(tmp_path):
    def write(name: str, document) -> str:
        (tmp_path / name).write_text(yaml.safe_dump(document))
        return str(tmp_path / name)

    return write


def published(name: str):
    return json.loads((SCHEMAS / find(name).file_name).read_text())


def holds(name: str, document) -> None:
    jsonschema.Draft202012Validator(published(name)).validate(document)


def publisher():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import schemas
    finally:
        sys.path.pop(0)
    return schemas


def test_published_schemas_are_those_of_the_code():
    tool = publisher()
    assert {file.name for file in SCHEMAS.iterdir()} >= {entry.file_name for entry in ENTRIES}
    assert [entry.id for entry in ENTRIES if tool.changed(entry, SCHEMAS)] == []


def test_a_changed_document_is_refused_until_its_version_is_raised(tmp_path, monkeypatch):
    tool = publisher()
    entry = find("hw-list")
    assert tool.publish((entry,), tmp_path) == []
    before = (tmp_path / entry.file_name).read_text()
    monkeypatch.setattr(printed, "HardwareListed", printed.EngineListed)
    assert tool.publish((entry,), tmp_path) == ["autotune/hw-list/1"]
    assert (tmp_path / entry.file_name).read_text() == before
    assert tool.publish((dataclasses.replace(entry, version=2),), tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 2


def test_every_command_with_json_output_has_a_schema():
    def walk(command, path=()):
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*path, name))
        if any("--json" in parameter.opts for parameter in command.params):
            yield " ".join(path)

    assert {entry.command for entry in ENTRIES if entry.command} == set(walk(typer.main.get_command(app)))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_schemas_are_valid_and_say_their_name_and_version(entry):
    schema = published(entry.name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"autotune/{entry.name}/{entry.version}"


def test_documents_that_name_their_format_have_the_version_of_their_schema():
    for name, format_ in (("plan", "autotune-plan/2"), ("service-plan", "autotune-service-plan/2")):
        assert published(name)["properties"]["format"]["const"] == format_
        assert find(name).version == int(format_[-1])


def test_unknown_documents_are_named_with_near_ones():
    with pytest.raises(ProblemError, match=r"deploymnt.*deployment"):
        find("deploymnt")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hw", "model", "engine"])
def test_catalogues_print_what_their_schemas_say(output, kind):
    rows = output(kind, "list")
    holds(f"{kind}-list", rows)
    for row in rows:
        holds(f"{kind}-show", output(kind, "show", row["name"]))


@pytest.mark.slow
def test_searches_and_what_reads_their_folders(output, tmp_path):
    options = ("search", "--hw", "hgx-h200", "--model", "llama-3.1-70b", "--gpus", "1", "--trials", "0")
    holds("search", output(*options, "--out", str(tmp_path)))
    holds("search", output(*options, "--target", "prefill", "--out", str(tmp_path)))
    runs = [str(folder) for folder in sorted(tmp_path.iterdir())]
    holds("compare", output("compare", *runs))
    holds("explain", output("explain", runs[0], "--why", "tp1"))
    assert load_plans(Path(runs[0])).plans
    plan = yaml.load((Path(runs[0]) / "plan.yaml").read_text(), Loader=yaml.CSafeLoader)
    holds("plan", plan)
    holds("deployment", plan["plans"][0]["deployment"])


@pytest.mark.slow
def test_searches_of_services(output):
    found = output("search", "--hw", "hgx-h200", "--model", "llama-3.1-70b", "--gpus", "2", "--target", "serve", "--no-save")
    holds("search", found)
    holds("service-plan", found)


def test_predictions_of_every_phase(output, written):
    decode = {**PREFILL, "phase": "decode", "pools": {"decode": {"tp": 4, "batch_per_dp_rank": 32}}}
    for name, document in (("decode", decode), ("prefill", PREFILL), ("serve", SERVICE)):
        holds("predict", output("predict", written(f"{name}.yaml", document)))
        holds("deployment", document)


@pytest.mark.slow
def test_verdicts_sensitivities_and_verified_runs(output, written, tmp_path):
    holds("check", output("check", RECIPE, "--hw", "hgx-h200"))
    holds("sensitivity", output("sensitivity", RECIPE, "--hw", "hgx-h200"))
    ran = {
        "backend": "vllm", "num_prompts": 64, "completed": 64, "total_input_tokens": 64 * 1024, "total_output_tokens": 64 * 128,
        "max_concurrency": 4, "duration": 100.0, "request_rate": "inf", "output_throughput": 81.92,
        "mean_tpot_ms": 20.0, "median_tpot_ms": 20.0, "p99_tpot_ms": 21.0, "mean_ttft_ms": 90.0, "median_ttft_ms": 90.0,
        "p99_ttft_ms": 99.0,
    }  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(ran))
    document = written("d.yaml", SERVICE)
    holds("verify", output("verify", str(tmp_path / "bench.json"), "--deployment", document, "--tpot", "1ms", code=2))


@pytest.mark.slow
def test_placements(output):
    base = ("place", "--synthetic", "1.0", "--gpus", "32", "--model", "deepseek-v3")
    holds("place", output(*base))
    holds("place-sweep", output(*base, "--sweep"))


@pytest.mark.slow
def test_validation_and_that_it_leaves_the_accuracy_table_of_the_readme_as_it_is(output, tmp_path):
    readme = (ROOT / "README.md").read_text()
    (tmp_path / "README.md").write_text(readme)
    found = output("validate", "--update", str(tmp_path / "README.md"))
    holds("validate", found)
    assert [document["named"]["cases"] for document in found] == [7, 13, 3]
    assert (tmp_path / "README.md").read_text() == readme


def test_sweeps(output, written, tmp_path):
    bad = {**SMALL, "tpot_limit_s": -1}
    sweep = ("sweep", written("s.yaml", [SMALL, bad]), "--workers", "1", "--format", "csv", "--out", str(tmp_path / "s"))
    holds("sweep", output(*sweep, code=1))

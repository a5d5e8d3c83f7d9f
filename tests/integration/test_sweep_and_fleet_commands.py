"""`autotune sweep` and `autotune fleet` as commands: output, exit codes, messages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from autotune.cli.main import main
from autotune.cli.published import find
from autotune.documents.fleet import FleetResult
from autotune.documents.sweep import SweepResult

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
LLAMA = {"hardware": "hgx-h200", "model": "llama-3.1-70b", "gpus": 1, "trials": 0}


@pytest.fixture
def run(monkeypatch, capsys):
    """Exit code, standard output and error of a command."""

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["autotune", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        found = capsys.readouterr()
        return int(stop.value.code or 0), found.out, found.err

    return command


def written(path, document) -> str:
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_a_sweep_reports_its_plans_and_its_bad_lines(run, tmp_path):
    path = written(tmp_path / "s.yaml", [LLAMA, {**LLAMA, "tpot_limit_s": -1}])
    code, out, err = run("sweep", path, "--out", str(tmp_path / "o"), "--workers", "1", "--format", "csv")
    assert code == 1
    assert "2 problems: 1 with a plan, 1 bad" in out
    assert "llama-3.1-70b, hgx-h200, decode" in out
    assert err.startswith(f"error: {path}:5: tpot_limit_s: ")
    assert (tmp_path / "o" / "table.csv").read_text().count("\n") == 3
    code, out, _ = run("sweep", path, "--out", str(tmp_path / "o"), "--workers", "1", "--json", "--format", "csv")
    result = SweepResult.model_validate_json(out)
    assert (code, result.solved, len(result.rows)) == (1, 0, 2)


def test_a_sweep_without_any_plan_ends_with_code_two(run, tmp_path):
    path = written(tmp_path / "s.yaml", [{**LLAMA, "tpot_limit_s": 0.0001}])
    code, out, _ = run("sweep", path, "--out", str(tmp_path / "o"), "--workers", "1", "--format", "csv")
    assert code == 2
    assert "1 without a feasible plan" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{absent}",), "no such file"),
        (("{file}", "--slice", "4/4"), "slice '4/4'"),
        (("{file}", "--executor", "dask"), "unknown executor 'dask'"),
        (("{file}", "--address", "auto"), "use --executor ray"),
        (("{file}", "--format", "xls"), "choose one of parquet, csv"),
        (("{file}", "--slurm", "0"), "at least 1 job"),
        (("{file}", "--out", "{file}"), "is not a folder"),
    ],
)
def test_bad_input_of_a_sweep_is_one_message(run, tmp_path, arguments, message):
    names = {"{file}": written(tmp_path / "s.yaml", [LLAMA]), "{absent}": str(tmp_path / "absent.yaml")}
    code, _, err = run("sweep", *(names.get(word, word) for word in arguments))
    assert code == 1
    assert message in err
    assert err.count("\n") == 1


def test_the_job_array_is_printed(run, tmp_path):
    code, out, _ = run("sweep", written(tmp_path / "s.yaml", [LLAMA]), "--slurm", "3", "--out", str(tmp_path / "o"))
    assert code == 0
    assert out.startswith("#!/bin/bash\n#SBATCH")
    assert not (tmp_path / "o").exists()


FLEET = {
    "models": [{"name": "chat", "model": "llama-3.1-70b", "rate_per_s": 2, "workload": {"isl_tokens": 200, "osl_tokens": 20}}],
    "clusters": [{"name": "east", "hardware": "hgx-h200", "racks": 1}],
}


@pytest.mark.slow
def test_a_fleet_reports_services_clusters_and_the_next_rack(run, tmp_path):
    path = written(tmp_path / "f.yaml", FLEET)
    code, out, _ = run("fleet", path, "--out", str(tmp_path / "o"), "--workers", "1")
    assert code == 0
    assert "no racks to buy" in out
    assert "one more rack of east" in out
    code, out, _ = run("fleet", path, "--out", str(tmp_path / "o"), "--workers", "1", "--json")
    result = FleetResult.model_validate_json(out)
    assert result.of("chat")[0].cluster == "east"
    for name, asked_or_found in (("fleet", FLEET), ("fleet-result", json.loads(out))):
        schema = json.loads((SCHEMAS / find(name).file_name).read_text())
        jsonschema.Draft202012Validator(schema).validate(asked_or_found)
    document = {**FLEET, "models": [{**FLEET["models"][0], "rate_per_s": 1e5}]}
    code, _, err = run("fleet", written(tmp_path / "f.yaml", document), "--out", str(tmp_path / "o"), "--workers", "1")
    assert code == 2
    assert "chat: " in err
    assert "of 100,000.0 requests/s" in err
    assert "more racks of east" in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (yaml.safe_dump({**FLEET, "models": [{**FLEET["models"][0], "clusters": ["north"]}]}), "'north', which is no cluster"),
        ("models: 3", "models"),
        ("- 1", "expected a mapping"),
    ],
)
def test_bad_input_of_a_fleet_is_one_message(run, tmp_path, text, message):
    path = tmp_path / "f.yaml"
    path.write_text(text)
    code, _, err = run("fleet", str(path), "--out", str(tmp_path / "o"))
    assert code == 1
    assert message in err

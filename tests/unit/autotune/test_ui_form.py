"""The form of `autotune ui` asks what a problem has, and an empty form asks nothing but the defaults."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

import autotune.ui
from autotune.documents.deployment import Load
from autotune.documents.problem import Problem
from autotune.errors import ProblemError
from autotune.ui.form import ELSEWHERE, docstrings, form_schema, problem_of, titled
from cost_models.catalog import hardware_names
from cost_models.errors import AutotuneError

FIELDS: dict[str, Any] = form_schema()["properties"]


def filled(fields: dict[str, Any]) -> dict[str, Any]:
    """What the page sends of a form that nobody touched."""
    empty = {"array": [], "string": ""}
    return {
        name: filled(field["properties"]) if field["type"] == "object" else field.get("default", empty.get(field["type"]))
        for name, field in fields.items()
    }


def test_every_field_of_a_problem_is_asked_or_said_to_be_elsewhere() -> None:
    assert FIELDS.keys() | ELSEWHERE.keys() == Problem.model_fields.keys()
    assert FIELDS["load"]["properties"].keys() == Load.model_fields.keys()
    for field in FIELDS.values():
        assert field["type"] in ("object", "array", "string", "integer", "number")  # one each: no null, no choice of types
        assert field["title"]


@pytest.mark.parametrize("name", hardware_names())
def test_an_untouched_form_with_hardware_is_the_default_problem(name: str) -> None:
    assert problem_of({**filled(FIELDS), "hardware": name}) == Problem(hardware=name)


def test_what_is_filled_in_arrives() -> None:
    sent = filled(FIELDS)
    sent |= {"hardware": "hgx-h200", "gpus": 16, "target": "serve"}
    sent["load"]["rate_per_s"] = 2.5
    sent["workload"]["mtp_acceptance"] = [0.8, 0.6]
    found = problem_of(sent)
    assert (found.gpus, found.target) == (16, "serve")
    assert found.load == Load(rate_per_s=2.5)
    assert found.workload.mtp_acceptance == (0.8, 0.6)


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({}, "hardware: Field required"),
        ({"hardware": "hgx-h200", "gpus": 0}, "gpus: "),
        ({"hardware": "hgx-h200", "gpu": 8}, "gpu: unknown key"),
        ([], "expected a mapping"),
        ("x", "expected a mapping"),
    ],
)
def test_a_form_that_is_wrong_is_one_message(sent: object, says: str) -> None:
    with pytest.raises(AutotuneError, match=says):
        problem_of(sent)


def test_what_would_keep_state_elsewhere_is_refused() -> None:
    with pytest.raises(ProblemError, match="outside of the run folders"):
        problem_of({"hardware": "hgx-h200", "storage": "sqlite:///x.db"})


def test_titles_carry_units_and_help_carries_values() -> None:
    assert titled("tpot_limit_s") == "TPOT limit (s)"
    assert titled("min_tokens_per_s") == "Min tokens/s"
    assert titled("gpu_hour_usd") == "GPU hour (USD)"
    assert docstrings(Problem)["trials"].endswith("or 120 made where too many.")
    assert "DEFAULT_" not in " ".join(docstrings(Problem).values())


def test_the_form_library_is_the_one_that_was_named() -> None:
    vendor = Path(autotune.ui.__file__).parent / "static" / "vendor"
    assert hashlib.sha256((vendor / "jsoneditor.js").read_bytes()).hexdigest() in (vendor / "README.md").read_text()

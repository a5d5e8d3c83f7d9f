"""The form: the problem's own JSON schema, with the catalogue's names to choose from, as JSON Editor draws it."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from typing import Any, get_args

from autotune.documents import deployment
from autotune.documents import problem as asking
from autotune.documents.problem import Problem
from autotune.errors import ProblemError
from cost_models.catalog import hardware_names, model_names, recipes, validated
from cost_models.specs.base import Spec
from search_spaces.loader import engine_names

Data = dict[str, Any]
FIRST = ("hardware", "model", "target", "gpus", "workload", "tpot_limit_s", "ttft_limit_s", "engine", "load", "gpu_hour_usd")
"""Fields that a newcomer sees; the others come with "all fields"."""
FIRST_INSIDE = ("isl_tokens", "osl_tokens", "rate_per_s", "concurrency")
"""The same inside of groups."""
FIRST_OF_ALL = 30
ELSEWHERE = {"storage": "a study outside of the run folders: use `autotune search --storage`"}
"""Fields that the form has not, and why."""
UNITS = {"s": "s", "usd": "USD", "tokens": "tokens"}
CAPITALS = {"gpus": "GPUs", "gpu": "GPU", "isl": "ISL", "osl": "OSL", "mtp": "MTP", "tpot": "TPOT", "ttft": "TTFT"}
EXAMPLES = {"hardware": "gb200-nvl72", "model": "deepseek-v3", "gpus": "one scale-up domain", "engine_version": "newest"}


def form_schema() -> Data:
    """Schema of the form, without null: a field that is left empty is not asked for."""
    schema = Problem.model_json_schema()
    parts = {kind.__name__: _drawn(schema["$defs"][kind.__name__], kind) for kind in _groups()}
    drawn = _drawn(schema, Problem)
    drawn["properties"] = {name: field for name, field in drawn["properties"].items() if name not in ELSEWHERE}
    for field in drawn["properties"].values():
        if "$ref" in field:
            _unfold(field, parts[field.pop("$ref").rpartition("/")[2]])
    for position, (name, field) in enumerate(drawn["properties"].items()):
        asked_first = name in FIRST
        field["propertyOrder"] = FIRST.index(name) if asked_first else FIRST_OF_ALL + position
        options = field.setdefault("options", {})
        options["containerAttributes"] = {"class": "asked" if asked_first else "rare"}
    _suggest(drawn["properties"])
    return {**drawn, "title": "What to plan", "description": "Empty fields take autotune's own choice, which the report names."}


def choices() -> dict[str, list[str]]:
    """Names of the catalogue, by field; a path or the name of a published checkpoint may be typed as well."""
    return {
        "hardware": hardware_names(),
        "model": model_names(),
        "precision": sorted(recipes()),
        "engine": engine_names(),
    }


def problem_of(data: object) -> Problem:
    """The problem that a filled form says; raises AutotuneError with one line for every fault."""
    given = _filled(data)
    if isinstance(given, dict):
        for name, why in ELSEWHERE.items():
            if name in given:
                raise ProblemError(f"{name}: {why}")
    return validated(Problem, given, "form")


def _filled(data: object) -> object:
    """What was entered: empty text, empty lists and empty groups were not."""
    if isinstance(data, dict):
        entered = {name: _filled(value) for name, value in data.items()}
        return {name: value for name, value in entered.items() if value is not None and value not in ("", [], {})}
    return data


def _groups() -> list[type[Spec]]:
    """Documents inside of a problem."""
    annotations = [field.annotation for field in Problem.model_fields.values()]
    kinds = [kind for annotation in annotations for kind in (annotation, *get_args(annotation))]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Spec)]


def _drawn(schema: Data, kind: type[Spec]) -> Data:
    """An object's schema with titles and help, every field of one type."""
    help_of = docstrings(kind)
    fields = {}
    for name, field in schema["properties"].items():
        single = next((option for option in field.get("anyOf", ()) if option.get("type") != "null"), field)
        kept = {key: value for key, value in field.items() if key not in ("anyOf", "title")}
        if kept.get("default", "") is None:
            del kept["default"]
        fields[name] = {**kept, **single, "title": titled(name)}
        if name in help_of:
            fields[name]["description"] = help_of[name]
    return {"type": "object", "title": schema["title"], "properties": fields}


def _unfold(field: Data, part: Data) -> None:
    """Put a group's fields in the place of its name, filled in only where the problem fills them in."""
    filled = field.pop("default", None) or {}
    inner = {name: {key: value for key, value in one.items() if key != "default"} for name, one in part["properties"].items()}
    for name, one in inner.items():
        one["options"] = {"containerAttributes": {"class": "asked" if name in FIRST_INSIDE else "rare"}}
        if filled.get(name) not in (None, []):
            one["default"] = filled[name]
    field |= {"type": "object", "properties": inner}


def _suggest(fields: Data) -> None:
    """Lists of names, and examples in empty fields."""
    lists = {**{name: name for name in choices()}, "prefill_hardware": "hardware", "prefill_precision": "precision"}
    for name, field in fields.items():
        attributes = {"list": f"choices-{lists[name]}", "autocomplete": "off"} if name in lists else {}
        if name in EXAMPLES:
            attributes["placeholder"] = EXAMPLES[name]
        if attributes:
            field["options"]["inputAttributes"] = attributes


def titled(name: str) -> str:
    """tpot_limit_s -> TPOT limit (s)."""
    words = name.split("_")
    unit = UNITS.get(words[-1]) if len(words) > 1 and not name.endswith("per_s") else None
    shown = [CAPITALS.get(word, word) for word in (words[:-1] if unit else words)]
    text = " ".join(shown).replace(" per s", "/s")
    return f"{text[0].upper()}{text[1:]}" + (f" ({unit})" if unit else "")


def _said(text: str) -> str:
    """A docstring in one line, with values in the place of the constants it names."""
    known = {**vars(deployment), **vars(asking)}
    return re.sub(r"DEFAULT_[A-Z_]+", lambda name: f"{known[name[0]]:g}", " ".join(text.split()))


def docstrings(kind: type[Spec]) -> dict[str, str]:
    """Field -> the text under it in the source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    found: dict[str, str] = {}
    if isinstance(body, ast.ClassDef):
        for field, text in zip(body.body, body.body[1:], strict=False):
            said = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
            if said and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[field.target.id] = _said(ast.literal_eval(text.value))  # type: ignore[attr-defined]
    return found

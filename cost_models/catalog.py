"""Packaged documents (hardware, models, precision recipes, calibrations) and users' own files."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from cost_models.calibration import Calibration, merged
from cost_models.checkpoints import Checkpoint, checkpoints_of, find_checkpoint, unknown_model
from cost_models.errors import CatalogError, InputError, UnsupportedModelError, unknown_name
from cost_models.huggingface import NOT_MODELLED, CheckpointFiles, model_from_config, model_from_files
from cost_models.reading import check_numbers, first_line, kind_of, named, parse_yaml, read_text
from cost_models.specs.bounds import check_model
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from cost_models.specs.precision import PrecisionRecipe

M = TypeVar("M", bound=BaseModel)
MOST_ERRORS = 20
"""Faults of a document named in one message."""
MOST_SHOWN = 200
OF_A_VALUE = {
    "greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number", "int_from_float", "int_parsing",
    "int_parsing_size", "float_parsing", "bool_parsing", "literal_error", "string_unicode",
}  # fmt: skip
"""Faults whose message does not show the value."""
KEPT_FILES = 64
"""Users' files are kept by their content: one that changes is read again."""


def read_yaml(path: Path) -> Any:
    """Read a user's YAML or JSON file, or pipe; raises InputError when it cannot be read."""
    return parse_yaml(read_text(path, pipe=True), path)


def validated(kind: type[M], data: Any, origin: str) -> M:
    """A document checked against its schema; every field error on a line of its own."""
    if not isinstance(data, dict):
        raise CatalogError(f"{origin}: expected a mapping of keys, found {kind_of(data)}")
    check_numbers(data, origin)
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise CatalogError(f"{origin}: {describe(error)}") from error
    except (ArithmeticError, RecursionError, TypeError) as error:  # a validator that computes with what it was given
        raise CatalogError(f"{origin}: cannot be checked: {first_line(error)}") from error


def describe(error: ValidationError) -> str:
    """A pydantic error in one readable line per field."""
    lines = []
    for item in error.errors()[:MOST_ERRORS]:
        where = ".".join(str(part) for part in item["loc"]) or "document"
        message = "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        given = item.get("input")
        shown = f", not {given!r:.60}" if isinstance(given, int | float | str) and item["type"] in OF_A_VALUE else ""
        lines.append(f"{where[:MOST_SHOWN]}: {message}{shown}")
    more = error.error_count() - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")


@functools.cache
def _names(folder: str) -> tuple[str, ...]:
    files = resources.files("cost_models").joinpath("data", folder).iterdir()
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in files if entry.name.endswith(".yaml")))


@functools.cache
def _packaged(folder: str, name: str) -> Any:
    entry = resources.files("cost_models").joinpath("data", folder, f"{name}.yaml")
    return parse_yaml(entry.read_text(encoding="utf-8"), f"{folder}/{name}.yaml")


def looks_like_path(name: str) -> bool:
    """Whether a name means a file of the user's."""
    return name.endswith((".yaml", ".yml", ".json")) or "/" in name


def hardware_names() -> list[str]:
    """Hardware in the catalogue."""
    return list(_names("hardware"))


def load_hardware(name: str) -> HardwareSpec:
    """Catalogue hardware by name, or a user's own YAML file by path."""
    if looks_like_path(name):
        return _hardware_of(read_text(Path(name), pipe=True), name)
    return _hardware(name)


@functools.lru_cache(maxsize=KEPT_FILES)
def _hardware_of(text: str, origin: str) -> HardwareSpec:
    return validated(HardwareSpec, parse_yaml(text, origin), origin)


@functools.cache
def _hardware(name: str) -> HardwareSpec:
    if name not in hardware_names():
        raise CatalogError(unknown_name("hardware", name, hardware_names()) + ", or a path to a YAML file")
    return validated(HardwareSpec, _packaged("hardware", name), name)


def model_names() -> list[str]:
    """Model presets."""
    return list(_names("models"))


def load_model(name: str) -> ModelSpec:
    """Preset by name, known checkpoint by organisation/name, or a checkpoint's folder or config.json by path.

    A known checkpoint is its preset in the precision it is stored in. Raises UnsupportedModelError, InputError or CatalogError.
    """
    if name in model_names():
        return _preset(name)
    if _on_disk(name):
        return _model_of_files(CheckpointFiles.at(Path(name)))
    if checkpoint := find_checkpoint(name):
        return _model_of(checkpoint)
    if known := checkpoints_of(name.lower()):
        raise _no_preset(known[0])
    raise CatalogError(unknown_model(name, model_names()))


def _on_disk(name: str) -> bool:
    """Whether a name is meant as a file, or is one or a folder."""
    if name.endswith((".json", ".yaml", ".yml")):
        return True
    try:
        named(Path(name))
    except InputError:
        return False
    return True


@functools.cache
def _preset(name: str) -> ModelSpec:
    document = _packaged("models", name)
    model = model_from_config(document["config"], name=name, source=document["source"])
    extra = {key: document[key] for key in ("title", "checkpoints", "stored", "published") if key in document}
    return ModelSpec.model_validate({**model.model_dump(), **extra})


@functools.lru_cache(maxsize=KEPT_FILES)
def _model_of_files(files: CheckpointFiles) -> ModelSpec:
    fields = {recipe.name: recipe.model_dump() for recipe in recipes().values()}
    return check_model(model_from_files(files, fields), files.origin)


@functools.cache
def _model_of(checkpoint: Checkpoint) -> ModelSpec:
    """The preset with this as its only checkpoint."""
    if checkpoint.model not in model_names():
        raise _no_preset(checkpoint)
    if checkpoint.precision not in recipes():
        raise UnsupportedModelError(f"{checkpoint.name} is stored in {checkpoint.precision}, which no precision recipe describes")
    preset = _preset(checkpoint.model)
    changes: dict[str, Any] = {
        "name": checkpoint.folder,
        "title": f"{checkpoint.name} ({preset.title})",
        "checkpoints": {checkpoint.precision: checkpoint.name},
        "stored": {checkpoint.precision: stored_in(checkpoint)},
        "max_context_tokens": checkpoint.context_tokens or preset.max_context_tokens,
    }
    return preset.model_copy(update=changes)


def stored_in(checkpoint: Checkpoint) -> dict[str, str]:
    """Fields of its recipe that a known checkpoint has otherwise: its own, else those of the preset's."""
    return dict(checkpoint.stored) or _preset(checkpoint.model).stored.get(checkpoint.precision, {})


def _no_preset(checkpoint: Checkpoint) -> UnsupportedModelError:
    part = NOT_MODELLED.get(checkpoint.architecture or "")
    if part:
        return UnsupportedModelError(f"{checkpoint.model} ({checkpoint.name}): not modelled: {part}")
    return UnsupportedModelError(
        f"{checkpoint.name} is known (stored in {checkpoint.precision}), but no configuration of it is shipped: "
        "give its folder or config.json with --model"
    )


@functools.cache
def recipes() -> dict[str, PrecisionRecipe]:
    """Precision recipes by name."""
    loaded = [validated(PrecisionRecipe, item, "recipes.yaml") for item in _packaged("precisions", "recipes")]
    return {recipe.name: recipe for recipe in loaded}


def load_recipe(name: str) -> PrecisionRecipe:
    """A precision recipe by name; raises CatalogError with near matches."""
    if name not in recipes():
        raise CatalogError(unknown_name("precision", name, recipes()))
    return recipes()[name]


def recipe_of(name: str, model: ModelSpec) -> PrecisionRecipe:
    """A recipe as a model's checkpoint in it is stored."""
    recipe = load_recipe(name)
    stored = model.stored.get(name)
    return validated(PrecisionRecipe, {**recipe.model_dump(), **stored}, model.source) if stored else recipe


def calibration_names() -> list[str]:
    """Shipped calibrations."""
    return list(_names("calibrations"))


def raw_calibration(name: str) -> dict[str, Any]:
    """A shipped calibration as written, with `inherits` unresolved."""
    if name not in calibration_names():
        raise CatalogError(unknown_name("calibration", name, calibration_names()))
    return dict(_packaged("calibrations", name))


def load_calibration(name: str) -> Calibration:
    """A calibration document by id or path, with what it inherits merged in."""
    if looks_like_path(name):
        return _calibration_of(read_text(Path(name), pipe=True), name)
    return _calibration(name)


@functools.lru_cache(maxsize=KEPT_FILES)
def _calibration_of(text: str, origin: str) -> Calibration:
    return validated(Calibration, _resolved(parse_yaml(text, origin), origin), origin)


@functools.cache
def _calibration(name: str) -> Calibration:
    if name not in calibration_names():
        raise CatalogError(unknown_name("calibration", name, calibration_names()) + ", or a path to a YAML file")
    return validated(Calibration, _resolved(_packaged("calibrations", name), name), name)


def _resolved(document: Any, origin: str) -> Any:
    """Apply `inherits`; `inherited_status` downgrades what the parent measured."""
    if not isinstance(document, dict) or "inherits" not in document:
        return document
    parent_name = str(document["inherits"])
    if parent_name not in calibration_names():
        raise CatalogError(f"{origin}: inherits: {unknown_name('calibration', parent_name, calibration_names())}")
    parent = _resolved(_packaged("calibrations", parent_name), parent_name)
    status = document.get("inherited_status")
    if document.get("applies_to", {}).get("engine", parent["applies_to"]["engine"]) != parent["applies_to"]["engine"]:
        parent = {**parent, "earlier": {}}  # releases of another engine
    if status:
        held = {last: _downgraded(families, status) for last, families in parent.get("earlier", {}).items()}
        parent = {**parent, "families": _downgraded(parent["families"], status), "earlier": held}
    return merged(parent, {key: value for key, value in document.items() if key != "inherited_status"})


def _downgraded(families: dict[str, Any], status: str) -> dict[str, Any]:
    """Raw families with another status of what was measured."""

    def entry(raw: dict[str, Any]) -> dict[str, Any]:
        return {**raw, "status": status} if raw["status"] == "measured" else raw

    return {family: {name: entry(raw) for name, raw in variants.items()} for family, variants in families.items()}


@functools.cache
def _calibration_index() -> dict[tuple[str, str], str]:
    """(gpu, engine) -> document; one made for a single GPU wins over one that several share."""
    headers = {name: _calibration_header(name) for name in calibration_names()}
    index: dict[tuple[str, str], str] = {}
    for name, applies in sorted(headers.items(), key=lambda item: -len(item[1]["gpus"])):
        index |= {(gpu, applies["engine"]): name for gpu in applies["gpus"]}
    return index


def _calibration_header(name: str) -> dict[str, Any]:
    """`applies_to` alone: `families` come last in a document and are most of it."""
    entry = resources.files("cost_models").joinpath("data", "calibrations", f"{name}.yaml")
    head, _, _ = entry.read_text(encoding="utf-8").partition("\nfamilies:")
    applies: dict[str, Any] = parse_yaml(head, name)["applies_to"]
    return applies


def calibration_for(gpu: str, engine: str) -> Calibration:
    """The shipped calibration of a GPU and engine; raises CatalogError saying which engines the GPU has."""
    index = _calibration_index()
    if (gpu, engine) not in index:
        engines = sorted(e for g, e in index if g == gpu)
        gpus = sorted({g for g, _ in index})
        hint = f"engines calibrated for it: {', '.join(engines)}" if engines else f"GPUs calibrated: {', '.join(gpus)}"
        raise CatalogError(f"no calibration for {gpu} with {engine}; {hint}. Pass --calibration FILE to use your own")
    return load_calibration(index[gpu, engine])

"""A checkpoint's folder on disk, or its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cost_models.errors import CatalogError, UnsupportedModelError
from cost_models.huggingface.precision import stored_precision
from cost_models.huggingface.registry import model_from_config
from cost_models.reading import check_numbers, is_folder, kind_of, parse_json, read_text
from cost_models.specs.bounds import check_config, check_model
from cost_models.specs.model import ModelSpec

CONFIG = "config.json"
QUANTISATION = "hf_quant_config.json"
UNBOUNDED = ("time_step_limit",)
"""Fields that may be infinite and that nothing reads."""
NAMED = {
    "nvfp4": "nvfp4", "fp4": "nvfp4", "mxfp4": "mxfp4", "mxfp8": "mxfp8", "fp8": "fp8", "awq": "int4", "gptq": "int4",
    "int4": "int4", "w4a16": "int4", "int8": "int8", "w8a8": "int8", "bf16": "bf16",
}  # fmt: skip
"""Words of a checkpoint's name -> the recipe (or the beginning of its name) that they announce."""


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """What a checkpoint's folder says, as text."""

    name: str
    """Of the folder, or of a config.json that is called something else."""
    origin: str
    folder: str
    config: str
    quantisation: str | None
    """hf_quant_config.json, where there is one."""

    @classmethod
    def at(cls, path: Path) -> CheckpointFiles:
        """Of a folder or of its config.json; raises InputError for what is not there or cannot be read."""
        if is_folder(path):
            path = path / CONFIG
        text = read_text(path, pipe=True)
        folder = path.resolve().parent
        beside = folder / QUANTISATION
        quantisation = read_text(beside) if path.name == CONFIG and beside.is_file() else None
        name = (folder.name if path.name == CONFIG else path.stem) or "model"
        given = str(path.parent) if path.is_absolute() else f"./{path.parent}"  # scripts with it are passed on
        return cls(name, str(path), given, text, quantisation)


def model_from_files(files: CheckpointFiles, recipes: Mapping[str, Mapping[str, Any]]) -> ModelSpec:
    """The model of a checkpoint's files, with its precision as its only checkpoint.

    recipes : fields of the precision recipes by name. Raises CatalogError or InputError for what is no configuration and
    UnsupportedModelError for what is not modelled or contradicts itself.
    """
    config = _json_object(files.config, files.origin)
    check_config(config, files.origin)
    model = check_model(model_from_config(config, name=files.name, source=files.origin), files.origin)
    beside = None if files.quantisation is None else _json_object(files.quantisation, f"{files.folder}/{QUANTISATION}")
    stored = stored_precision(config, model, source=files.origin, beside=beside, base=recipes)
    _check_name(files.name, stored.recipe, files.origin)
    return model.model_copy(
        update={
            "checkpoints": {stored.recipe: files.folder},
            "stored": {stored.recipe: dict(stored.changed)},
            "flags": (*model.flags, *stored.remarks),
        }
    )


def announced(name: str) -> str | None:
    """The recipe (or the beginning of its name) that a checkpoint's name announces; none where it announces none."""
    words = name.lower().replace("_", "-").replace(".", "-").split("-")
    return next((recipe for word in words if (recipe := NAMED.get(word))), None)


def _check_name(name: str, recipe: str, source: str) -> None:
    said = announced(name)
    if said is not None and not recipe.startswith(said):
        raise UnsupportedModelError(
            f"{source}: the name {name} announces {said}, its quantisation says {recipe}: rename the folder, or give the "
            "config.json that belongs to the weights"
        )


def _json_object(text: str, origin: str) -> dict[str, Any]:
    data = parse_json(text, origin, unique=True)
    if not isinstance(data, dict):
        raise CatalogError(f"{origin}: expected a Hugging Face config object, found {kind_of(data)}")
    check_numbers({key: value for key, value in data.items() if key not in UNBOUNDED}, origin)
    return data

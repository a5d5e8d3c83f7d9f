"""Which model a command serves and what it is stored in: by a folder, by an exact name, or by what the user says.

Nothing is guessed: a name that only begins like a known one is another model, and a precision that nothing tells is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import ProblemError
from cost_models.catalog import load_model, model_names, recipes, stored_in
from cost_models.checkpoints import Checkpoint, checkpoints_of, find_checkpoint, in_folder_called
from cost_models.huggingface import announced
from cost_models.reading import is_folder
from cost_models.specs.model import ModelSpec

WEIGHT_ONLY, EIGHT_BIT = ("int4",), ("fp8-tensor", "fp8-block")
QUANTIZATIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("awq", "awq_marlin", "gptq", "gptq_marlin", "moe_wna16", "inc", "auto-round"), WEIGHT_ONLY),
    **dict.fromkeys(("fp8", "w8a8_fp8"), EIGHT_BIT),
    **dict.fromkeys(("ptpc_fp8", "fbgemm_fp8", "modelopt_fp8"), ("fp8-tensor",)),
    **dict.fromkeys(("ascend", "modelslim"), ("int8", "bf16")),
    "w8a8_int8": ("int8",),
    "modelopt": (*EIGHT_BIT, "nvfp4", "nvfp4-w4a16", "mxfp8"),
    "modelopt_fp4": ("nvfp4", "nvfp4-w4a16"),
    "modelopt_mixed": ("nvfp4", "nvfp4-w4a16"),
    "compressed-tensors": (*EIGHT_BIT, "int8", "int4", "nvfp4", "nvfp4-w4a16", "mxfp4"),
    "mxfp4": ("mxfp4", "mxfp4-mxfp8"),
    "gpt_oss_mxfp4": ("mxfp4", "mxfp4-mxfp8"),
    "mxfp8": ("mxfp8",),
    "deepseek_v4_fp8": ("mxfp4-mxfp8", "fp8-block"),
    "quark": ("mxfp4-mxfp4", "mxfp4", *EIGHT_BIT, "int8"),
    "unquant": ("bf16",),
}
"""Value of --quantization -> recipes of checkpoints that it loads (vLLM model_executor/layers/quantization, SGLang --help)."""
ONLINE = {"fp8": "fp8-tensor", "ptpc_fp8": "fp8-tensor", "w8a8_fp8": "fp8-tensor"}
"""Values that quantise a BF16 checkpoint as it is loaded."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model as it was named."""

    document: str
    """What a deployment calls it: a preset, a published checkpoint, or a path."""
    model: ModelSpec
    recipe: str | None
    """What it is stored in; none for a preset, which is stored in several."""
    remarks: tuple[str, ...] = ()


def served_model(name: str) -> Served:
    """The model of a name in a command.

    A folder with a config.json is read; else the name must be that of a published checkpoint, exactly, or of a preset. A local
    folder that is not on this machine is taken for the checkpoint of its name, with a remark. Raises AutotuneError for others.
    """
    if name in model_names():
        return Served(name, load_model(name), None)
    if name.endswith(".json") or (is_folder(Path(name)) and (Path(name) / "config.json").is_file()):
        model = load_model(name)
        return Served(name, model, next(iter(model.checkpoints)))
    if checkpoint := find_checkpoint(name):
        return _of_checkpoint(checkpoint)
    if _is_local(name) and (alike := in_folder_called(name)):
        found = {(c.model, c.precision, c.stored, c.context_tokens): c for c in reversed(alike)}
        if len(found) == 1:
            known = _of_checkpoint(alike[0])
            remark = f"{name} is taken for {alike[0].name}, whose folder has that name (another: --model)"
            return Served(known.document, known.model, known.recipe, (remark,))
    return Served(name, load_model(name), None)  # raises, saying what is known of the name


def _is_local(name: str) -> bool:
    """Whether a name is a path or a bare folder's, not organisation/name."""
    return name.startswith(("/", "./", "../", "~", "$")) or name.count("/") != 1


def _of_checkpoint(checkpoint: Checkpoint) -> Served:
    """Under its preset's name where it is what the preset's own checkpoint is, else under its own."""
    model = load_model(checkpoint.name)
    preset = load_model(checkpoint.model)
    same = (
        checkpoint.precision in preset.checkpoints
        and stored_in(checkpoint) == preset.stored.get(checkpoint.precision, {})
        and model.max_context_tokens == preset.max_context_tokens
    )
    return Served(checkpoint.model if same else checkpoint.name, preset if same else model, checkpoint.precision)


def served_precision(served: Served, name: str, quantization: str | None, asked: str | None = None) -> str:
    """The recipe of a command's weights.

    name : as the command has it; quantization : its --quantization; asked : what the user says they are. Raises ProblemError
    where these contradict each other and where none of them tells.
    """
    stored = served.recipe
    if asked is not None and asked not in recipes():
        raise ProblemError(f"unknown precision {asked}; known: {', '.join(recipes())}")
    if quantization is None:
        return _agreed(stored, asked, name, served.model)
    allowed = QUANTIZATIONS.get(quantization.lower())
    if allowed is None:
        raise ProblemError(f"--quantization {quantization}: no precision recipe describes it; known: {', '.join(QUANTIZATIONS)}")
    if stored is None and asked is None:
        fitting = [recipe for recipe in allowed if recipe in served.model.checkpoints]
        if len(fitting) == 1:
            return fitting[0]
    if stored == "bf16" and quantization.lower() in ONLINE:
        return ONLINE[quantization.lower()]
    recipe = _agreed(stored, asked, name, served.model)
    if recipe not in allowed:
        raise ProblemError(
            f"{name} is stored in {recipe}, --quantization {quantization} loads {' or '.join(allowed)}: the engine refuses the "
            "two together; leave the option out, or name the checkpoint that it is for"
        )
    return recipe


def _agreed(stored: str | None, asked: str | None, name: str, model: ModelSpec) -> str:
    if stored is not None:
        if asked not in (None, stored):
            raise ProblemError(f"{name} is stored in {stored}, --precision says {asked}: one of the two is wrong")
        return stored
    if asked is not None:
        return asked
    said = announced(name)
    fitting = [recipe for recipe in model.checkpoints if said and recipe.startswith(said)]
    if len(fitting) == 1:
        return fitting[0]
    choice = ", ".join(model.checkpoints) or ", ".join(recipes())
    raise ProblemError(f"nothing tells what {name} is stored in: say it with --precision ({choice}), or name the checkpoint")


def is_run_of(name: str, deployed: str) -> bool:
    """Whether a benchmark's model name is that of the deployment's model: the same name, folder or preset."""
    if _folder(name) == _folder(deployed):
        return True
    named, own = set(_models(name)), set(_models(deployed))
    return bool(named & own)


def _models(name: str) -> Iterable[str]:
    """Presets that a name may mean."""
    if name.lower() in model_names():
        return [name.lower()]
    checkpoint = find_checkpoint(name)
    known = [checkpoint] if checkpoint else in_folder_called(name)
    return [found.model for found in known] or [found.model for found in checkpoints_of(name.lower())]


def _folder(name: str) -> str:
    parts = [part for part in name.rstrip("/").split("/") if part != "config.json"]
    return parts[-1].casefold() if parts else ""

"""Options of a command that change a verdict in a way that no model here knows: they take it with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from autotune.auditing.options import Command
from autotune.auditing.sizing import drafter_named, undescribed_exchange
from autotune.auditing.trtllm_sizing import unmodelled_settings
from cost_models.catalog import load_recipe
from cost_models.specs.model import ModelSpec
from search_spaces.effects import Effects, Part, load_effects

OWN_DRAFTS = ("mtp", "deepseek_mtp", "ernie_mtp", "glm4_moe_mtp", "qwen3_next_mtp", "NEXTN", "EAGLE")
"""Ways of drafting with the model's own MTP module; EAGLE is SGLang's name of it for such models."""
OPEN_SIZES = ("--kv-cache-memory-bytes", "--max-total-tokens", "--max-model-len", "--context-length")


@dataclass(frozen=True, slots=True)
class Unmodelled:
    """One such option."""

    option: str
    """As it was written."""
    what: str
    affects: tuple[Part, ...]

    def line(self) -> str:
        """As a report says it."""
        return f"{self.option}: {self.what}"


def unmodelled(command: Command, model: ModelSpec, recipe: str) -> tuple[Unmodelled, ...]:
    """What a command says that is not modelled, of a model that is stored in a precision recipe."""
    effects = load_effects(str(command.engine.command_line))
    shared = _shares_contexts(command)
    asked = {name: value for name, value in command.options.items() if name != shared}
    found = (_of(effects, name, value, model, recipe) for name, value in asked.items())
    if command.engine.command_line == "trtllm":
        own = (Unmodelled(*setting) for setting in unmodelled_settings(command, model))
        return tuple(line for line in (*found, *own) if line)
    return tuple(
        line
        for line in (
            *found,
            *_exchanged(command),
            *_given_outside(command),
            *_drafts(command, model),
            *_offloaded(command),
            *_graphs(command),
        )
        if line
    )


def _shares_contexts(command: Command) -> str | None:
    """The option that says how many ranks share the tokens of sequences, where the engine version has it; its plugins do not."""
    knob = command.engine.knob("context_ranks")
    spelling = knob.spelling(command.version) if knob else None
    return spelling.name if spelling else None


def harmless(command: Command) -> tuple[str, ...]:
    """Options that no part of a verdict depends on."""
    effects = load_effects(str(command.engine.command_line))
    knobs = {name for knob in command.engine.knobs for s in knob.spellings for name in (s.name, s.name.partition(".")[0])}
    return tuple(
        name
        for name in command.options
        if name not in knobs
        and name not in effects.read
        and effects.change(name) is None
        and effects.classified(positive(effects, name))
    )


def positive(effects: Effects, name: str) -> str:
    """The switch that an option turns off, where it is a negation that has no class of its own."""
    without = "--" + name.removeprefix("--no-")
    return without if name.startswith("--no-") and not effects.classified(name) else name


def _of(effects: Effects, name: str, value: str | None, model: ModelSpec, recipe: str) -> Unmodelled | None:
    change = effects.change(name)  # a switch that is turned off changes nothing
    if change is None or not change.touches(value):
        return None
    if change.only_for == "sliding_windows" and not _has_windows(model):
        return None
    if change.only_for == "nvfp4_experts" and load_recipe(recipe).experts != "nvfp4":
        return None
    return Unmodelled(f"{name} {value}" if value else name, change.what, change.affects)


def _exchanged(command: Command) -> Iterator[Unmodelled]:
    """An all-to-all of the release that no cost model describes."""
    if said := undescribed_exchange(command):
        yield Unmodelled(
            said, "tokens reach experts by kernels that nothing here prices: a gather was priced", ("speed", "memory")
        )


def _given_outside(command: Command) -> Iterator[Unmodelled]:
    """Sizes that a variable gives, which the script does not set."""
    for name in OPEN_SIZES:
        if (said := command.text(name)) and said.startswith("$"):
            yield Unmodelled(f"{name} {said}", "the script does not say how much", ("memory",))


def _has_windows(model: ModelSpec) -> bool:
    return any(getattr(group.attention, "window_tokens", None) for group in model.groups)


def _drafts(command: Command, model: ModelSpec) -> Iterator[Unmodelled]:
    """Drafts that do not come from the model's own MTP module."""
    document = command.document("--speculative-config")
    method = document.get("method") or command.text("--spec-method") or command.text("--speculative-algorithm")
    path = command.text("--speculative-draft-model-path") or ""
    own_module = any(word in path.lower() for word in ("nextn", "mtp"))  # the module as a checkpoint of its own
    drafter = document.get("model") or command.text("--spec-model") or (None if own_module else path)
    if not (document or method or drafter):
        return
    if drafter_named(command):
        return
    own = model.mtp_layers > 0 and not drafter and (method is None or str(method) in OWN_DRAFTS)
    if not own:
        name = "--speculative-algorithm" if command.engine.command_line == "sglang" else "--speculative-config"
        said = drafter or method or "drafts"
        yield Unmodelled(
            f"{name} ({said})",
            "drafts neither of the model's own MTP module nor of a drafter whose shapes are known",
            ("memory", "speed"),
        )


def _offloaded(command: Command) -> Iterator[Unmodelled]:
    """vLLM offloads whole layers unless it is told which parameters."""
    group = command.whole("--offload-group-size") if command.engine.command_line == "vllm" else None
    said = command.text("--offload-params")
    if group and said != "experts":
        what = "every parameter of an offloaded layer leaves the GPU, not its experts alone (--offload-params experts)"
        yield Unmodelled(
            f"--offload-group-size {group}" if said is None else f"--offload-params {said}", what, ("memory", "speed")
        )


def _graphs(command: Command) -> Iterator[Unmodelled]:
    """Compilation that leaves steps otherwise than they were timed."""
    config = command.document("--compilation-config")
    for field in ("mode", "level"):
        if str(config.get(field, "3")) in ("0", "NONE", "1"):
            yield Unmodelled(f"--compilation-config {field} {config[field]}", "nothing is compiled", ("speed",))
    if str(config.get("cudagraph_mode", "")).upper() == "PIECEWISE":
        yield Unmodelled("--compilation-config cudagraph_mode PIECEWISE", "attention runs outside of CUDA graphs", ("speed",))
    level = command.text("--optimization-level")
    if level is not None and level.lstrip("O") in ("0", "1"):
        yield Unmodelled(f"--optimization-level {level}", "steps are compiled less than those that were timed", ("speed",))

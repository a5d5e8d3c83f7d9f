"""A `vllm serve` or SGLang command line, or a launch script that ends in one, as a deployment.

Read: layout, sizes, precision of the checkpoint, KV cache, all-to-all, overlap, EPLB, drafts, graphs, role. Options that no model
depends on are named, not guessed at.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autotune.deployment import Deployment
from autotune.errors import ProblemError
from autotune.exporters.vllm import EPLB_FIELDS, KV_ROLES
from autotune.predicting import resolve_calibration
from autotune.problem import choose_recipe
from cost_models.catalog import load_hardware, load_model, model_names
from cost_models.errors import unknown_name
from cost_models.specs.model import ModelSpec
from search_spaces.loader import load_engine, resolve_version
from search_spaces.schema import EngineSpec, Knob, Value

ASSIGNMENT = re.compile(r"^(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(\S.*|)$")
DEFAULTED = re.compile(r"\$\{([A-Za-z_]\w*):-([^}]*)\}")
VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")
ALIASES = {
    "vllm": {
        "-tp": "--tensor-parallel-size", "-dp": "--data-parallel-size", "-pp": "--pipeline-parallel-size",
        "-ep": "--enable-expert-parallel", "-O": "--compilation-config",
    },
    "sglang": {
        "--tp": "--tp-size", "--tensor-parallel-size": "--tp-size", "--dp": "--dp-size", "--data-parallel-size": "--dp-size",
        "--attn-dp-size": "--dp-size", "--ep": "--ep-size", "--expert-parallel-size": "--ep-size", "--pp": "--pp-size",
        "--model": "--model-path", "--cuda-graph-max-bs": "--cuda-graph-max-bs-decode",
    },
}  # fmt: skip
SWITCHES = {
    "vllm": ("--enable-expert-parallel", "--enforce-eager", "--enable-dbo", "--enable-eplb", "--headless", "--trust-remote-code"),
    "sglang": (
        "--enable-dp-attention", "--enable-dp-lm-head", "--disable-cuda-graph", "--enable-two-batch-overlap", "--enable-eplb",
        "--enable-single-batch-overlap", "--trust-remote-code", "--disable-radix-cache",
    ),
}  # fmt: skip
READ = {
    "vllm": (
        "--tensor-parallel-size", "--data-parallel-size", "--pipeline-parallel-size", "--enable-expert-parallel",
        "--enforce-eager", "--kv-transfer-config", "--speculative-config", "--eplb-config", "--compilation-config",
        "--data-parallel-size-local",
    ),
    "sglang": (
        "--tp-size", "--dp-size", "--ep-size", "--pp-size", "--enable-dp-attention", "--disable-cuda-graph",
        "--disaggregation-mode", "--model-path", "--moe-dense-tp-size", "--speculative-num-steps",
    ),
}  # fmt: skip
MISSPELT = 0.9
"""Similarity from which an unknown option is taken for a misspelt known one."""
ROLES = {**{kv_role: phase for phase, kv_role in KV_ROLES.items()}, "prefill": "prefill", "decode": "decode"}
EPLB_KNOBS = {field: knob for knob, field in EPLB_FIELDS.items()}


@dataclass(frozen=True, slots=True)
class Command:
    """An engine's command line, split."""

    engine: str
    model: str
    options: Mapping[str, str | None]
    """By canonical name; none for a switch."""
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ReadCommand:
    """A deployment and what was not read."""

    deployment: Deployment
    ignored: tuple[str, ...] = field(default=())
    """Options that no cost model depends on, or that this program does not know."""


def read_command(
    text: str, *, hardware: str, version: str | None = None, isl_tokens: int, osl_tokens: int, size: int | None = None
) -> ReadCommand:
    """The deployment that a command line or script starts.

    size : sequences (decode) or tokens (prefill) per attention-DP rank, where the command leaves them to the engine. Raises
    ProblemError for text without a command, repeated or misspelt options, and values that are none.
    """
    command = split_command(text)
    engine = load_engine(command.engine)
    known = resolve_version(engine, version)
    flags = _flags(command, engine, known)
    machine, spec = load_hardware(hardware), _model(command.model)
    calibration = resolve_calibration(Deployment.model_fields["calibration"].default, machine.gpu.name, engine.calibration_engine)
    named = next((recipe for recipe, published in spec.checkpoints.items() if published == command.model), None)
    recipe = choose_recipe(named, spec, machine, calibration).name
    phase = _role(command)
    document = {
        "hardware": hardware,
        "model": spec.name,
        "precision": {"recipe": recipe, "kv_cache": "fp8"}
        if str(flags.get("kv_cache_dtype", "auto")).startswith("fp8")
        else recipe,
        "engine": {"name": command.engine, "version": known},
        "phase": phase,
        "workload": {"isl_tokens": isl_tokens, "osl_tokens": osl_tokens},
        "pools": {phase: _pool(command, engine, known, flags, phase, spec, size)},
    }
    used = {*READ[command.engine], *(s.name for knob in engine.knobs if (s := knob.spelling(known)))}
    return ReadCommand(Deployment.model_validate(document), tuple(name for name in command.options if name not in used))


def split_command(text: str) -> Command:
    """Find the command in a script, with its environment; raises ProblemError where there is none or options repeat."""
    environment: dict[str, str] = {}
    joined = re.sub(r"\\\s*\n", " ", text)
    for line in joined.splitlines():
        expanded = _expanded(line.strip(), environment)
        words = _words(expanded)
        engine, at = _engine_of(words)
        if engine is None:
            if (match := ASSIGNMENT.match(expanded)) and words:
                environment[match.group(1)] = _words(match.group(2))[0] if match.group(2) else ""
            continue
        before = dict(word.split("=", 1) for word in words[:at] if "=" in word and not word.startswith("-"))
        return _command(engine, words[at:], {**environment, **before})
    raise ProblemError(
        "no 'vllm serve ...' or 'python -m sglang.launch_server ...' command found; give the file that starts the engine"
    )


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise ProblemError(f"cannot be read as a command line ({error}): {text[:80]}") from error


def _expanded(line: str, environment: Mapping[str, str]) -> str:
    """Variables that the script has set, and defaults of those it takes from outside."""
    line = DEFAULTED.sub(lambda m: environment.get(m.group(1), m.group(2)), line)
    return VARIABLE.sub(lambda m: environment.get(m.group(1), m.group(0)), line)


def _engine_of(words: list[str]) -> tuple[str | None, int]:
    """(engine, position after its command); none for other lines."""
    for at, word in enumerate(words):
        if word == "vllm" and words[at + 1 : at + 2] == ["serve"]:
            return "vllm", at + 2
        if word in ("sglang.launch_server",) or (word == "sglang" and words[at + 1 : at + 2] == ["serve"]):
            return "sglang", at + (2 if word == "sglang" else 1)
    return None, 0


def _command(engine: str, words: list[str], environment: Mapping[str, str]) -> Command:
    options: dict[str, str | None] = {}
    model = ""
    at = 0
    while at < len(words):
        name, joined, value = words[at].partition("=")
        at += 1
        if not name.startswith("-"):
            model = model or name
            continue
        name = ALIASES[engine].get(name, name).replace("_", "-")
        takes = name not in SWITCHES[engine] and not joined and at < len(words) and not words[at].startswith("--")
        if name in options:
            raise ProblemError(f"{name} is given twice; the engine would take the last, which may not be what was meant")
        options[name] = value if joined else words[at] if takes else None
        at += int(takes)
    model = model or str(options.get("--model-path") or options.get("--model") or "")
    if not model:
        raise ProblemError(f"the {engine} command names no model")
    return Command(engine, model, options, environment)


def is_of(name: str, model: ModelSpec) -> bool:
    """Whether a checkpoint's name is one of a model: published, or its last part begins like the model's."""
    return name in model.checkpoints.values() or name.rstrip("/").rsplit("/", 1)[-1].lower().startswith(model.name.lower())


def _model(name: str) -> ModelSpec:
    """The preset of a checkpoint's name."""
    presets = [load_model(preset) for preset in model_names()]
    published = [spec for spec in presets if name in spec.checkpoints.values()]
    alike = sorted((spec for spec in presets if is_of(name, spec)), key=lambda spec: -len(spec.name))
    if not published and not alike:
        raise ProblemError(unknown_name("model", name, [spec.name for spec in presets]))
    return (published or alike)[0]


def _flags(command: Command, engine: EngineSpec, version: str) -> dict[str, Value]:
    """Knobs that the command sets; raises ProblemError for misspelt options and values that are none."""
    import difflib

    spelled = {s.name: knob for knob in engine.knobs if (s := knob.spelling(version))}
    known = [*spelled, *READ[command.engine], *SWITCHES[command.engine]]
    flags: dict[str, Value] = {}
    for name, value in command.options.items():
        if name in spelled:
            flags[spelled[name].name] = _value(spelled[name], name, value)
        elif name not in known and (near := difflib.get_close_matches(name, known, n=1, cutoff=MISSPELT)):
            raise ProblemError(f"unknown option {name}; did you mean {near[0]}?")
    for name, knob in spelled.items():
        if name in command.environment and not name.startswith("-"):
            flags[knob.name] = _value(knob, name, command.environment[name])
    return flags | _eplb(command)


def _eplb(command: Command) -> dict[str, Value]:
    config = _json(command, "--eplb-config")
    return {EPLB_KNOBS[name]: value for name, value in config.items() if name in EPLB_KNOBS}


def _json(command: Command, name: str) -> dict[str, Any]:
    text = command.options.get(name)
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ProblemError(f"{name}: not JSON ({error}): {text[:80]}") from error
    return found if isinstance(found, dict) else {}


def _value(knob: Knob, name: str, text: str | None) -> Value:
    """A knob's value from its text."""
    if knob.kind == "bool":
        return text is None or text.lower() in ("1", "true", "yes")
    try:
        if knob.kind in ("integer", "float"):
            return (int if knob.kind == "integer" else float)(text or "")
    except ValueError as error:
        raise ProblemError(f"{name} needs a number, '{text}' was given") from error
    return text or ""


def _count(command: Command, name: str) -> int:
    text = command.options.get(name)
    if text is None:
        return 1
    if not text.isdigit() or int(text) < 1:
        raise ProblemError(f"{name} needs a whole number of at least 1, '{text}' was given")
    return int(text)


def _role(command: Command) -> str:
    """Which pool: the KV-transfer role, decode where there is none."""
    role = _json(command, "--kv-transfer-config").get("kv_role") or command.options.get("--disaggregation-mode") or "decode"
    return ROLES.get(str(role), "decode")


def _layout(command: Command) -> dict[str, int]:
    """tp, dp, ep and pp as the deployment counts them."""
    if command.engine == "vllm":
        tp, dp, pp = (_count(command, f"--{kind}-parallel-size") for kind in ("tensor", "data", "pipeline"))
        return {"tp": tp, "dp": dp, "pp": pp, "ep": tp * dp if "--enable-expert-parallel" in command.options else 1}
    ranks, dp = _count(command, "--tp-size"), _count(command, "--dp-size")
    attention = dp if "--enable-dp-attention" in command.options or "--moe-dense-tp-size" in command.options else 1
    if ranks % attention:
        raise ProblemError(f"--tp-size {ranks} ranks do not divide into {attention} attention-DP ranks")
    tp = ranks // attention
    return {"tp": tp, "dp": attention, "pp": _count(command, "--pp-size"), "ep": _count(command, "--ep-size")}


def _pool(
    command: Command, engine: EngineSpec, version: str, flags: dict[str, Value], phase: str, model: ModelSpec, size: int | None
) -> dict[str, Any]:
    layout = _layout(command)
    overlap = "two_batch" if flags.get("enable_dbo") else "single_batch" if flags.get("enable_sbo") else "none"
    drafts = (
        _json(command, "--speculative-config").get("num_speculative_tokens") or _count(command, "--speculative-num-steps") - 1
    )
    pool: dict[str, Any] = {
        **layout,
        "overlap": overlap,
        "redundant_experts": flags.get("redundant_experts", 0),
        "cuda_graph": phase == "decode" and not {"--enforce-eager", "--disable-cuda-graph"} & set(command.options),
        "draft_tokens": drafts if model.mtp_layers and phase == "decode" else 0,
        "expert_balance": {"kind": "eplb" if flags.get("enable_eplb") else "none"},
        "flags": flags,
    }
    if "gpu_memory_fraction" in flags:
        pool["memory_fraction"] = flags["gpu_memory_fraction"]
    if layout["dp"] > 1:
        knob = engine.knob("all2all_backend")
        assert knob is not None
        chosen = str(flags.get("all2all_backend", knob.default(version)))
        choice = next((c for c in engine.backend_choices(version) if c.value == chosen), None)
        if choice is None:
            raise ProblemError(unknown_name("all-to-all backend", chosen, [c.value for c in engine.backend_choices(version)]))
        pool["all2all_backend"] = choice.model_in(phase)
    return pool | _sizes(command, engine, version, flags, phase, layout["dp"], size)


def _sizes(
    command: Command, engine: EngineSpec, version: str, flags: dict[str, Value], phase: str, dp: int, size: int | None
) -> dict[str, int]:
    """Sequences or tokens per attention-DP rank: given, as the command says, or the engine's default."""
    name = "max_num_seqs" if phase == "decode" else "max_num_batched_tokens"
    column = "batch_per_dp_rank" if phase == "decode" else "max_batched_tokens"
    knob = engine.knob(name)
    default = knob.default(version) if knob else None
    found = size or flags.get(name, default)
    if found is None:
        raise ProblemError(f"the command does not say how many {name}; give --size")
    shared = command.engine == "sglang" and phase == "decode" and size is None and name in flags  # SGLang counts all ranks
    return {column: max(int(found) // (dp if shared else 1), 1)}

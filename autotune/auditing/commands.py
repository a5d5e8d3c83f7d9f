"""A `vllm serve` or SGLang command line, or a launch script that ends in one, as a deployment.

Read: layout, sizes, precision of the checkpoint, KV cache, all-to-all, overlap, EPLB, drafts, graphs, role. Options that no model
depends on are named, not guessed at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.auditing.capacity import as_it_runs
from autotune.auditing.conflicts import Written, indivisible
from autotune.auditing.engine_memory import Said, in_engine_memory, longest_refused
from autotune.auditing.naming import served_model, served_precision
from autotune.auditing.options import NUMBER, Command, engine_for, split_options
from autotune.auditing.shell import find_command
from autotune.documents.deployment import Deployment, Load
from autotune.errors import ProblemError
from autotune.exporters.vllm import KV_ROLES
from autotune.resolving import choose_recipe, resolve_calibration
from cost_models.catalog import load_hardware, validated
from cost_models.errors import unknown_name
from cost_models.specs.model import ModelSpec
from search_spaces.schema import Knob, Value

READ = {
    "vllm": (
        "--tensor-parallel-size", "--data-parallel-size", "--pipeline-parallel-size", "--enable-expert-parallel",
        "--enforce-eager", "--kv-transfer-config", "--speculative-config", "--eplb-config", "--compilation-config",
        "--data-parallel-size-local", "--model", "--quantization", "--max-model-len", "--headless", "--trust-remote-code",
    ),
    "sglang": (
        "--tp-size", "--dp-size", "--attn-dp-size", "--ep-size", "--pp-size", "--enable-dp-attention", "--disable-cuda-graph",
        "--disaggregation-mode", "--model-path", "--moe-dense-tp-size", "--speculative-num-steps", "--speculative-algorithm",
        "--quantization", "--trust-remote-code", "--chunked-prefill-size", "--context-length",
    ),
}  # fmt: skip
ROLES = {**{kv_role: phase for phase, kv_role in KV_ROLES.items()}, "prefill": "prefill", "decode": "decode"}
SGLANG_CHUNKS = ((20e9, 2048), (60e9, 4096), (160e9, 8192), (math.inf, 16384))
"""Chunked-prefill sizes that SGLang takes below so many bytes of memory (srt/server_args.py)."""
SGLANG_DRAFT_STEPS = 3
"""Of --speculative-algorithm for DeepSeek models when nothing else is said (SGLang's documentation, DeepSeek usage)."""
ASSUMED_ACCEPTANCE = 0.8
"""Of a draft token: 70 % in CloudMatrix384 (arXiv 2506.12708), 85-90 % in the DeepSeek-V3 report (arXiv 2412.19437)."""
TRUE, FALSE = ("", "1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class ReadCommand:
    """A deployment and what else the command said."""

    deployment: Deployment
    ignored: tuple[str, ...] = ()
    """Options that no cost model depends on."""
    conflicts: tuple[str, ...] = ()
    """Why the command would not start."""
    remarks: tuple[str, ...] = ()
    aggregated: bool = False
    """The engine has no role: it prefills too, though only its decode steps may be judged."""
    written: Written | None = None
    """The command's own options and variables, which engine rules ask for."""


def read_command(
    text: str,
    *,
    hardware: str,
    version: str | None = None,
    isl_tokens: int,
    osl_tokens: int,
    size: int | None = None,
    mtp_acceptance: tuple[float, ...] = (),
    load: Load | None = None,
    model: str | None = None,
    precision: str | None = None,
) -> ReadCommand:
    """The deployment that a command line or script starts.

    size : sequences (decode) or tokens (prefill) per attention-DP rank, where the command leaves them to the engine; without one
    a decode batch is a limit, and what fits in memory is taken. mtp_acceptance : of drafts, assumed where the command drafts and
    none is given. load : what an engine without a role is sent; without one it is judged as it decodes. model, precision : what
    is served, where the command's own name for it does not tell. Raises ProblemError for
    text without a command, unknown or repeated options, and values that are none.
    """
    machine = load_hardware(hardware)
    invocation = find_command(text)
    command = split_options(invocation, engine_for(invocation.engine, machine.gpu.vendor), version)
    engine, known = command.engine, command.version
    flags = _flags(command)
    served = served_model(model or command.model)
    spec = served.model
    calibration = resolve_calibration(Deployment.model_fields["calibration"].default, machine.gpu.name, engine.calibration_engine)
    stored = served_precision(served, model or command.model, command.text("--quantization"), precision)
    recipe = choose_recipe(stored, spec, machine, calibration).name
    remarks = [*command.remarks, *served.remarks]
    if invocation.others:
        remarks.append(f"{invocation.others} more engine commands in the file: only the first was read")
    phase = _role(command) or ("serve" if load else "decode")
    document: dict[str, Any] = {
        "hardware": hardware,
        "model": served.document,
        "precision": _precision(recipe, flags.get("kv_cache_dtype")),
        "engine": {"name": engine.name, "version": known},
        "phase": phase,
        "workload": {"isl_tokens": isl_tokens, "osl_tokens": osl_tokens, "mtp_acceptance": mtp_acceptance},
        "pools": {phase: (pool := _pool(command, flags, phase, spec, size, machine.gpu.hbm_visible_bytes.value))},
        "load": load if phase == "serve" else None,
    }
    if pool["draft_tokens"] and not mtp_acceptance:
        document["workload"]["mtp_acceptance"] = (ASSUMED_ACCEPTANCE,)
        remarks.append(f"draft acceptance assumed to be {ASSUMED_ACCEPTANCE:.0%} per draft (--mtp-acceptance)")
    deployment = validated(Deployment, document, "the command")
    used = {*READ[invocation.engine], *(s.name for knob in engine.knobs for s in knob.spellings)}
    ignored = tuple(name for name in command.options if name not in used)
    aggregated, written = _role(command) is None, Written(command.options, command.environment)
    if indivisible(deployment):  # nothing to price: the verdict says so
        return ReadCommand(deployment, ignored, command.conflicts, tuple(remarks), aggregated, written)
    said = _of_memory(command, flags)
    deployment = in_engine_memory(deployment, said)
    if phase == "decode" and size is None:
        deployment, limited = as_it_runs(deployment)
        remarks += [limited] if limited else []
    refused = longest_refused(deployment, said)
    conflicts = (*command.conflicts, *([refused] if refused else []))
    return ReadCommand(deployment, ignored, conflicts, tuple(remarks), aggregated, written)


def _of_memory(command: Command, flags: Mapping[str, Value]) -> Said:
    """What the command says of its memory."""
    fraction, budget, running = (flags.get(name) for name in ("gpu_memory_fraction", "max_num_batched_tokens", "max_num_seqs"))
    chunk = command.text("--chunked-prefill-size")
    return Said(
        fraction=float(fraction) if fraction else None,
        budget_tokens=int(float(chunk)) if chunk and NUMBER.match(chunk) and float(chunk) > 0 else int(budget or 0) or None,
        running=int(running) if running else None,
        longest_tokens=_tokens(command.text("--max-model-len") or command.text("--context-length")),
        aggregated=_role(command) is None,
    )


def _tokens(text: str | None) -> int | None:
    """A length as vLLM reads it (4096, 16k, 1M); none for `auto`, -1 and what is none."""
    if not text or not text.rstrip("kKmMgG").isdigit():
        return None
    return int(text.rstrip("kKmMgG")) * {"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20, "g": 10**9, "G": 2**30}.get(text[-1], 1)


def _precision(recipe: str, cache: Value | None) -> str | dict[str, str]:
    """The recipe, with the KV cache of --kv-cache-dtype where that says one."""
    said = str(cache or "auto")
    if said.startswith("fp8"):
        return {"recipe": recipe, "kv_cache": "fp8"}
    if said.startswith(("bf16", "bfloat16")):
        return {"recipe": recipe, "kv_cache": "bf16", "attention_compute": "bf16"}
    return recipe


def _flags(command: Command) -> dict[str, Value]:
    """Knobs that the command sets; raises ProblemError for values that are none."""
    flags: dict[str, Value] = {}
    for knob in command.engine.knobs:
        if knob.name == "draft_tokens":  # in a document (vLLM), or counting the token itself (SGLang): see _drafts
            continue
        for spelling in knob.spellings:
            said = command.said(spelling)
            if said is not None:
                flags[knob.name] = _value(knob, spelling.name, said)
    return flags


def _value(knob: Knob, name: str, text: str | None) -> Value:
    """A knob's value from its text; raises ProblemError for what is none."""
    said = text or ""
    if knob.kind == "bool":
        if said.lower() not in (*TRUE, *FALSE):
            raise ProblemError(f"{name} is on or off (1 or 0), '{said}' was given")
        return said.lower() in TRUE
    if knob.kind == "categorical":
        return said
    try:
        value: int | float = int(said) if knob.kind == "integer" else float(said)
    except ValueError as error:
        raise ProblemError(f"{name} needs a number, '{said}' was given") from error
    low, high = -math.inf if knob.minimum is None else knob.minimum, math.inf if knob.maximum is None else knob.maximum
    if not low <= value <= high or not math.isfinite(value):
        raise ProblemError(f"{name} must lie between {low:g} and {high:g}, {said} was given")
    return value


def _role(command: Command) -> str | None:
    """Which pool of a pair: the KV-transfer role; none for an engine that does both."""
    role = command.document("--kv-transfer-config").get("kv_role") or command.text("--disaggregation-mode")
    return ROLES.get(str(role))


def _layout(command: Command, flags: Mapping[str, Value]) -> dict[str, int]:
    """tp, dp, ep, pp and instances as the deployment counts them."""
    if command.engine.command_line == "vllm":
        tp, dp, pp = (command.count(f"--{kind}-parallel-size") for kind in ("tensor", "data", "pipeline"))
        return {"tp": tp, "dp": dp, "pp": pp, "ep": tp * dp if command.given("--enable-expert-parallel") else 1}
    ranks, replicas = command.count("--tp-size"), command.count("--dp-size")
    attention = command.count("--attn-dp-size")
    if command.given("--enable-dp-attention") and not command.given("--attn-dp-size"):
        attention, replicas = replicas, 1
    if ranks % attention:
        raise ProblemError(f"--tp-size {ranks} ranks do not divide into {attention} attention-DP ranks")
    # DeepEP and its like set the expert-parallel size to all ranks (srt/arg_groups/moe_hook.py)
    spread = flags.get("all2all_backend", "none") != "none"
    ep = ranks if spread else command.count("--ep-size")
    return {"tp": ranks // attention, "dp": attention, "pp": command.count("--pp-size"), "ep": ep, "instances": replicas}


def _drafts(command: Command) -> int:
    """Draft tokens per step."""
    if command.engine.command_line == "vllm":
        return int(command.document("--speculative-config").get("num_speculative_tokens") or 0)
    if not command.given("--speculative-algorithm"):
        return 0
    return command.count("--speculative-num-steps") if command.given("--speculative-num-steps") else SGLANG_DRAFT_STEPS


def _pool(
    command: Command, flags: dict[str, Value], phase: str, model: ModelSpec, size: int | None, memory_bytes: float
) -> dict[str, Any]:
    layout = _layout(command, flags)
    graphs_off = command.given("--enforce-eager") or command.given("--disable-cuda-graph")
    drafts = _drafts(command) if model.mtp_layers and phase != "prefill" else 0
    if drafts and command.engine.has("draft_tokens", command.version):
        flags["draft_tokens"] = drafts
    pool: dict[str, Any] = {
        **layout,
        "overlap": "two_batch" if flags.get("enable_dbo") else "single_batch" if flags.get("enable_sbo") else "none",
        "redundant_experts": flags.get("redundant_experts", 0),
        "cuda_graph": phase != "prefill" and not graphs_off,
        "draft_tokens": drafts,
        "expert_balance": {"kind": "eplb" if flags.get("enable_eplb") else "none"},
        "flags": flags,
    }
    if phase == "decode" and flags.get("all2all_backend") == "deepep" and (knob := command.engine.knob("dispatch_buffer_tokens")):
        pool["max_batched_tokens"] = flags.setdefault("dispatch_buffer_tokens", knob.default(command.version) or 0)
    if "gpu_memory_fraction" in flags and command.engine.memory_fraction_covers == "everything":
        pool["memory_fraction"] = flags["gpu_memory_fraction"]
    if layout["dp"] > 1:
        pool["all2all_backend"] = _backend(command, flags, phase, layout["ep"])
    return pool | _sizes(command, flags, phase, layout["dp"], size, memory_bytes)


def _backend(command: Command, flags: Mapping[str, Value], phase: str, ep: int) -> str:
    """The all-to-all of the cost models; raises ProblemError for one that none describes."""
    choices = command.engine.backend_choices(command.version)
    by_itself = command.engine.taken_by_itself(command.version, ep, "prefill" if phase == "prefill" else "decode")
    if by_itself is not None:
        return by_itself.model_in(phase)
    knob = command.engine.knob("all2all_backend")
    assert knob is not None
    chosen = str(flags.get("all2all_backend", knob.default(command.version)))
    choice = next((c for c in choices if c.value == chosen), None)
    if choice is None:
        raise ProblemError(unknown_name("all-to-all backend", chosen, [c.value for c in choices]))
    return choice.model_in(phase)


def _sizes(
    command: Command, flags: Mapping[str, Value], phase: str, dp: int, size: int | None, memory_bytes: float
) -> dict[str, int]:
    """Sequences and tokens per attention-DP rank: given, as the command says, or the engine's default."""
    if command.engine.command_line == "sglang":
        return _sglang_sizes(command, flags, phase, dp, size, memory_bytes)
    wanted = {
        "decode": {"batch_per_dp_rank": "max_num_seqs"},
        "prefill": {"max_batched_tokens": "max_num_batched_tokens"},
        "serve": {"batch_per_dp_rank": "max_num_seqs", "max_batched_tokens": "max_num_batched_tokens"},
    }[phase]
    found = {}
    for column, name in wanted.items():
        knob = command.engine.knob(name)
        default = knob.default(command.version) if knob else None
        asked = size if column == next(iter(wanted)) else None
        found[column] = int(asked or flags.get(name, default) or 1)
    return found


def _sglang_sizes(
    command: Command, flags: Mapping[str, Value], phase: str, dp: int, size: int | None, memory_bytes: float
) -> dict[str, int]:
    """SGLang counts sequences and tokens over all attention-DP ranks."""
    found = {}
    if phase != "prefill":
        knob = command.engine.knob("max_num_seqs")
        assert knob is not None
        given = flags.get("max_num_seqs")
        found["batch_per_dp_rank"] = max(size or (int(given) // dp if given else int(knob.default(command.version) or 1)), 1)
    if phase != "decode":
        said = command.text("--chunked-prefill-size")
        if said is not None and not NUMBER.match(said):
            raise ProblemError(f"--chunked-prefill-size needs a number, '{said}' was given")
        usual = next(tokens for below, tokens in SGLANG_CHUNKS if memory_bytes < below)
        total = int(float(said)) if said and float(said) > 0 else usual
        found["max_batched_tokens"] = (size if phase == "prefill" else None) or max(total // dp, 1)
    return found

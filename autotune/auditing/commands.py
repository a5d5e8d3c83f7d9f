"""A `vllm serve`, SGLang or TensorRT-LLM command line, or a launch script that ends in one, as a deployment.

Read: layout, sizes, precision of the checkpoint, KV cache, all-to-all, overlap, EPLB, drafts, graphs, role. Options that no model
depends on are named, not guessed at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from autotune.auditing.capacity import as_it_runs, with_cache_of
from autotune.auditing.conflicts import Written, indivisible
from autotune.auditing.engine_memory import registry as engine_memory
from autotune.auditing.engine_memory.base import Said
from autotune.auditing.naming import served_model, served_precision
from autotune.auditing.options import Command, engine_for, split_options, whole_number
from autotune.auditing.shell import find_command
from autotune.auditing.sizing import pool_of_command, servers_of
from autotune.auditing.trtllm_sizing import (
    FREE_FRACTION,
    USUAL_TOKENS,
    pool_of_settings,
    refused_prompts,
    unpriced_backend,
    unpriced_kernel,
)
from autotune.auditing.unmodelled import Unmodelled, harmless, unmodelled
from autotune.documents.deployment import Deployment, Load, PoolRole
from autotune.errors import ProblemError
from autotune.exporters.vllm import KV_ROLES
from autotune.resolving import choose_recipe, resolve_calibration, resolve_recipe
from cost_models.acceptance import AcceptanceCurve, published_acceptance
from cost_models.catalog import load_hardware, load_recipe, validated
from cost_models.drafters import find_drafter
from search_spaces.schema import Knob, Value

ROLE_OF_OPTION: dict[str, PoolRole] = {
    KV_ROLES["prefill"]: "prefill",
    KV_ROLES["decode"]: "decode",
    "prefill": "prefill",
    "decode": "decode",
}
CACHE_SIZES: dict[str, Literal["bytes", "tokens"]] = {
    "--kv-cache-memory-bytes": "bytes",
    "--max-total-tokens": "tokens",
    "kv_cache_config.max_tokens": "tokens",
}
"""Options that size the KV cache of an attention-DP rank; vLLM's takes the place of the memory fraction, others are limits."""
CACHE_DTYPES = ("--kv-cache-dtype", "kv_cache_config.dtype")
LONGEST = ("--max-model-len", "--context-length", "max_seq_len")
ASSUMED_ACCEPTANCE = 0.8
"""Of a draft token: 70 % in CloudMatrix384 (arXiv 2506.12708), 85-90 % in the DeepSeek-V3 report (arXiv 2412.19437)."""
TRUE, FALSE = ("", "1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class ReadCommand:
    """A deployment and what else the command said."""

    deployment: Deployment
    ignored: tuple[str, ...] = ()
    """Options that no part of a verdict depends on."""
    unmodelled: tuple[Unmodelled, ...] = ()
    """Options that change the verdict in a way that is not modelled."""
    longest_tokens: int | None = None
    """Longest sequence that the command lets in; none where it leaves that to the model."""
    conflicts: tuple[str, ...] = ()
    """Why the command would not start."""
    remarks: tuple[str, ...] = ()
    aggregated: bool = False
    """The engine has no role: it prefills too, though only its decode steps may be judged."""
    written: Mapping[PoolRole, Written] = field(default_factory=dict)
    """By pool, the command's own options and variables, which engine rules ask for."""
    command: Command | None = None
    """The command itself; none for a deployment document."""


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
    role: PoolRole | None = None,
    environment: Mapping[str, str] | None = None,
    at: int = 0,
    folder: Path | None = None,
) -> ReadCommand:
    """The deployment that a command line or script starts.

    size : sequences (decode) or tokens (prefill) per attention-DP rank, where the command leaves them to the engine; without one
    a decode batch is a limit, and what fits in memory is taken. mtp_acceptance : of drafts, assumed where the command drafts and
    none is given. load : what an engine without a role is sent; without one it is judged as it decodes. model, precision : what
    is served, where the command's own name for it does not tell. role, environment : what a file around the command says of its
    pool, and sets for it; at : which of the text's commands; folder : where its settings files lie. Raises ProblemError for
    text without a command, unknown or repeated options, and values that are none.
    """
    machine = load_hardware(hardware)
    invocation = find_command(text, environment, at)
    command = split_options(invocation, engine_for(invocation.engine, machine.gpu.vendor), version, folder)
    engine, known = command.engine, command.version
    flags, strange = _flags(command)
    served = served_model(model or command.model)
    spec = served.model
    choice = Deployment.model_fields["calibration"].default
    calibration = resolve_calibration(choice, machine.gpu.name, engine.calibration_engine, known)
    stored = served_precision(served, model or command.model, command.text("--quantization"), precision)
    recipe = choose_recipe(stored, spec, machine, calibration).name
    remarks = [*command.remarks, *served.remarks]
    if invocation.others and not at:
        remarks.append(f"{invocation.others} more engine commands in the file: only the first was read")
    own = _role(command) or role
    phase: PoolRole = own or ("serve" if load else "decode")
    if own is None and command.text("cache_transceiver_config.backend"):
        remarks.append("it hands caches over, but nothing says which side of a pair it is: judged as an engine that does both")
    if engine.command_line == "trtllm":
        experts = resolve_recipe(recipe, spec).on(machine.gpu.architecture).experts
        pool = pool_of_settings(command, flags, phase, spec, size, machine, calibration, experts)
        strange += [Unmodelled(*found) for found in unpriced_kernel(pool, machine, calibration, experts)]
        strange += [Unmodelled(*found) for found in unpriced_backend(command, flags, pool, spec, machine)]
    else:
        pool = pool_of_command(command, flags, phase, spec, size, machine.gpu.hbm_visible_bytes.value)
        pool["api_servers"] = servers_of(command, pool, machine.gpus_per_node)
    document: dict[str, Any] = {
        "hardware": hardware,
        "model": served.document,
        "precision": _precision(recipe, _cache(command, recipe)),
        "engine": {"name": engine.name, "version": known},
        "phase": phase,
        "workload": {"isl_tokens": isl_tokens, "osl_tokens": osl_tokens, "mtp_acceptance": mtp_acceptance},
        "pools": {phase: pool},
        "load": load if phase == "serve" else None,
    }
    curve = _measured_acceptance(pool.get("drafter"))
    if pool["draft_tokens"] and not mtp_acceptance and curve:
        document["workload"]["mtp_acceptance"] = curve.rates()
        remarks.append(
            f"draft acceptance is that of {curve.model} with {curve.drafter} on {curve.text} text (InferenceX {curve.file}), "
            "other text accepts less (--mtp-acceptance)"
        )
    elif pool["draft_tokens"] and not mtp_acceptance:
        document["workload"]["mtp_acceptance"] = (ASSUMED_ACCEPTANCE,)
        remarks.append(f"draft acceptance assumed to be {ASSUMED_ACCEPTANCE:.0%} per draft (--mtp-acceptance)")
    deployment = validated(Deployment, document, "the command")
    conflicts = [*command.conflicts]
    if engine.command_line == "trtllm" and (refused := refused_prompts(command, isl_tokens, own != "decode")):
        conflicts.append(refused)
    found = ReadCommand(
        deployment,
        ignored=harmless(command),
        unmodelled=(*unmodelled(command, spec, recipe), *strange),
        longest_tokens=next((tokens for name in LONGEST if (tokens := command.whole(name))), None),
        conflicts=tuple(conflicts),
        remarks=tuple(remarks),
        aggregated=own is None,
        written={phase: Written(command.options, command.environment)},
        command=command,
    )
    return found if indivisible(deployment) else _sized(found, command, flags, size)  # nothing to price: the verdict says so


def _measured_acceptance(drafter: str | None) -> AcceptanceCurve | None:
    """The first published curve of a drafter's kind on its model; none for the model's own module, whose text is asked for."""
    found = find_drafter(drafter) if drafter else None
    if found is None:
        return None
    return next((c for c in published_acceptance() if (c.model, c.drafter) == (found.target, found.kind)), None)


def _sized(found: ReadCommand, command: Command, flags: dict[str, Value], size: int | None) -> ReadCommand:
    """The deployment in the memory that the command gives it, with as many sequences as fit where it only limits them."""
    deployment, remarks, conflicts = found.deployment, [*found.remarks], [*found.conflicts]
    said = _of_memory(command, flags, found)
    deployment = engine_memory.in_engine_memory(deployment, said)
    for name, unit in CACHE_SIZES.items():
        if deployment.phase != "serve" and (asked := command.whole(name, least=1)):
            deployment, refused = with_cache_of(deployment, asked, unit)
            conflicts += [f"{name} {asked:,}: {refused}"] if refused else []
    if deployment.phase == "decode" and size is None:
        deployment, limited = as_it_runs(deployment)
        remarks += [limited] if limited else []
    workload = deployment.workload
    peak = workload.isl_tokens if deployment.phase == "prefill" else workload.peak_context_tokens  # the other side answers
    if found.longest_tokens and peak > found.longest_tokens:
        remarks.append(
            f"requests of {peak:,.0f} tokens are longer than the {found.longest_tokens:,} that it lets in, which refuses them "
            "(--isl, --osl)"
        )
    known = not any("memory" in option.affects for option in found.unmodelled)
    remarks += [unsure] if (unsure := engine_memory.unsure(deployment, said)) else []
    too_long = engine_memory.too_long(deployment, said) if known else None
    conflicts += [too_long] if too_long else []
    return dataclasses.replace(found, deployment=deployment, remarks=tuple(remarks), conflicts=tuple(conflicts))


def _of_memory(command: Command, flags: dict[str, Value], found: ReadCommand) -> Said:
    """What the command says of its memory."""
    if command.engine.command_line == "trtllm":
        return Said(
            free_fraction=_free_fraction(command),
            budget_tokens=command.whole("max_num_tokens", least=1) or USUAL_TOKENS,
            longest_tokens=found.longest_tokens,
            aggregated=found.aggregated,
        )
    fraction, budget, running = (flags.get(name) for name in ("gpu_memory_fraction", "max_num_batched_tokens", "max_num_seqs"))
    chunk = command.text("--chunked-prefill-size")
    return Said(
        fraction=float(fraction) if fraction else None,
        budget_tokens=whole_number(chunk) if chunk else int(budget or 0) or None,
        running=int(running) if running else None,
        longest_tokens=found.longest_tokens,
        as_long_as_fits=command.text("--max-model-len") in ("auto", "-1"),
        aggregated=found.aggregated,
    )


def _free_fraction(command: Command) -> float:
    """Share of the memory that weights and a step leave which TensorRT-LLM gives to caches; raises ProblemError for none."""
    said = command.text("kv_cache_config.free_gpu_memory_fraction")
    if said in (None, "null"):
        return FREE_FRACTION
    try:
        value = float(str(said))
    except ValueError as error:
        raise ProblemError(f"kv_cache_config.free_gpu_memory_fraction needs a number, '{said}' was given") from error
    if not 0 < value <= 1:
        raise ProblemError(f"kv_cache_config.free_gpu_memory_fraction must lie between 0 and 1, {said} was given")
    return value


def _cache(command: Command, recipe: str) -> str | None:
    """The dtype that the KV cache is asked to have; none where that is the recipe's own (TensorRT-LLM's files say it always)."""
    said = next((said for name in CACHE_DTYPES if (said := command.text(name))), None)
    own = command.engine.command_line == "trtllm" and load_recipe(recipe).kv_cache == said
    return None if own else said


def _precision(recipe: str, cache: str | None) -> str | dict[str, str]:
    """The recipe, with the KV cache of --kv-cache-dtype where that says one."""
    said = cache or "auto"
    if said.startswith("fp8"):
        return {"recipe": recipe, "kv_cache": "fp8"}
    if said.startswith(("bf16", "bfloat16")):
        return {"recipe": recipe, "kv_cache": "bf16", "attention_compute": "bf16"}
    return recipe


def _flags(command: Command) -> tuple[dict[str, Value], list[Unmodelled]]:
    """Knobs that the command sets, and those whose value no model knows; raises ProblemError for values that are none."""
    flags: dict[str, Value] = {}
    strange: list[Unmodelled] = []
    for knob in command.engine.knobs:
        if knob.name == "draft_tokens":  # in a document (vLLM), counting the token itself (SGLang), of one kind (TensorRT-LLM)
            continue
        for spelling in knob.spellings:
            said = command.said(spelling)
            if said is not None:
                flags[knob.name] = _value(knob, spelling.name, said)
    caches, cache = command.engine.knob("kv_cache_dtype"), str(flags.get("kv_cache_dtype", "auto"))
    if caches and cache not in [choice.value for choice in caches.choices_in(command.version)]:
        alike = {"fp8": "fp8", "bf16": "recipe", "bfloat16": "recipe"}
        model = next((alike[start] for start in alike if cache.startswith(start)), None)
        same = next((choice.value for choice in caches.choices_in(command.version) if choice.model == model), None)
        flags["kv_cache_dtype"] = same or "auto"
        if same is None:
            strange.append(Unmodelled(f"--kv-cache-dtype {cache}", "a cache of another size", ("memory", "speed")))
    return flags, strange


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
        value: int | float | None = whole_number(said) if knob.kind == "integer" else float(said)
    except ValueError as error:
        raise ProblemError(f"{name} needs a number, '{said}' was given") from error
    if value is None:
        raise ProblemError(f"{name} needs a number, '{said}' was given")
    low, high = -math.inf if knob.minimum is None else knob.minimum, math.inf if knob.maximum is None else knob.maximum
    if not low <= value <= high or not math.isfinite(value):
        raise ProblemError(f"{name} must lie between {low:g} and {high:g}, {said} was given")
    return value


def _role(command: Command) -> PoolRole | None:
    """Which pool of a pair: the KV-transfer role; none for an engine that does both."""
    role = command.role or command.document("--kv-transfer-config").get("kv_role") or command.text("--disaggregation-mode")
    return ROLE_OF_OPTION.get(str(role))

"""What TensorRT-LLM's fields make of an instance: ranks, drafts, graphs, all-to-all, map of experts, and how much it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from autotune.auditing.options import Command, whole_number
from autotune.auditing.sizing import drafter_named
from autotune.documents.deployment import PoolRole
from autotune.errors import ProblemError
from cost_models.calibration import Calibration
from cost_models.expert_kernels import own_kernel, priced_instead
from cost_models.releases import version_key
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from search_spaces.effects import Part
from search_spaces.schema import Choice, Value

USUAL_SEQUENCES, USUAL_TOKENS = 2048, 8192
"""max_batch_size and max_num_tokens where nothing is said (builder.py BuildConfig, 1.3.0rc3)."""
USUAL_GRAPHS = 128
"""Sequences of the largest graph where nothing is said (llmapi/llm_args.py CudaGraphConfig, 1.3.0rc3)."""
FREE_FRACTION = 0.9
"""Of what weights and a step leave, kept for caches where nothing is said (commands/serve.py, 1.3.0rc3)."""
ON = ("true", "1", "yes", "on")
BALANCER = "moe_config.load_balancer"
TELLS_BLOCKS = (1, 3)
"""First version that takes another expert kernel by itself for FP8 in blocks."""


def pool_of_settings(
    command: Command,
    flags: dict[str, Value],
    phase: PoolRole,
    model: ModelSpec,
    size: int | None,
    machine: HardwareSpec,
    calibration: Calibration,
    experts: str,
) -> dict[str, Any]:
    """Fields of the pool that a command starts.

    flags : engine knobs that it sets, to which it adds; size : sequences or tokens per attention-DP rank where the command leaves
    them open; calibration : decides which all-to-alls have a price; experts : dtype of the routed experts. Raises ProblemError
    for what is no layout.
    """
    layout = layout_of(command)
    drafter = drafter_named(command)
    drafts = drafts_of(command) if (model.mtp_layers or drafter) and phase != "prefill" else 0
    if drafts:
        flags["draft_tokens"] = drafts
    pool: dict[str, Any] = {
        **layout,
        "draft_tokens": drafts,
        "drafter": drafter if drafts else None,
        "flags": flags,
        **graphs_of(command, phase, drafts),
    }
    if model.moe is not None:
        pool |= {**balance_of(command, model.moe.experts), "expert_kernel": kernel_of(command, flags, machine, experts)}
    if layout["dp"] > 1 and model.moe is not None:  # experts that are cut, not spread, are gathered for too
        taken, gathered = alltoall_of(command, flags, layout, model, machine)
        priced = taken if calibration.has("dispatch", f"{taken.model}.dispatch") else gathered
        flags["all2all_backend"] = priced.value
        pool["all2all_backend"] = priced.model
    return pool | _sizes(command, phase, drafts, size)


def layout_of(command: Command) -> dict[str, int]:
    """tp, dp, ep and pp as the deployment counts them: with attention DP every rank of a stage attends to requests of its own.

    Raises ProblemError where experts do not divide over the ranks (mapping.py Mapping, 1.3.0rc3).
    """
    ranks, stages = command.count("tensor_parallel_size"), command.count("pipeline_parallel_size")
    cut, spread = command.whole("moe_tensor_parallel_size", 1), command.whole("moe_expert_parallel_size", 1)
    ep = spread or (max(ranks // cut, 1) if cut else 1)
    if ranks % ep or (cut and cut * ep != ranks):
        told = f"moe_tensor_parallel_size {cut} x " if cut else ""
        raise ProblemError(f"{told}moe_expert_parallel_size {ep} do not make the {ranks} ranks of tensor_parallel_size")
    own = switched(command, "enable_attention_dp")
    return {"tp": 1 if own else ranks, "dp": ranks if own else 1, "ep": ep, "pp": stages}


def switched(command: Command, name: str) -> bool:
    """Whether a field is on."""
    return (command.text(name) or "").lower() in ON


def drafts_of(command: Command) -> int:
    """Draft tokens of a step."""
    kind = (command.text("speculative_config.decoding_type") or "").upper()
    if kind != "MTP" and drafter_named(command) is None:
        return 0
    said = command.whole("speculative_config.num_nextn_predict_layers", 0)
    said = command.whole("speculative_config.max_draft_len", 0) if said is None else said
    return 1 if said is None else said


def graphs_of(command: Command, phase: PoolRole, drafts: int) -> dict[str, Any]:
    """Whether decode steps are captured, and up to which size in tokens."""
    if phase == "prefill" or command.text("cuda_graph_config") == "null":
        return {"cuda_graph": False, "cuda_graph_tokens": None}
    largest = (
        command.largest("cuda_graph_config.batch_sizes") if command.text("cuda_graph_config.batch_sizes") != "null" else None
    )
    largest = largest or command.whole("cuda_graph_config.max_batch_size", 0) or USUAL_GRAPHS
    return {"cuda_graph": True, "cuda_graph_tokens": largest * (1 + drafts)}


def balance_of(command: Command, experts: int) -> dict[str, Any]:
    """Redundant experts and how they were placed; nothing where no map is given."""
    slots = command.whole(f"{BALANCER}.num_slots", 1)
    if slots is None:
        return {}
    if slots < experts:
        raise ProblemError(f"{BALANCER}.num_slots {slots}: the model has {experts} experts, each of which needs a slot")
    return {"redundant_experts": slots - experts, "expert_balance": {"kind": "static"}}


def kernel_of(command: Command, flags: Mapping[str, Value], machine: HardwareSpec, experts: str) -> str:
    """Expert kernel that the command says, or that the engine takes where it says none, by name of the cost models."""
    knob = command.engine.knob("moe_backend")
    choices = knob.choices_in(command.version) if knob else ()
    said = next((choice.model for choice in choices if choice.value == flags.get("moe_backend")), None)
    if said not in (None, "auto"):
        return str(said)
    if said is None and flags.get("moe_backend"):  # no product's kernel, which `check` names
        return "auto"
    tells_blocks = version_key(command.version) >= TELLS_BLOCKS
    return own_kernel(machine.gpu.architecture, experts, tells_blocks)


def unpriced_kernel(
    pool: Mapping[str, Any], machine: HardwareSpec, calibration: Calibration, experts: str
) -> Iterator[tuple[str, str, tuple[Part, ...]]]:
    """The expert kernel that the engine takes, where another was priced in its place."""
    kernel = pool.get("expert_kernel", "auto")
    if instead := priced_instead(machine.gpu.architecture, experts, kernel, calibration):
        yield f"expert kernel {kernel}", f"not measured on {machine.gpu.name}: {instead} was priced", ("speed",)


def alltoall_of(
    command: Command, flags: Mapping[str, Value], layout: Mapping[str, int], model: ModelSpec, machine: HardwareSpec
) -> tuple[Choice, Choice]:
    """(the all-to-all, that which always works): forced by a variable, or what the engine takes by itself.

    communication_factory.py and fused_moe_wide_ep.py (1.3.0rc3): NVLink's where all ranks are joined by it, else gathered; always
    gathered where experts are cut too, and by WIDEEP where there are no more ranks than experts of a token.
    """
    choices = command.engine.backend_choices(command.version)
    gathered = next(choice for choice in choices if choice.model == "allgather_reducescatter")
    forced = next((choice for choice in choices if choice.value == flags.get("all2all_backend")), None)
    narrow = layout["ep"] <= (model.moe.top_k if model.moe else 0)
    if layout["ep"] != layout["dp"]:
        taken = gathered
    elif forced is not None:
        taken = forced
    elif layout["dp"] > machine.scale_up.domain_gpus or (command.text("moe_config.backend") == "WIDEEP" and narrow):
        taken = gathered
    else:
        taken = next(choice for choice in choices if choice.within_domain)
    return taken, gathered


def unpriced_backend(
    command: Command, flags: Mapping[str, Value], pool: Mapping[str, Any], model: ModelSpec, machine: HardwareSpec
) -> Iterator[tuple[str, str, tuple[Part, ...]]]:
    """The all-to-all that the engine takes, where another was priced in its place."""
    if "all2all_backend" not in pool:
        return
    knob = command.engine.knob("all2all_backend")
    spelling = knob.spelling(command.version) if knob else None
    said = {**flags, "all2all_backend": (command.said(spelling) if spelling else None) or ""}
    taken, gathered = alltoall_of(command, said, pool, model, machine)
    if taken.model != pool["all2all_backend"]:
        yield (
            f"all-to-all {taken.value}",
            f"what TensorRT-LLM takes there, not measured on {machine.gpu.name}: {gathered.value} was priced",
            ("speed",),
        )


def _sizes(command: Command, phase: PoolRole, drafts: int, size: int | None) -> dict[str, int]:
    """Sequences and tokens of a rank: given, as the command says, or the engine's default; a step holds the drafts too."""
    tokens = command.whole("max_num_tokens", 1) or USUAL_TOKENS
    sequences = min(command.whole("max_batch_size", 1) or USUAL_SEQUENCES, max(tokens // (1 + drafts), 1))
    if phase == "prefill":
        return {"max_batched_tokens": size or tokens}
    return {"batch_per_dp_rank": size or sequences} | ({"max_batched_tokens": tokens} if phase == "serve" else {})


def refused_prompts(command: Command, isl_tokens: int, prefills: bool) -> str | None:
    """Why prompts are refused: longer than a step that takes them whole (llmapi/llm.py _check_arguments, 1.3.0rc3)."""
    most = command.whole("max_num_tokens", 1) or USUAL_TOKENS
    if not prefills or switched(command, "enable_chunked_prefill") or isl_tokens <= most:
        return None
    return (
        f"prompts of {isl_tokens:,} tokens are longer than max_num_tokens {most:,}, and nothing cuts them: TensorRT-LLM refuses "
        "each; enable_chunked_prefill, or more tokens"
    )


def unmodelled_settings(command: Command, model: ModelSpec) -> Iterator[tuple[str, str, tuple[Part, ...]]]:
    """(setting, what it changes, parts of the verdict) of fields whose meaning hangs on more than their value."""
    kind = command.text("speculative_config.decoding_type")
    own = kind is not None and kind.upper() == "MTP" and model.mtp_layers
    if kind is not None and not own and drafter_named(command) is None:
        yield f"speculative_config ({kind})", "drafts that are not those of the model's own MTP module", ("memory", "speed")
    updates = command.text(f"{BALANCER}.layer_updates_per_iter")
    if updates not in (None, "0", "null"):
        yield f"{BALANCER}.layer_updates_per_iter {updates}", "experts of so many layers move in every step", ("speed",)
    path = command.text(BALANCER)
    if path not in (None, "null", "{}"):
        yield f"{BALANCER} {path}", "the map of experts is not here: how many slots it has is not known", ("memory", "speed")
    layers = whole_number(command.environment.get("TLLM_OVERRIDE_LAYER_NUM", "0"))
    if layers not in (0, model.layers):
        yield (
            f"TLLM_OVERRIDE_LAYER_NUM={layers}",
            f"another number of layers than the model's {model.layers}",
            ("memory", "speed"),
        )
    cache = command.text("kv_cache_config.dtype")
    if cache not in (None, "auto", "fp8"):
        yield f"kv_cache_config.dtype {cache}", "a cache of another size", ("memory", "speed")
    if command.text("backend") not in (None, "pytorch"):
        yield f"backend {command.text('backend')}", "another runtime than the one that was timed", ("start", "memory", "speed")

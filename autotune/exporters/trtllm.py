"""TensorRT-LLM launch scripts: `trtllm-serve` with a settings file for each pool, alone or as one side of a disaggregated pair.

Everything that is no address lies in the settings file, which every target is given: fields and their meaning as of 1.3.0rc3.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from autotune.documents.deployment import Deployment, Pool, PoolRole
from autotune.documents.planned_placement import PlannedPlacement
from autotune.errors import ExportError
from autotune.exporters.base import (
    OTHER_SIDE,
    ROLE_TITLES,
    Argument,
    Beside,
    NodePlacement,
    Required,
    Script,
    backend_flags,
    checkpoint,
    hardware_name,
    notes_of,
    own_drafter,
    placement,
)
from autotune.exporters.launch import LaunchPool, Process
from autotune.exporters.lengths import Lengths
from autotune.exporters.quoting import Shell
from autotune.exporters.settings import Where, settings_of
from autotune.predicting.step import held_memory
from cost_models.expert_kernels import taken_kernel
from cost_models.specs.model import ModelSpec
from search_spaces.options import load_options
from search_spaces.rules import Subject, written
from search_spaces.spelling import spelled

KINDS_OF_DRAFTS = {"eagle3": "Eagle3", "dflash": "DFlash", "dspark": "DSpark"}
"""Kind of drafter -> decoding_type."""

PORT_STRIDE = 1
MOST_FREE, LEAST_FREE = 0.95, 0.05
"""Of what weights and a step leave, that a plan gives to caches: what grows afterwards needs the rest."""
SHORT_PROMPTS = 4
"""Prompts that a prefill step may hold, over those of mean length that fill it: a quarter of the mean is short."""
SMALL_GRAPHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Sequences of the graphs that are captured, up to a pool's batch; steps between two of them are padded."""


def trtllm_processes(deployment: Deployment, subject: Subject, lengths: Lengths) -> list[Process]:
    """What starts an instance: its node, or, of several nodes, MPI on the first of them."""
    pool = deployment.pool
    place = placement(pool, subject.hardware)
    where = Where(deployment, subject, place)
    spread = place.nodes > 1
    name = f"{deployment.phase}_{'head' if spread else 'node'}"
    title = (
        f"{name}.sh: TensorRT-LLM {ROLE_TITLES[deployment.phase]} instance, {pool.layout.label()} on {hardware_name(deployment)}"
    )
    file = f"{deployment.phase}_settings.yml"
    knobs = spelled(subject.engine, subject.version, _knobs(subject, pool), deployment.phase)
    process = Process(
        name,
        title=title,
        comments=tuple(_comments(where, lengths)),
        required=(Required("HOSTS", f"the {place.nodes} nodes of the instance, separated by commas, this one first"),)
        if spread
        else (),
        beside=(Beside("SETTINGS", file, "the settings file that lies beside this script"),),
        optional={
            "MODEL": checkpoint(deployment, subject.model),
            "PORT": "8000",
        },
        place=place,
        strides={"PORT": PORT_STRIDE},
        defaults={**settings_of(where), **written(subject).environment},
        environment={**knobs.environment},
        command=(*(("trtllm-llmapi-launch",) if spread else ()), "trtllm-serve", Shell('"$MODEL"')),
        arguments=(
            Argument("--host", "0.0.0.0"),  # noqa: S104  (a server meant to be reached by its router)
            Argument("--port", Shell('"$PORT"')),
            Argument("--config", Shell('"$SETTINGS"')),
        ),
        ranks=place.nodes * place.gpus_per_node if spread else 0,
        settings=fields_of(deployment, subject, lengths, place),
    )
    return [process]


def fields_of(deployment: Deployment, subject: Subject, lengths: Lengths, place: NodePlacement) -> dict[str, Any]:
    """The settings file of a pool."""
    pool, role = deployment.pool, deployment.phase
    tokens = _step_tokens(deployment, lengths)
    sequences = pool.batch_per_dp_rank or max(SHORT_PROMPTS * tokens // max(lengths.isl, 1), 1)
    found: dict[str, Any] = {
        "tensor_parallel_size": pool.tp * pool.dp,
        "pipeline_parallel_size": pool.pp,
        "enable_attention_dp": pool.dp > 1,
        "gpus_per_node": place.gpus_per_node,
        "max_batch_size": sequences,
        "max_num_tokens": tokens,
        "max_seq_len": lengths.longest,
        "kv_cache_config": {
            "dtype": "fp8" if subject.recipe.kv_cache == "fp8" else "auto",
            "free_gpu_memory_fraction": _free_fraction(deployment, subject, tokens),
        },
        "cuda_graph_config": None if role == "prefill" or not pool.cuda_graph else _graphs(pool, sequences),
    }
    if subject.model.moe is not None:
        found["moe_expert_parallel_size"] = pool.ep
        found["moe_config"] = _experts(pool, subject)
    if role != "decode" and lengths.longest > tokens:
        found["enable_chunked_prefill"] = True
    if pool.draft_tokens or (role == "prefill" and _other_drafts(deployment)):
        found["speculative_config"] = _drafting(pool, subject, pool.draft_tokens or _other_drafts(deployment))
    if role in OTHER_SIDE:
        found["cache_transceiver_config"] = {"backend": "DEFAULT", "max_tokens_in_buffer": lengths.longest}
    needed = {name: values[0] == "true" for name, values in written(subject).options.items() if "." not in name}
    return found | needed


def _drafting(pool: Pool, subject: Subject, drafts: int) -> dict[str, Any]:
    """speculative_config: the model's own module, or a drafter; raises ExportError for a kind that the version does not have."""
    if not pool.drafter:
        return {"decoding_type": "MTP", "num_nextn_predict_layers": drafts}
    kind = own_drafter(pool, subject.model).kind
    listed = load_options("trtllm", subject.version).find("speculative_config.block_size")
    if kind != "eagle3" and listed is None:
        raise ExportError(
            f"TensorRT-LLM {subject.version} has no {KINDS_OF_DRAFTS[kind]} drafters: it does not take {pool.drafter}"
        )
    return {"decoding_type": KINDS_OF_DRAFTS[kind], "speculative_model": pool.drafter, "max_draft_len": drafts}


def _knobs(subject: Subject, pool: Pool) -> dict[str, Any]:
    """Knobs that are variables: the all-to-all, where one is used."""
    return backend_flags(subject, {name: value for name, value in pool.flags.items() if name == "all2all_backend"})


def _other_drafts(deployment: Deployment) -> int:
    """Drafts of the decoding side: prefill fills the caches of the MTP module too."""
    decode = deployment.pools.get("decode")
    return decode.draft_tokens if decode else 0


def _step_tokens(deployment: Deployment, lengths: Lengths) -> int:
    """max_num_tokens of a rank: its prompts, or one token and the drafts of every sequence; an aggregated one holds both."""
    pool = deployment.pool
    decoding = pool.batch_per_dp_rank * (1 + pool.draft_tokens)
    if deployment.phase == "decode":
        return max(decoding, 1)
    prompts = pool.max_batched_tokens or lengths.isl
    return prompts if deployment.phase == "prefill" else max(prompts, decoding)


def _graphs(pool: Pool, sequences: int) -> dict[str, Any]:
    """Sizes up to the batch, or up to what the plan captures."""
    most = min(sequences, (pool.cuda_graph_tokens or sequences * (1 + pool.draft_tokens)) // (1 + pool.draft_tokens))
    sizes = [size for size in SMALL_GRAPHS if size < most]
    return {"enable_padding": True, "batch_sizes": [*sizes, max(most, 1)]}


def _experts(pool: Pool, subject: Subject) -> dict[str, Any]:
    """Kernels of the experts, and slots for copies of some."""
    kernel = _kernel(pool, subject)
    found: dict[str, Any] = {"backend": kernel} if kernel else {}
    moe = subject.model.moe
    if moe is not None and (pool.redundant_experts or mapped(pool)):
        found["load_balancer"] = {"num_slots": moe.experts + pool.redundant_experts, "layer_updates_per_iter": 0}
    return found


def _kernel(pool: Pool, subject: Subject) -> str | None:
    """The version's name of the expert kernel that the plan was priced with; none where it is left to the engine."""
    own = pool.dp > 1 and subject.role != "prefill"
    name = pool.expert_kernel
    taken = taken_kernel(subject.hardware.gpu.architecture, subject.experts, own) if name == "auto" else name
    knob = subject.engine.knob("moe_backend")
    choices = knob.choices_in(subject.version) if knob else ()
    return next((choice.value for choice in choices if choice.model == taken), None)


def mapped(pool: Pool) -> bool:
    """Whether experts are placed once from recorded loads."""
    return pool.expert_balance.kind == "static" and pool.expert_balance.skew is not None


def _free_fraction(deployment: Deployment, subject: Subject, tokens: int) -> float:
    """free_gpu_memory_fraction with which the engine fills what the plan may: of what weights and a step of `tokens` leave."""
    role: PoolRole = "prefill" if deployment.phase == "prefill" else "decode"
    pool = deployment.pool.model_copy(update={"batch_per_dp_rank": 1, "max_batched_tokens": tokens})
    alone = deployment.alone(role, pool)
    held = held_memory(alone)
    share = held.room_bytes / max(subject.hardware.gpu.hbm_visible_bytes.value - held.beside_cache_bytes, 1.0)
    return round(min(max(share, LEAST_FREE), MOST_FREE), 3)


def _comments(where: Where, lengths: Lengths) -> list[str]:
    deployment, subject, place = where.deployment, where.subject, where.place
    on = f"{place.nodes} node(s) x {place.gpus_per_node} GPUs per instance"
    lines = [f"TensorRT-LLM {subject.version}; {on}, {deployment.pool.instances} instance(s); written by autotune."]
    if place.nodes > 1:
        lines.append("Run it on the first node: mpirun reaches the others by ssh; model and image are the same on all.")
    if deployment.phase in OTHER_SIDE:
        other = OTHER_SIDE[deployment.phase]
        lines += [
            f"{deployment.phase.capitalize()} side of a prefill/decode pair: {other} servers have a settings file of their own;",
            "trtllm-serve disaggregated (router.sh) sends each request to one of either.",
        ]
    lines.append(f"Requests of up to {lengths.longest:,} tokens are taken: {lengths.why}.")
    return [*lines, *notes_of(subject)]


def with_map(pools: tuple[LaunchPool, ...], made: PlannedPlacement, model: ModelSpec) -> tuple[LaunchPool, ...]:
    """Pools whose settings hold the map of a plan's experts: slots of every MoE layer by its index in the model."""
    flat = ([expert for gpu in layer for expert in gpu] for layer in made.experts)
    placed = dict(zip(model.moe_positions, flat, strict=True))
    return tuple(
        dataclasses.replace(pool, processes=tuple(_placed(process, made.slots, placed) for process in pool.processes))
        for pool in pools
    )


def _placed(process: Process, slots: int, placed: dict[int, list[int]]) -> Process:
    settings = dict(process.settings)
    balancer = {"num_slots": slots, "initial_global_assignments": placed, "layer_updates_per_iter": 0}
    settings["moe_config"] = {**settings.get("moe_config", {}), "load_balancer": balancer}
    return dataclasses.replace(process, settings=settings)


def settings_files(pools: tuple[LaunchPool, ...]) -> tuple[Script, ...]:
    """The settings file of every pool; raises ExportError where experts are mapped and the plan holds no map."""
    from autotune.exporters.targets.base import manifest

    found = []
    for pool in pools:
        process = pool.head
        balancer = process.settings.get("moe_config", {}).get("load_balancer", {})
        if mapped(pool.pool) and "initial_global_assignments" not in balancer:
            raise ExportError(
                "the plan places experts by recorded loads and holds no map of them; the best plan of search --expert-load "
                "holds one"
            )
        file = next(item.file for item in process.beside if item.name == "SETTINGS")
        found.append(manifest(file, [dict(process.settings)], f"Settings of the {pool.role} instances"))
    return tuple(found)

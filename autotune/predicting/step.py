"""Deployment -> prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.documents.deployment import DEFAULT_MEMORY_FRACTION, CalibrationChoice, Deployment, Pool, PoolRole
from autotune.documents.knobs import pool_rows
from autotune.documents.prediction import MemoryLine, OperatorLine, Prediction, PrefillPrediction
from autotune.errors import ProblemError
from autotune.predicting.layers import layer_predictions
from autotune.resolving import foreign_dtype, release_notes, resolve_calibration, resolve_drafter, resolve_recipe
from cost_models import catalog
from cost_models.errors import unknown_name
from cost_models.expert_kernels import CHOOSES, priced_instead
from cost_models.machine import Machine
from cost_models.memory import Memory, decode_memory, prefill_memory
from cost_models.operator_groups import operator_groups
from cost_models.operators import Timing
from cost_models.prefill import PrefillCost, prefill_step, prompt_batch
from cost_models.provenance import Provenance, operator_provenance, prefill_provenance
from cost_models.rows import Rows
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from cost_models.specs.workload import Workload
from cost_models.step import StepCost, decode_step
from search_spaces.loader import load_engine, resolve_version, version_notes
from search_spaces.schema import EngineSpec


@dataclass(frozen=True, slots=True)
class Resolved:
    """A deployment with its documents loaded."""

    machine: Machine
    rows: Rows
    workload: Workload
    pool: Pool
    phase: PoolRole
    notes: tuple[str, ...] = ()
    """What stands for an engine version that has no list or times of its own."""


def _of_depth(model: ModelSpec, layers: int, dense_layers: int | None) -> ModelSpec:
    try:
        return model.scaled_to_layers(layers, dense_layers)
    except ValueError as error:
        raise ProblemError(str(error)) from error


def check_model_on_engine(model: ModelSpec, layout_tp: int) -> None:
    """Raises ProblemError when the heads do not divide."""
    heads = model.heads
    if heads % layout_tp:
        raise ProblemError(f"tp {layout_tp} does not divide the {heads} attention heads of {model.name}")


def resolve(deployment: Deployment) -> Resolved:
    """Load what a deployment names; raises AutotuneError with one clear message."""
    pool = deployment.pool
    hardware = catalog.load_hardware(pool.hardware or deployment.hardware)
    model = catalog.load_model(deployment.model)
    if deployment.layers:
        model = _of_depth(model, deployment.layers, deployment.dense_layers)
    engine = load_engine(deployment.engine.name)
    version = resolve_version(engine, deployment.engine.version)
    release = deployment.engine.version or version  # its options may be an older one's, its kernels are its own
    _check_pool(model, hardware, pool)
    _check_context_ranks(model, engine, version, pool)
    _check_flags(engine, version, pool)
    recipe = resolve_recipe(pool.precision or deployment.precision, model).on(hardware.gpu.architecture)
    if foreign := foreign_dtype(recipe, hardware):
        raise ProblemError(f"precision {recipe.name}: {foreign}")
    choice = CalibrationChoice() if pool.hardware else deployment.calibration
    calibration = resolve_calibration(choice, hardware.gpu.name, engine.calibration_engine, release)
    drafter = resolve_drafter(pool.drafter, model, pool.tp)
    machine = Machine(model, hardware, recipe, calibration, deployment.workload.sigma, drafter, pool.symmetric_memory)
    if pool.draft_tokens and deployment.phase == "decode" and not deployment.workload.mtp_acceptance:
        raise ProblemError(f"draft_tokens {pool.draft_tokens} need workload.mtp_acceptance (one rate per draft)")
    older = release_notes(choice, hardware.gpu.name, engine.calibration_engine, release)
    instead = (*_kernel_notes(machine, pool), *_all_reduce_notes(machine))
    notes = (*version_notes(engine, deployment.engine.version), *older, *instead)
    return Resolved(machine, pool_rows(pool), deployment.workload, pool, deployment.phase, notes)


def _kernel_notes(machine: Machine, pool: Pool) -> tuple[str, ...]:
    """What a pool's expert kernel is priced with, where it has no timings; raises ProblemError where the engine takes none."""
    if pool.expert_kernel == "auto" or machine.model.moe is None:
        return ()
    if not machine.chooses_expert_kernel:
        known = ", ".join(CHOOSES)
        raise ProblemError(f"expert_kernel {pool.expert_kernel}: only {known} is told its expert kernel; leave it auto")
    gpu, dtype = machine.hardware.gpu, machine.dtype("experts")
    instead = priced_instead(gpu.architecture, dtype, pool.expert_kernel, machine.calibration)
    return (f"expert kernel {pool.expert_kernel} was not measured on {gpu.name}: {instead} was priced",) if instead else ()


def _all_reduce_notes(machine: Machine) -> tuple[str, ...]:
    """What an all-reduce in symmetric memory is priced with, where the calibration has none."""
    if not machine.symmetric_memory or machine.all_reduce_variant == "symmetric":
        return ()
    return (f"all-reduces in symmetric memory have no times on {machine.hardware.gpu.name}: the engine's own were priced",)


def _check_pool(model: ModelSpec, hardware: HardwareSpec, pool: Pool) -> None:
    check_model_on_engine(model, pool.tp)
    if model.moe is None and (pool.ep > 1 or pool.redundant_experts or pool.dp > 1):
        raise ProblemError(f"{model.name} is dense: ep, redundant_experts and dp must be 1, 0, 1 (use instances)")
    if model.moe and (model.moe.experts + pool.redundant_experts) % pool.ep:
        total = f"{model.moe.experts} + {pool.redundant_experts}"
        raise ProblemError(f"ep {pool.ep} does not divide the {total} physical experts; add redundant_experts")
    if pool.draft_tokens and not (model.mtp_layers or pool.drafter):
        raise ProblemError(f"{model.name} has no MTP module, so draft_tokens must be 0 without a drafter")
    wanted = pool.layout.gpus * pool.instances
    if hardware.max_gpus and wanted > hardware.max_gpus:
        raise ProblemError(f"{wanted} GPUs wanted, {hardware.name} has {hardware.max_gpus}")
    if pool.pp > model.layers:
        raise ProblemError(f"pp {pool.pp} exceeds the {model.layers} layers of {model.name}")
    if pool.offload and pool.offload.group_size > model.layers:
        raise ProblemError(f"offload group_size {pool.offload.group_size} exceeds the {model.layers} layers of {model.name}")


def _check_context_ranks(model: ModelSpec, engine: EngineSpec, version: str, pool: Pool) -> None:
    """Ranks that share the tokens of sequences are of one tensor-parallel group and hold the same keys; the engine knows them."""
    if pool.dcp == 1:
        return
    if not engine.has("context_ranks", version):
        raise ProblemError(f"dcp {pool.dcp}: {engine.title} {version} has no decode context parallelism; leave dcp 1")
    if pool.tp % pool.dcp:
        raise ProblemError(f"dcp {pool.dcp} does not divide tp {pool.tp}, of whose ranks they are")
    if pool.dcp <= (most := int(model.context_ranks(pool.tp))):
        return
    whole = [kind.kind for kind in model.attentions if not kind.fixed_state and kind.context_ranks(pool.tp) == most]
    raise ProblemError(f"dcp {pool.dcp}: at most {most} of tp {pool.tp} ranks can share the tokens of {model.name} ({whole[0]})")


NOT_MODELLED = {
    "prefill_context_parallel_size": "prefill context parallelism",
    "attn_cp_size": "attention context parallelism",
}


def _check_flags(engine: EngineSpec, version: str, pool: Pool) -> None:
    """Flags must be knobs that the engine version has; what is not modelled is refused by name."""
    known = [knob.name for knob in engine.knobs if knob.spelling(version)]
    for name in pool.flags:
        plain = name.lstrip("-").replace("-", "_")
        if plain in NOT_MODELLED:
            raise ProblemError(f"flag {name}: {NOT_MODELLED[plain]} is not modelled")
        if name not in known:
            raise ProblemError(unknown_name(f"{engine.name} {version} flag", name, known))


def memory_limit_bytes(machine: Machine, pool: Pool) -> float:
    """Device memory that the pool's engine may fill [B]."""
    return machine.hardware.gpu.hbm_visible_bytes.value * (pool.memory_fraction or DEFAULT_MEMORY_FRACTION)


def resolve_pool(deployment: Deployment, pool: Pool) -> Machine:
    """What one pool of a service is priced on; raises AutotuneError as `resolve` does."""
    return resolve(deployment.alone("decode", pool.model_copy(update={"batch_per_dp_rank": 1}))).machine


def predict(deployment: Deployment) -> Prediction | PrefillPrediction:
    """Predict the pool that the deployment's phase names; it need not fit in memory, the prediction says so.

    Raises AutotuneError for unknown names, missing coefficients and contradictions.
    """
    if deployment.phase == "serve":
        raise ProblemError("a service is predicted by autotune.serving.predict_service")
    return predict_step(resolve(deployment))


def predict_step(resolved: Resolved) -> Prediction | PrefillPrediction:
    """Predict a step of the pool's phase."""
    return predict_prefill(resolved) if resolved.phase == "prefill" else predict_decode(resolved)


def predict_decode(resolved: Resolved) -> Prediction:
    """Predict a decode pool."""
    step = decode_step(resolved.machine, resolved.rows, resolved.workload.context_tokens, resolved.workload.mtp_acceptance)
    memory = decode_memory(resolved.machine, resolved.rows, resolved.workload)
    return prediction_of(resolved, step, memory)


def predict_prefill(resolved: Resolved) -> PrefillPrediction:
    """Predict a prefill pool."""
    rows, workload = resolved.rows, resolved.workload
    cost = prefill_step(resolved.machine, rows, workload)
    batch = prompt_batch(rows, workload)
    provenance = prefill_provenance(resolved.machine, rows, batch)
    memory = prefill_memory(resolved.machine, rows, workload)
    rate = float(cost.tokens_per_s_per_gpu[0])
    return PrefillPrediction(
        **_common(resolved, cost, memory, provenance),
        tokens_per_s_per_gpu=rate,
        tokens_per_s=rate * resolved.pool.layout.gpus * resolved.pool.instances,
        tokens_per_step=float(batch.tokens[0]),
        prompts_per_step=float(batch.finishing[0]),
        prompt_s=float(cost.prompt_s[0]),
    )


@dataclass(frozen=True, slots=True)
class HeldMemory:
    """What one GPU of a pool holds, and the room that its limit leaves for the KV cache."""

    bytes_by_line: Mapping[str, float]
    limit_bytes: float
    kv_capacity_tokens: float
    """Of one attention-DP rank, in sequences of the workload's mean context."""
    kv_sequences: int
    """Of one attention-DP rank, at independent points of their output."""

    @property
    def beside_cache_bytes(self) -> float:
        """What the GPU holds but its KV cache."""
        return _beside_cache_bytes(self.bytes_by_line)

    @property
    def room_bytes(self) -> float:
        """What the limit leaves for the KV cache; negative where the rest alone exceeds it."""
        return self.limit_bytes - self.beside_cache_bytes


def held_memory(deployment: Deployment) -> HeldMemory:
    """The memory of the pool that the phase names, without pricing a step; raises AutotuneError as `resolve` does."""
    resolved = resolve(deployment)
    needed = prefill_memory if resolved.phase == "prefill" else decode_memory
    return _pool_memory(resolved, needed(resolved.machine, resolved.rows, resolved.workload))


def _pool_memory(resolved: Resolved, memory: Memory) -> HeldMemory:
    lines = {name: float(line[0]) for name, line in memory.lines.items()}
    limit_bytes = memory_limit_bytes(resolved.machine, resolved.pool)
    room_bytes = max(limit_bytes - _beside_cache_bytes(lines), 0.0)
    return HeldMemory(
        bytes_by_line=lines,
        limit_bytes=limit_bytes,
        kv_capacity_tokens=room_bytes / float(memory.sequence.mean[0]) * resolved.workload.context_tokens,
        kv_sequences=int(memory.sequence.fitting(room_bytes)[0]),
    )


def _beside_cache_bytes(bytes_by_line: Mapping[str, float]) -> float:
    return sum(held for name, held in bytes_by_line.items() if name != "kv_cache")


def prediction_of(resolved: Resolved, step: StepCost, memory: Memory) -> Prediction:
    """The first row of a costed decode step as a prediction document."""
    pool = resolved.pool
    tpot_s = float(step.tpot_s[0])
    rate = pool.batch_per_dp_rank * pool.dp / tpot_s
    provenance = operator_provenance(resolved.machine, resolved.rows, resolved.workload.context_tokens)
    return Prediction(
        **_common(resolved, step, memory, provenance),
        tokens_per_s_per_gpu=rate / pool.layout.gpus,
        tokens_per_s=rate * pool.instances,
        tpot_s=tpot_s,
        accepted_tokens_per_step=float(step.accepted_tokens[0]),
        concurrency=pool.batch_per_dp_rank * pool.dp * pool.instances,
        context_tokens=resolved.workload.context_tokens,
    )


def _common(
    resolved: Resolved, cost: StepCost | PrefillCost, memory: Memory, provenance: dict[str, Provenance]
) -> dict[str, Any]:
    """Fields that both phases report."""
    pool, machine, step_s = resolved.pool, resolved.machine, float(cost.step_s[0])
    shown = _operator_lines(machine, cost.operators, provenance, step_s)
    held = _pool_memory(resolved, memory)
    total_bytes = sum(held.bytes_by_line.values())
    busy = max((line for line in shown if line.name != "overlap"), key=lambda line: line.time_s)
    return {
        "step_s": step_s,
        "gpus": pool.layout.gpus * pool.instances,
        "operators": shown,
        "layer_kinds": {name: float(value[0]) for name, value in cost.layer_kinds.items()},
        "layers": layer_predictions(machine.model, resolved.rows, cost.layers),
        "memory": tuple(MemoryLine(name=name, bytes=value) for name, value in held.bytes_by_line.items()),
        "memory_total_bytes": total_bytes,
        "memory_limit_bytes": held.limit_bytes,
        "kv_capacity_tokens": held.kv_capacity_tokens,
        "kv_sequences": held.kv_sequences,
        "fits": total_bytes <= held.limit_bytes,
        "bottleneck": f"{busy.name} ({busy.share:.0%} of the step)",
        "calibration": machine.calibration.id,
        "notes": (*machine.model.flags, *resolved.notes),
    }


def _operator_lines(
    machine: Machine, operators: Mapping[str, Timing], provenance: dict[str, Provenance], step_s: float
) -> tuple[OperatorLine, ...]:
    lines = []
    groups = operator_groups(machine.model, machine.recipe)
    for name, timing in operators.items():
        time_s = float(timing.time_s[0])
        if time_s == 0:
            continue
        known = provenance.get(name)
        lines.append(
            OperatorLine(
                name=name,
                time_s=time_s,
                share=time_s / step_s,
                bound_s=float(timing.bound_s[0]),
                status=known.status if known else "assumed",
                outside_box=known.outside if known else (),
                family=f"{known.family}.{known.variant}" if known else name,
                held_out_sigma=known.held_out_sigma if known else None,
                group=groups[name],
            )
        )
    return tuple(sorted(lines, key=lambda line: -line.time_s))

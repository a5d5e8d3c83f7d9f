"""What keeps an engine from starting a deployment: kernels, knobs and layouts that its version does not have."""

from __future__ import annotations

from collections.abc import Iterator

from autotune.documents.deployment import Deployment, Load, Pool
from autotune.errors import ExportError
from cost_models.catalog import load_hardware, load_model
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from search_spaces.loader import load_engine, resolve_version
from search_spaces.schema import Choice, EngineSpec

OVERLAPPING = {"two_batch": ("deepep_low_latency", "deepep_normal"), "single_batch": ("deepep_low_latency",)}
"""All-to-all backends that an overlap works with."""


def conflicts(deployment: Deployment) -> tuple[str, ...]:
    """What the deployment's engine version does not take, one line each."""
    engine = load_engine(deployment.engine.name)
    version = resolve_version(engine, deployment.engine.version)
    model = load_model(deployment.model)
    found: list[str] = []
    for phase, pool in deployment.pools.items():
        hardware = load_hardware(pool.hardware or deployment.hardware)
        lines = [
            *indivisible(pool, model),
            *_backend(pool, phase, engine, version, hardware, model),
            *_knobs(pool, engine, version),
        ]
        found += [line if len(deployment.pools) == 1 else f"{phase}: {line}" for line in lines]
    return tuple(found)


def unlaunchable(deployment: Deployment, *, aggregated: bool = False) -> tuple[str, ...]:
    """Why no launch script can be written for a deployment; empty where one can, or where its engine has no exporter.

    aggregated : a decode pool is an engine that prefills too, not one side of a pair.
    """
    from autotune.exporters import export, has_exporter

    if not has_exporter(deployment.engine.name):
        return ()
    if aggregated and deployment.phase == "decode":
        pools = {"serve": deployment.pool}
        deployment = deployment.model_copy(update={"phase": "serve", "pools": pools, "load": Load(concurrency=1)})
    try:
        export(deployment)
    except ExportError as error:
        return (str(error),)
    return ()


def indivisible(pool: Pool, model: ModelSpec) -> Iterator[str]:
    """What the pool's ranks do not divide; such a layout cannot be priced either."""
    heads = model.attention.heads
    if heads % pool.tp:
        yield f"tp {pool.tp} does not divide {heads} attention heads"
    if model.moe is None:
        return
    slots = model.moe.experts + pool.redundant_experts
    if slots % pool.ep:
        yield (
            f"{model.moe.experts} experts and {pool.redundant_experts} redundant ones do not divide over {pool.ep} ranks; "
            f"{-model.moe.experts % pool.ep} redundant experts would"
        )
    if model.moe.intermediate % (pool.tp * pool.dp // pool.ep):
        yield f"experts of width {model.moe.intermediate} do not divide over {pool.tp * pool.dp // pool.ep} tensor-parallel ranks"


def _backend(pool: Pool, phase: str, engine: EngineSpec, version: str, hardware: HardwareSpec, model: ModelSpec) -> Iterator[str]:
    """The all-to-all against its kernel."""
    if pool.overlap != "none" and pool.all2all_backend not in OVERLAPPING[pool.overlap]:
        yield f"{pool.overlap} overlap works with DeepEP only, not with {pool.all2all_backend}"
    if pool.dp == 1 or pool.ep == 1:
        return
    step = "prefill" if phase == "prefill" else "decode"
    offered = engine.backend_choices(version)
    choice = next((c for c in offered if c.model_in(step) == pool.all2all_backend), None)
    if choice is None:
        names = ", ".join(sorted({c.model_in(step) for c in offered}))
        yield f"{engine.title} {version} has no all-to-all that works as {pool.all2all_backend} in {step}; it has {names}"
        return
    by_itself = engine.taken_by_itself(version, pool.ep, step)
    if by_itself not in (None, choice):
        assert by_itself is not None
        yield f"{engine.title} takes {by_itself.value} by itself at EP{pool.ep}, not {choice.value}"
    yield from _kernel(pool, choice, step, hardware, model)


def _kernel(pool: Pool, choice: Choice, step: str, hardware: HardwareSpec, model: ModelSpec) -> Iterator[str]:
    tokens = pool.batch_per_dp_rank * (1 + pool.draft_tokens) if step == "decode" else pool.max_batched_tokens
    tokens = min(tokens, pool.chunks.moe_dp_tokens or tokens)
    limit, domain = choice.max_tokens_in(step), hardware.scale_up.domain_gpus
    if limit and tokens > limit * pool.tp:
        yield f"{choice.value} takes {limit:,} tokens of a rank and step, the pool has {tokens / pool.tp:,.0f}"
    if choice.within_domain and pool.tp * pool.dp > domain:
        yield f"{choice.value} works inside one scale-up domain of {domain} GPUs, the pool has {pool.tp * pool.dp}"
    if choice.needs_full_dp and pool.tp > 1:
        yield f"{choice.value} needs every rank to be an attention-DP rank, tp is {pool.tp}"
    if choice.needs_graph_off and pool.cuda_graph and step == "decode":
        yield f"{choice.value} runs without CUDA graphs only: cuda_graph must be off"
    if choice.hidden_sizes and model.hidden not in choice.hidden_sizes:
        yield f"{choice.value} has no kernel for a hidden size of {model.hidden:,}"
    if not choice.takes_ep(pool.ep, hardware.gpu.name):
        sizes = ", ".join(str(size) for size in choice.ep_sizes)
        yield f"{choice.value} takes {sizes} expert-parallel ranks on {hardware.gpu.name}, not {pool.ep}"


def _knobs(pool: Pool, engine: EngineSpec, version: str) -> Iterator[str]:
    """Flags against what the version has."""
    for name, value in pool.flags.items():
        knob = engine.knob(name)
        if knob is None:
            yield f"{engine.title} has no knob {name} (autotune engine show {engine.name})"
        elif knob.spelling(version) is None and knob.spellings and value != knob.default(version):
            yield f"{engine.title} {version} does not have {name} any more, or not yet"
        elif name == "dispatch_buffer_tokens" and (tokens := pool.batch_per_dp_rank * (1 + pool.draft_tokens)) > float(value):
            spelled = next(iter(knob.spellings)).name
            yield f"DeepEP's buffers hold {value:,} tokens of a rank ({spelled}), a decode step has {tokens:,}"
        elif knob.choices and value not in [choice.value for choice in knob.choices_in(version)]:
            yield f"{name} {value} is none of {', '.join(choice.value for choice in knob.choices_in(version))}"

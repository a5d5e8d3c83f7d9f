"""NVIDIA srt-slurm: a recipe of schema 2, `roles` with the engine's options (src/srtctl/core/roles.py of NVIDIA/srt-slurm).

srtctl places ranks, hands caches over and starts the router: options that say so are left out.
"""

from __future__ import annotations

from autotune.errors import ExportError
from autotune.exporters.base import Script
from autotune.exporters.launch import Launch, LaunchPool
from autotune.exporters.quoting import Shell
from autotune.exporters.targets.base import (
    Document,
    Target,
    TargetOptions,
    engine_image,
    literal_of,
    manifest,
    printable,
    service_name,
)
from autotune.exporters.targets.dynamo import PLACED
from autotune.exporters.targets.kserve import HUB_NAME
from autotune.exporters.targets.pods import PodShape, known_variables, refuse_lone_pool, refuse_unlike

ROLES = {"prefill": "prefill", "decode": "decode", "serve": "agg"}
DROPPED = ("--model-path", "--disaggregation-bootstrap-port")
PRECISIONS = {"nvfp4": "fp4", "mxfp4": "fp4", "fp8-block": "fp8", "fp8-tensor": "fp8", "bf16": "bf16"}
"""Recipe -> srt-slurm's word for it."""


def _render(launch: Launch, options: TargetOptions) -> list[Script]:
    """recipe.yaml."""
    refuse_unlike(launch, "srt-slurm")
    if launch.engine not in PLACED:
        raise ExportError(f"srt-slurm is written for {', '.join(PLACED)}, not for {launch.engine}")
    refuse_lone_pool(launch, "srt-slurm", "bash")
    hardware = {pool.hardware for pool in launch.pools}
    if len(hardware) > 1:
        raise ExportError(f"an srt-slurm recipe has one kind of GPU, this plan {len(hardware)}: {', '.join(sorted(hardware))}")
    if launch.precision not in PRECISIONS:
        raise ExportError(f"srt-slurm has no word for {launch.precision}; known: {', '.join(PRECISIONS)}")
    if any(item.name != "SETTINGS" for pool in launch.pools for item in pool.head.beside):
        raise ExportError("srt-slurm mounts no file of a plan's own: an expert map is written to bash, sbatch, compose and lws")
    first = launch.pools[-1]
    engine: object = {"type": launch.engine, "connector": "nixl"} if launch.engine == "vllm" and launch.router else launch.engine
    recipe: Document = {
        "schema": 2,
        "name": service_name(launch),
        "model": {
            "path": _model(first.head.optional["MODEL"]),
            "container": engine_image(launch, first.vendor, options),
            "precision": PRECISIONS[launch.precision],
        },
        "resources": {
            "gpu_type": first.hardware.removeprefix("hgx-").removesuffix("-nvl72"),
            "gpus_per_node": first.place.per_node * first.place.gpus_per_node,
        },
        "frontend": {"type": _frontend(launch)},
        "engine": engine,
        "roles": {ROLES[pool.role]: _role(launch, pool) for pool in launch.pools},
        "benchmark": _benchmark(launch),
    }
    return [manifest("recipe.yaml", [recipe], f"srt-slurm recipe of {launch.engine} {launch.version}")]


def _frontend(launch: Launch) -> str:
    """Of several instances a router; trtllm-serve is both."""
    if launch.engine == "trtllm":
        return "trtllm_serve"
    return f"{launch.engine}-router" if sum(pool.instances for pool in launch.pools) > 1 else launch.engine


def _model(name: str) -> str:
    """A repository of Hugging Face is marked so; anything else is an alias of the cluster's or a path."""
    return f"hf:{name}" if HUB_NAME.fullmatch(name) else printable(name, "the model")


def _role(launch: Launch, pool: LaunchPool) -> Document:
    known = known_variables(pool.head, PodShape())
    arguments: Document = dict(pool.head.settings)
    for argument in pool.head.arguments:
        if argument.flag in PLACED[launch.engine] or argument.flag in DROPPED:
            continue
        value = True if argument.value is None else literal_of(argument.value, known)
        if isinstance(value, Shell):
            raise ExportError(f"srt-slurm cannot say {argument.flag} {value}")
        arguments[argument.flag.removeprefix("--")] = printable(value, argument.flag) if isinstance(value, str) else value
    settings = {key: printable(value, key) for key, value in pool.head.exported().items() if not isinstance(value, Shell)}
    return {
        "nodes": pool.nodes,
        "workers": pool.instances,
        "gpus": pool.place.nodes * pool.place.gpus_per_node,
        "env": settings,
        "args": arguments,
    }


def _benchmark(launch: Launch) -> Document:
    if launch.benchmark is None:
        return {"type": "manual"}
    values = {argument.flag: argument.value for argument in launch.benchmark.arguments}
    held = sum(pool.instances * pool.pool.dp * pool.pool.batch_per_dp_rank for pool in launch.pools if pool.role != "prefill")
    return {
        "type": "sa-bench",
        "isl": values["--random-input-len"],
        "osl": values["--random-output-len"],
        "concurrencies": str(values.get("--max-concurrency", held)),
        "req_rate": str(values.get("--request-rate", "inf")),
    }


TARGET = Target(
    name="srt-slurm",
    title="NVIDIA srt-slurm recipe, schema 2",
    render=_render,
    apply="srtctl apply -f recipe.yaml",
    validate="srtctl dry-run -f recipe.yaml",
)

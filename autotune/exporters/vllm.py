"""vLLM launch scripts: `vllm serve`, hybrid load balancing over nodes, NIXL between prefill and decode."""

from __future__ import annotations

from typing import Any

from autotune.documents.deployment import Deployment
from autotune.errors import ExportError
from autotune.exporters.base import (
    OTHER_SIDE,
    ROLES,
    Argument,
    Placement,
    Required,
    Script,
    checkpoint,
    hardware_name,
    json_value,
    knob_arguments,
    max_model_len,
    placement,
    render,
)
from autotune.exporters.quoting import Shell
from autotune.resolving import resolve_recipe
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from search_spaces.schema import EngineSpec, version_key
from search_spaces.spelling import spelled

DATA_PARALLEL_RPC_PORT = 13345
MASTER_PORT = 29501
OFFLOADED_PARAMETERS = "experts"
"""Parameters that weight offload moves, as a segment of their names."""
KV_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}


def vllm_scripts(
    deployment: Deployment, engine: EngineSpec, version: str, hardware: HardwareSpec, model: ModelSpec
) -> list[Script]:
    """One script per node role of an instance; raises ExportError for what vLLM cannot launch."""
    pool = deployment.pool
    if pool.pp > 1 and deployment.phase not in engine.pipeline_pools:
        raise ExportError(f"vLLM's NixlConnector takes no pipeline stages: pp {pool.pp} cannot hand KV caches over")
    place = placement(pool, hardware)
    if pool.dp > 1 and pool.tp > place.gpus_per_node:
        raise ExportError(f"vLLM places each DP rank on one node: tp {pool.tp} exceeds its {place.gpus_per_node} GPUs")
    if pool.dp > 1 and pool.ep not in (1, pool.tp * pool.dp):
        raise ExportError(f"vLLM's EP size is tp x dp = {pool.tp * pool.dp}, not {pool.ep}")
    if pool.redundant_experts and not pool.flags.get("enable_eplb"):
        raise ExportError(f"vLLM takes redundant experts ({pool.redundant_experts}) with EPLB only: enable_eplb is off")
    arguments = _serving_arguments(deployment, engine, version, model)
    environment = _environment(deployment, engine, version, hardware, place)
    comments = _comments(deployment, version, place)
    if pool.dp > 1:
        return [_data_parallel_script(deployment, model, place, arguments, environment, comments)]
    return _tensor_parallel_scripts(deployment, model, place, arguments, environment, comments)


def _data_parallel_script(
    deployment: Deployment,
    model: ModelSpec,
    place: Placement,
    arguments: list[Argument],
    environment: dict[str, str | Shell],
    comments: list[str],
) -> Script:
    """Every node runs the same script: its own API servers and its share of the DP ranks."""
    pool = deployment.pool
    local = pool.dp // place.nodes
    layout = [Argument("--tensor-parallel-size", pool.tp), Argument("--data-parallel-size", pool.dp)]
    required = _address(deployment)
    if place.nodes > 1:
        layout += [
            Argument("--data-parallel-size-local", local),
            Argument("--data-parallel-start-rank", Shell('"$((NODE_RANK * {local}))"').filled(local=local)),
            Argument("--data-parallel-address", Shell('"$HEAD_ADDRESS"')),
            Argument("--data-parallel-rpc-port", DATA_PARALLEL_RPC_PORT),
            Argument("--data-parallel-hybrid-lb"),
        ]
        required += [
            Required("HEAD_ADDRESS", "address of the node with NODE_RANK 0"),
            Required("NODE_RANK", f"rank of this node in the instance, 0..{place.nodes - 1}"),
        ]
    if pool.ep > 1:
        layout.append(Argument("--enable-expert-parallel"))
    return _script(
        f"{deployment.phase}_node.sh", deployment, model, place, required, environment, [*layout, *arguments], comments
    )


def _tensor_parallel_scripts(
    deployment: Deployment,
    model: ModelSpec,
    place: Placement,
    arguments: list[Argument],
    environment: dict[str, str | Shell],
    comments: list[str],
) -> list[Script]:
    """One node, or a head and headless workers."""
    pool = deployment.pool
    layout = [Argument("--tensor-parallel-size", pool.tp)]
    if pool.pp > 1:
        layout.append(Argument("--pipeline-parallel-size", pool.pp))
    if pool.ep > 1:
        layout.append(Argument("--enable-expert-parallel"))
    required = _address(deployment)
    if place.nodes == 1:
        return [
            _script(
                f"{deployment.phase}_node.sh", deployment, model, place, required, environment, [*layout, *arguments], comments
            )
        ]
    required += [
        Required("HEAD_ADDRESS", "address of the head node"),
        Required("NODE_RANK", f"rank of this node: 0 on the head, 1..{place.nodes - 1} on workers"),
    ]
    layout += [
        Argument("--nnodes", place.nodes),
        Argument("--node-rank", Shell('"$NODE_RANK"')),
        Argument("--master-addr", Shell('"$HEAD_ADDRESS"')),
        Argument("--master-port", MASTER_PORT),
    ]
    head = _script(
        f"{deployment.phase}_head.sh", deployment, model, place, required, environment, [*layout, *arguments], comments
    )
    headless = [*layout, Argument("--headless"), *arguments]
    worker = _script(f"{deployment.phase}_worker.sh", deployment, model, place, required, environment, headless, comments)
    return [head, worker]


def _address(deployment: Deployment) -> list[Required]:
    """What the other side of a pair reaches this node by."""
    if deployment.phase not in OTHER_SIDE:
        return []
    return [Required("NODE_ADDRESS", f"address of this node, reachable from the {OTHER_SIDE[deployment.phase]} nodes")]


def _script(
    name: str,
    deployment: Deployment,
    model: ModelSpec,
    place: Placement,
    required: list[Required],
    environment: dict[str, str | Shell],
    arguments: list[Argument],
    comments: list[str],
) -> Script:
    text = render(
        title=f"{name}: vLLM {ROLES[deployment.phase]} instance, {deployment.pool.layout.label()} on {hardware_name(deployment)}",
        comments=comments,
        required=required,
        optional={
            "MODEL": checkpoint(deployment, model),
            "PORT": "8000",
            **({"NIXL_PORT": "5600"} if deployment.phase in KV_ROLES else {}),
        },
        place=place,
        environment=environment,
        command=Shell('vllm serve "$MODEL"'),
        arguments=[Argument("--port", Shell('"$PORT"')), *arguments],
    )
    return Script(name, text)


def _serving_arguments(deployment: Deployment, engine: EngineSpec, version: str, model: ModelSpec) -> list[Argument]:
    pool = deployment.pool
    flags = pool.flags
    arguments = [Argument("--max-model-len", max_model_len(deployment, model))]
    arguments += knob_arguments(spelled(engine, version, flags, deployment.phase))
    if flags.get("offload_group_size"):
        arguments.append(Argument("--offload-params", OFFLOADED_PARAMETERS))
    if pool.draft_tokens:
        speculative = {"method": "mtp", "num_speculative_tokens": pool.draft_tokens}
        arguments.append(Argument("--speculative-config", json_value(speculative)))
    if pool.cuda_graph:
        arguments.append(Argument("--compilation-config", json_value({"cudagraph_mode": "FULL_DECODE_ONLY"})))
    else:
        arguments.append(Argument("--enforce-eager"))
    if deployment.phase in KV_ROLES:
        transfer: dict[str, Any] = {"kv_connector": "NixlConnector", "kv_role": KV_ROLES[deployment.phase]}
        arguments.append(Argument("--kv-transfer-config", json_value(transfer)))
    return arguments


def _environment(
    deployment: Deployment, engine: EngineSpec, version: str, hardware: HardwareSpec, place: Placement
) -> dict[str, str | Shell]:
    pool = deployment.pool
    environment: dict[str, str | Shell] = dict(spelled(engine, version, pool.flags, deployment.phase).environment)
    backend = pool.flags.get("all2all_backend")
    inside = pool.layout.gpus <= hardware.scale_up.domain_gpus
    if backend == "deepep_low_latency" and place.nodes > 1 and inside:
        environment["VLLM_DEEPEP_LOW_LATENCY_USE_MNNVL"] = "1"
    if backend == "deepep_low_latency" and _dispatches_nvfp4(deployment) and version_key(version) >= (0, 13):
        environment["VLLM_DEEPEPLL_NVFP4_DISPATCH"] = "1"
    if deployment.phase in KV_ROLES:
        environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] = Shell('"$NODE_ADDRESS"')
        environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] = Shell('"$NIXL_PORT"')
    return environment


def _dispatches_nvfp4(deployment: Deployment) -> bool:
    return resolve_recipe(deployment.precision).dispatch == "nvfp4"


def _comments(deployment: Deployment, version: str, place: Placement) -> list[str]:
    pool = deployment.pool
    where = f"{place.nodes} node(s) x {place.gpus_per_node} GPUs per instance"
    pairs = {
        "decode": "KV consumer of a prefill/decode pair: prefill instances must run with the same NixlConnector as kv_producer.",
        "prefill": "KV producer of a prefill/decode pair: decode instances must run with the same NixlConnector as kv_consumer.",
    }
    lines = [f"vLLM {version}; {where}, {pool.instances} instance(s); written by autotune."]
    lines += [pairs[deployment.phase]] if deployment.phase in pairs else []
    if place.nodes > 1 and pool.dp > 1:
        lines.append("Run it on every node of an instance; each node serves its own DP ranks, put a load balancer in front.")
    return lines

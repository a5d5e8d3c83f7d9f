"""vLLM-Ascend launch scripts: one `vllm serve` per data-parallel rank, HCCL between ranks, Mooncake between prefill and decode.

Options are those of the vLLM release that the plugin belongs to; variables and --additional-config follow the plugin's tutorials
(docs/source/tutorials: DeepSeek-R1, PD disaggregation with Mooncake), which start a server per rank behind one proxy.
"""

from __future__ import annotations

import math
from typing import Any

from autotune.documents.deployment import Deployment, Pool
from autotune.errors import ExportError
from autotune.exporters.base import (
    OTHER_SIDE,
    ROLE_TITLES,
    Argument,
    Beside,
    NodePlacement,
    Required,
    checkpoint,
    hardware_name,
    json_value,
    knob_arguments,
    needed_arguments,
    notes_of,
    placement,
    recipe_name,
    served_name,
)
from autotune.exporters.launch import PerRank, Process
from autotune.exporters.lengths import Lengths
from autotune.exporters.quoting import Shell, json_word
from autotune.exporters.vllm import DATA_PARALLEL_RPC_PORT, KV_ROLES
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from search_spaces.rules import Subject, written
from search_spaces.spelling import spelled

ASCEND_MAP_FILE = "vllm_ascend_expert_map.json"
KV_PORTS = {8: 28000, 16: 36000}
"""First port that AscendDirectTransport leaves free, by NPU dies of a node (tutorials/features/pd_disaggregation)."""
FIRST_BUFFER_MB = 200
"""Default of HCCL_BUFFSIZE."""
TWO_DIES = ("910C",)
"""NPUs that count as two devices."""
UNKNOWN_SIZES = {
    "prefill": {"dp_size": Shell("$PREFILL_DP"), "tp_size": Shell("$PREFILL_TP")},
    "decode": {"dp_size": Shell("$DECODE_DP"), "tp_size": Shell("$DECODE_TP")},
}
"""Of the side that the plan does not hold, as the operator says them."""
MIB = 2**20


def vllm_ascend_processes(deployment: Deployment, subject: Subject, lengths: Lengths) -> list[Process]:
    """One process for every node of an instance; raises ExportError for what the tutorials do not start."""
    pool, hardware, model = deployment.pool, subject.hardware, subject.model
    place = placement(pool, hardware)
    if pool.pp > 1:
        raise ExportError(f"pipeline stages (pp {pool.pp}) are not written for vLLM-Ascend")
    if pool.tp > place.gpus_per_node:
        raise ExportError(f"vLLM-Ascend needs Ray for tensor parallelism over nodes: tp {pool.tp} exceeds {place.gpus_per_node}")
    name = f"{deployment.phase}_node"
    local = place.gpus_per_node // pool.tp
    process = Process(
        name,
        title=f"{name}.sh: vLLM-Ascend {ROLE_TITLES[deployment.phase]} instance, {pool.layout.label()} "
        f"on {hardware_name(deployment)}",
        comments=tuple(_comments(deployment, subject, lengths, place, local)),
        required=tuple(_required(deployment, place)),
        beside=tuple(_beside(pool)),
        optional={
            "MODEL": checkpoint(deployment, model),
            "SERVED_NAME": served_name(deployment, model),
            "PORT": "8000",
            **({"RPC_PORT": str(DATA_PARALLEL_RPC_PORT)} if pool.dp > 1 else {}),
            **({"KV_PORT": str(KV_PORTS[hardware.gpus_per_node])} if deployment.phase in KV_ROLES else {}),
            **({} if place.nodes > 1 or pool.dp == 1 else {"HEAD_ADDRESS": "127.0.0.1"}),
        },
        place=place,
        strides={
            "PORT": local,
            **({"RPC_PORT": 1} if pool.dp > 1 else {}),
            **({"KV_PORT": place.gpus_per_node} if deployment.phase in KV_ROLES else {}),
        },
        environment=_environment(pool, hardware, model),
        per_rank=PerRank(local, pool.tp, 2 if hardware.gpu.name in TWO_DIES else 1),
        command=("vllm", "serve", Shell('"$MODEL"')),
        arguments=(*_layout(pool, place, local), *_serving(deployment, subject, lengths)),
    )
    return [process]


def _required(deployment: Deployment, place: NodePlacement) -> list[Required]:
    required = [
        Required("NODE_ADDRESS", "address of this node on the network interface NIC"),
        Required("NIC", "network interface of NODE_ADDRESS, e.g. eth0"),
    ]
    if place.nodes > 1:
        required += [
            Required("HEAD_ADDRESS", "address of the node with NODE_RANK 0"),
            Required("NODE_RANK", f"rank of this node in the instance, 0..{place.nodes - 1}"),
        ]
    if deployment.phase in OTHER_SIDE and (other := OTHER_SIDE[deployment.phase]) not in deployment.pools:
        required += [
            Required(f"{other.upper()}_{size.upper()}", f"{size} of the {other} instances, which the connector must know")
            for size in ("dp", "tp")
        ]
    return required


def _beside(pool: Pool) -> list[Beside]:
    if not _mapped(pool):
        return []
    make = f"autotune place LOADS --gpus {pool.ep} --redundant {pool.redundant_experts} --out FOLDER"
    return [Beside("EXPERT_MAP", ASCEND_MAP_FILE, f"the file that '{make}' writes")]


def _mapped(pool: Pool) -> bool:
    """Whether experts are placed once from recorded loads."""
    return pool.expert_balance.kind == "static" and pool.expert_balance.skew is not None


def _environment(pool: Pool, hardware: HardwareSpec, model: ModelSpec) -> dict[str, str | Shell]:
    """HCCL's addresses, buffer and algorithms, and what the tutorials set beside."""
    found: dict[str, str | Shell] = {
        "HCCL_IF_IP": Shell('"$NODE_ADDRESS"'),
        "HCCL_SOCKET_IFNAME": Shell('"$NIC"'),
        "GLOO_SOCKET_IFNAME": Shell('"$NIC"'),
        "TP_SOCKET_IFNAME": Shell('"$NIC"'),
        "HCCL_BUFFSIZE": str(hccl_buffer_mb(pool, model)),
        "OMP_PROC_BIND": "false",
        "OMP_NUM_THREADS": "10",
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
        "TASK_QUEUE_ENABLE": "1",
    }
    if hardware.gpu.name in TWO_DIES:
        return found | {"HCCL_OP_EXPANSION_MODE": "AIV"}
    # dispatch and combine between nodes of Atlas A2: first over HCCS inside the node, then over RoCE
    return found | {"HCCL_INTRA_PCIE_ENABLE": "1", "HCCL_INTRA_ROCE_ENABLE": "0"}


def hccl_buffer_mb(pool: Pool, model: ModelSpec) -> int:
    """HCCL_BUFFSIZE [MiB] that MC2's dispatch and combine need, at least HCCL's default.

    2 (T D E L + T C k), T tokens per rank, E ranks, L experts of a rank, k chosen experts, D = 2H + 64 bytes in blocks of 512,
    C = 2H so (moe_distribute_dispatch_v2_tiling.cc, whose error message states it; vllm-project/vllm-ascend pull 5287).
    """
    if model.moe is None or pool.ep == 1 or not pool.batch_per_dp_rank:
        return FIRST_BUFFER_MB
    tokens = math.ceil(pool.batch_per_dp_rank * (1 + pool.draft_tokens) / pool.tp)
    local = math.ceil((model.moe.experts + pool.redundant_experts) / pool.ep)
    dispatch, combine = (math.ceil(size / 512) * 512 for size in (2 * model.hidden + 64, 2 * model.hidden))
    needed = 2 * tokens * (dispatch * pool.ep * local + combine * model.moe.top_k)
    return max(needed // MIB + 1, FIRST_BUFFER_MB)


def _layout(pool: Pool, place: NodePlacement, local: int) -> list[Argument]:
    arguments = [
        Argument("--host", "0.0.0.0"),  # noqa: S104  (a server meant to be reached by its router)
        Argument("--port", Shell('"$(( PORT + rank ))"')),
        Argument("--tensor-parallel-size", pool.tp),
    ]
    if pool.dp > 1:
        first = Shell('"$(( NODE_RANK * {local} + rank ))"').filled(local=local) if place.nodes > 1 else Shell('"$rank"')
        arguments += [
            Argument("--data-parallel-size", pool.dp),
            Argument("--data-parallel-rank", first),
            Argument("--data-parallel-address", Shell('"$HEAD_ADDRESS"')),
            Argument("--data-parallel-rpc-port", Shell('"$RPC_PORT"')),
        ]
    if pool.ep > 1:
        arguments.append(Argument("--enable-expert-parallel"))
    return arguments


def _serving(deployment: Deployment, subject: Subject, lengths: Lengths) -> list[Argument]:
    pool = deployment.pool
    arguments = [
        Argument("--served-model-name", Shell('"$SERVED_NAME"')),
        *needed_arguments(written(subject)),
        Argument("--max-model-len", lengths.longest),
    ]
    arguments += knob_arguments(spelled(subject.engine, subject.version, pool.flags, deployment.phase))
    if recipe_name(deployment) == "int8":
        arguments.append(Argument("--quantization", "ascend"))
    if pool.draft_tokens and pool.drafter:
        raise ExportError(
            f"scripts for vLLM-Ascend do not start the drafter {pool.drafter}: only the model's own module drafts there"
        )
    if pool.draft_tokens:
        speculative = {"method": "mtp", "num_speculative_tokens": pool.draft_tokens}
        arguments.append(Argument("--speculative-config", json_value(speculative)))
    graph = {"cudagraph_mode": "FULL_DECODE_ONLY"}
    arguments.append(Argument("--compilation-config", json_value(graph)) if pool.cuda_graph else Argument("--enforce-eager"))
    if additional := _additional(deployment):
        arguments.append(Argument("--additional-config", json_word(additional)))
    if deployment.phase in KV_ROLES:
        arguments.append(Argument("--kv-transfer-config", json_word(_transfer(deployment))))
    return arguments


def _additional(deployment: Deployment) -> dict[str, Any]:
    """The plugin's own settings (user_guide/configuration/additional_config.md)."""
    found: dict[str, Any] = {}
    if deployment.phase in KV_ROLES:  # a preempted sequence goes back to prefill; refused outside of pairs
        found["recompute_scheduler_enable"] = True
    if deployment.phase == "decode":
        found["multistream_overlap_shared_expert"] = True
    if _mapped(deployment.pool):
        found["eplb_config"] = {
            "expert_map_path": Shell(r'\"$(json_text "$EXPERT_MAP")\"'),
            "num_redundant_experts": deployment.pool.redundant_experts,
        }
    return found


def _transfer(deployment: Deployment) -> dict[str, Any]:
    """How KV caches are handed over; the connector must know the sizes of both sides."""
    sizes: dict[str, dict[str, Any]] = {}
    for phase in KV_ROLES:
        pool = deployment.pools.get(phase)  # type: ignore[call-overload]
        known = {"dp_size": pool.dp, "tp_size": pool.tp} if pool else {}
        sizes[phase] = known or UNKNOWN_SIZES[phase]
    return {
        "kv_connector": "MooncakeConnectorV1",
        "kv_role": KV_ROLES[deployment.phase],
        "kv_port": Shell(r"\"$KV_PORT\""),
        "engine_id": Shell(r"\"$NODE_ADDRESS-$(( PORT + rank ))\""),
        "kv_connector_extra_config": sizes,
    }


def _comments(deployment: Deployment, subject: Subject, lengths: Lengths, place: NodePlacement, local: int) -> list[str]:
    pool = deployment.pool
    where = f"{place.nodes} node(s) x {place.gpus_per_node} NPU dies per instance"
    lines = [f"vLLM-Ascend {subject.version}; {where}, {pool.instances} instance(s); written by autotune."]
    if deployment.phase in OTHER_SIDE:
        other = OTHER_SIDE[deployment.phase]
        lines.append(f"{deployment.phase.capitalize()} side of a pair: {other} instances must run with MooncakeConnectorV1 too.")
    if local > 1:
        lines.append(f"{local} servers on every node, at PORT to PORT + {local - 1}: all of them belong behind the proxy.")
    lines.append(f"Requests of up to {lengths.longest:,} tokens are taken: {lengths.why}.")
    return [*lines, *notes_of(subject)]

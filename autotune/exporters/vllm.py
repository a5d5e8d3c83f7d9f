"""vLLM launch scripts: `vllm serve`, hybrid load balancing over nodes, NIXL between prefill and decode."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.documents.deployment import Deployment
from autotune.exporters.base import (
    OTHER_SIDE,
    ROLE_TITLES,
    Argument,
    Required,
    backend_flags,
    checkpoint,
    hardware_name,
    json_value,
    knob_arguments,
    needed_arguments,
    notes_of,
    own_drafter,
    placement,
    served_name,
)
from autotune.exporters.launch import Process
from autotune.exporters.lengths import Lengths
from autotune.exporters.quoting import Shell
from autotune.exporters.settings import Where, network_variables, settings_of
from search_spaces.rules import Subject, written
from search_spaces.spelling import spelled

DATA_PARALLEL_RPC_PORT = 13345
MASTER_PORT = 29501
OFFLOADED_PARAMETERS = "experts"
"""Parameters that weight offload moves, as a segment of their names."""
KV_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}


def vllm_processes(deployment: Deployment, subject: Subject, lengths: Lengths) -> list[Process]:
    """One process per node role of an instance; raises ExportError for what does not lie on whole nodes or equal parts of one."""
    pool = deployment.pool
    place = placement(pool, subject.hardware)
    parts = Parts(Where(deployment, subject, place), lengths)
    layout = [Argument("--tensor-parallel-size", pool.tp)]
    if pool.dp > 1:
        return [_data_parallel(parts, layout)]
    if pool.pp > 1:
        layout.append(Argument("--pipeline-parallel-size", pool.pp))
    if pool.ep > 1:
        layout.append(Argument("--enable-expert-parallel"))
    if place.nodes == 1:
        return [parts.process(f"{deployment.phase}_node", layout, [])]
    return _head_and_workers(parts, layout)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the scripts of one pool have in common."""

    where: Where
    lengths: Lengths

    @property
    def deployment(self) -> Deployment:
        return self.where.deployment

    def process(self, name: str, layout: list[Argument], required: list[Required]) -> Process:
        """One process; required : beside what every node is asked for."""
        deployment, subject, place = self.where.deployment, self.where.subject, self.where.place
        arguments = _serving_arguments(deployment, subject, self.lengths)
        label = deployment.pool.layout.label()
        return Process(
            name,
            title=f"{name}.sh: vLLM {ROLE_TITLES[deployment.phase]} instance, {label} on {hardware_name(deployment)}",
            comments=tuple(_comments(self)),
            required=(*_address(deployment), *required),
            optional={
                "MODEL": checkpoint(deployment, subject.model),
                "SERVED_NAME": served_name(deployment, subject.model),
                "PORT": "8000",
                **({"NIXL_PORT": "5600"} if deployment.phase in KV_ROLES else {}),
            },
            place=place,
            defaults={**settings_of(self.where), **written(subject).environment},
            environment=_environment(self.where),
            network=network_variables(self.where),
            # NIXL listens on one port per rank
            strides={"PORT": 1, **({"NIXL_PORT": place.gpus_per_node} if deployment.phase in KV_ROLES else {})},
            command=("vllm", "serve", Shell('"$MODEL"')),
            arguments=(
                Argument("--served-model-name", Shell('"$SERVED_NAME"')),
                Argument("--port", Shell('"$PORT"')),
                *layout,
                *needed_arguments(written(subject)),
                *arguments,
            ),
        )


def _data_parallel(parts: Parts, layout: list[Argument]) -> Process:
    """Every node runs the same script: its own API servers and its share of the DP ranks."""
    pool, nodes = parts.deployment.pool, parts.where.place.nodes
    local = pool.dp // nodes
    layout = [*layout, Argument("--data-parallel-size", pool.dp)]
    required = []
    if nodes > 1:
        layout += [
            Argument("--data-parallel-size-local", local),
            Argument("--data-parallel-start-rank", Shell('"$((NODE_RANK * {local}))"').filled(local=local)),
            Argument("--data-parallel-address", Shell('"$HEAD_ADDRESS"')),
            Argument("--data-parallel-rpc-port", DATA_PARALLEL_RPC_PORT),
            Argument("--data-parallel-hybrid-lb"),
        ]
        required = [
            Required("HEAD_ADDRESS", "address of the node with NODE_RANK 0"),
            Required("NODE_RANK", f"rank of this node in the instance, 0..{nodes - 1}"),
        ]
    if pool.ep > 1:
        layout.append(Argument("--enable-expert-parallel"))
    return parts.process(f"{parts.deployment.phase}_node", layout, required)


def _head_and_workers(parts: Parts, layout: list[Argument]) -> list[Process]:
    """A tensor-parallel instance over nodes: a head that serves, and headless workers."""
    nodes, phase = parts.where.place.nodes, parts.deployment.phase
    required = [
        Required("HEAD_ADDRESS", "address of the head node"),
        Required("NODE_RANK", f"rank of this node: 0 on the head, 1..{nodes - 1} on workers"),
    ]
    layout = [
        *layout,
        Argument("--nnodes", nodes),
        Argument("--node-rank", Shell('"$NODE_RANK"')),
        Argument("--master-addr", Shell('"$HEAD_ADDRESS"')),
        Argument("--master-port", MASTER_PORT),
    ]
    return [
        parts.process(f"{phase}_head", layout, required),
        parts.process(f"{phase}_worker", [*layout, Argument("--headless")], required),
    ]


def _address(deployment: Deployment) -> list[Required]:
    """What the other side of a pair reaches this node by."""
    if deployment.phase not in OTHER_SIDE:
        return []
    return [Required("NODE_ADDRESS", f"address of this node, reachable from the {OTHER_SIDE[deployment.phase]} nodes")]


def _serving_arguments(deployment: Deployment, subject: Subject, lengths: Lengths) -> list[Argument]:
    pool = deployment.pool
    flags = backend_flags(subject, pool.flags)
    arguments = [Argument("--max-model-len", lengths.longest)]
    knobs = {**flags, "context_ranks": pool.dcp}
    arguments += knob_arguments(spelled(subject.engine, subject.version, knobs, deployment.phase))
    if flags.get("offload_group_size") and subject.model.moe is not None:  # of a dense model whole layers move
        arguments.append(Argument("--offload-params", OFFLOADED_PARAMETERS))
    if pool.draft_tokens:
        named = {"method": own_drafter(pool, subject.model).kind, "model": pool.drafter} if pool.drafter else {"method": "mtp"}
        speculative = {**named, "num_speculative_tokens": pool.draft_tokens}
        arguments.append(Argument("--speculative-config", json_value(speculative)))
    if not pool.cuda_graph:
        arguments.append(Argument("--enforce-eager"))
    elif deployment.phase != "serve":  # steps with prompts run in the engine's own piecewise graphs
        arguments.append(Argument("--compilation-config", json_value({"cudagraph_mode": "FULL_DECODE_ONLY"})))
    return [*arguments, *_transfer(deployment)]


def _transfer(deployment: Deployment) -> list[Argument]:
    """How KV caches are handed over: a lost one is an error, not a prompt computed again on decode."""
    if deployment.phase not in KV_ROLES:
        return []
    transfer = {
        "kv_connector": "NixlConnector",
        "kv_role": KV_ROLES[deployment.phase],
        "kv_load_failure_policy": "fail",
    }
    return [Argument("--kv-transfer-config", json_value(transfer))]


def _environment(where: Where) -> dict[str, str | Shell]:
    deployment, subject = where.deployment, where.subject
    knobs = spelled(subject.engine, subject.version, deployment.pool.flags, deployment.phase)
    environment: dict[str, str | Shell] = dict(knobs.environment)
    choice = subject.choice()
    if choice is not None and choice.value == "deepep_low_latency" and where.several_nodes and where.inside_a_domain:
        environment["VLLM_DEEPEP_LOW_LATENCY_USE_MNNVL"] = "1"
    if deployment.phase in KV_ROLES:
        environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] = Shell('"$NODE_ADDRESS"')
        environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] = Shell('"$NIXL_PORT"')
    return environment


def _comments(parts: Parts) -> list[str]:
    deployment, subject, place = parts.deployment, parts.where.subject, parts.where.place
    pool = deployment.pool
    pairs = {
        "decode": "KV consumer of a prefill/decode pair: prefill instances must run with the same NixlConnector as kv_producer.",
        "prefill": "KV producer of a prefill/decode pair: decode instances must run with the same NixlConnector as kv_consumer.",
    }
    where = f"{place.nodes} node(s) x {place.gpus_per_node} GPUs per instance"
    lines = [f"vLLM {subject.version}; {where}, {pool.instances} instance(s); written by autotune."]
    lines += [pairs[deployment.phase]] if deployment.phase in pairs else []
    if place.nodes > 1 and pool.dp > 1:
        lines.append("Run it on every node of an instance; each node serves its own DP ranks, put a load balancer in front.")
    lines.append(f"Requests of up to {parts.lengths.longest:,} tokens are taken: {parts.lengths.why}.")
    if "VLLM_DEEPEPLL_NVFP4_DISPATCH" in written(subject).environment:
        lines.append(
            "VLLM_DEEPEPLL_NVFP4_DISPATCH=1 needs DeepEP's hybrid-ep branch; with another export it as 0 (BF16 goes out then)."
        )
    return [*lines, *notes_of(subject)]

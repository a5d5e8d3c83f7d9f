"""SGLang launch scripts: `sglang.launch_server`, alone or as one side of a disaggregated pair."""

from __future__ import annotations

from autotune.documents.deployment import Deployment, Pool
from autotune.errors import ExportError
from autotune.exporters.base import (
    OTHER_SIDE,
    ROLE_TITLES,
    Argument,
    Beside,
    NodePlacement,
    Required,
    backend_flags,
    checkpoint,
    hardware_name,
    knob_arguments,
    needed_arguments,
    notes_of,
    own_drafter,
    placement,
    recipe_name,
    served_name,
)
from autotune.exporters.launch import Process
from autotune.exporters.lengths import Lengths
from autotune.exporters.quoting import Shell
from autotune.exporters.router import BOOTSTRAP_OFFSETS
from autotune.exporters.settings import START_LIMIT_S, Where, network_variables, settings_of
from search_spaces.options import OptionList, load_options
from search_spaces.rules import Subject, written
from search_spaces.spelling import spelled

DIST_INIT_PORT = 5757
PORT_STRIDE = 20
"""From slot to slot: with attention DP a server holds PORT + 233 to PORT + 247 too (srt/server_args.py, PortArgs of 0.5.23)."""
SGLANG_MAP_FILE = "sglang_expert_location.json"
DEEPEP_MODES = {"prefill": "normal", "decode": "low_latency", "serve": "auto"}


def sglang_processes(deployment: Deployment, subject: Subject, lengths: Lengths) -> list[Process]:
    """One process for every node of an instance."""
    pool = deployment.pool
    name = f"{deployment.phase}_node"
    place = placement(pool, subject.hardware)
    where = Where(deployment, subject, place)
    beside = []
    if _mapped(pool):
        make = f"autotune place LOADS --gpus {pool.ep} --redundant {pool.redundant_experts} --out FOLDER"
        beside = [Beside("EXPERT_LOCATION", SGLANG_MAP_FILE, f"the file that '{make}' writes")]
    process = Process(
        name,
        title=f"{name}.sh: SGLang {ROLE_TITLES[deployment.phase]} instance, {pool.layout.label()} on {hardware_name(deployment)}",
        comments=tuple(_comments(where, lengths)),
        required=tuple(_ranks(place)),
        beside=tuple(beside),
        optional={
            "MODEL": checkpoint(deployment, subject.model),
            "SERVED_NAME": served_name(deployment, subject.model),
            "PORT": "30000",
        },
        place=place,
        strides={"PORT": PORT_STRIDE},
        offsets={"BOOTSTRAP_PORT": BOOTSTRAP_OFFSETS["sglang"]} if deployment.phase == "prefill" else {},
        defaults={**settings_of(where), **written(subject).environment},
        environment=_environment(deployment, subject),
        network=network_variables(where),
        command=("python3", "-m", "sglang.launch_server"),
        arguments=(
            Argument("--model-path", Shell('"$MODEL"')),
            Argument("--served-model-name", Shell('"$SERVED_NAME"')),
            Argument("--host", "0.0.0.0"),  # noqa: S104  (a server meant to be reached by its router)
            Argument("--port", Shell('"$PORT"')),
            *_layout_arguments(deployment, load_options("sglang", subject.engine.release(subject.version))),
            *_node_arguments(place),
            *needed_arguments(written(subject)),
            *_serving_arguments(deployment, subject, lengths),
        ),
    )
    return [process]


def _ranks(place: NodePlacement) -> list[Required]:
    if place.nodes == 1:
        return []
    return [
        Required("HEAD_ADDRESS", "address of the node with NODE_RANK 0"),
        Required("NODE_RANK", f"rank of this node in the instance, 0..{place.nodes - 1}"),
    ]


def _node_arguments(place: NodePlacement) -> list[Argument]:
    if place.nodes == 1:
        return []
    return [
        Argument("--nnodes", place.nodes),
        Argument("--node-rank", Shell('"$NODE_RANK"')),
        Argument("--dist-init-addr", Shell('"$HEAD_ADDRESS:{port}"').filled(port=DIST_INIT_PORT)),
    ]


def _layout_arguments(deployment: Deployment, known: OptionList) -> list[Argument]:
    """--tp-size counts all ranks of a stage; attention is split among them by --attn-dp-size, or by --dp-size before that."""
    pool = deployment.pool
    split = [Argument("--attn-dp-size", pool.dp)]
    if known.find("--attn-dp-size") is None:
        split = [Argument("--dp-size", pool.dp), Argument("--enable-dp-attention")]
    arguments = [Argument("--tp-size", pool.tp * pool.dp)]
    if pool.pp > 1:
        arguments.append(Argument("--pp-size", pool.pp))
    if pool.dp > 1:
        arguments += [
            *split,
            Argument("--moe-dense-tp-size", 1),
            Argument("--enable-dp-lm-head"),
        ]
    if pool.ep > 1:
        arguments.append(Argument("--ep-size", pool.ep))
    return arguments


def _serving_arguments(deployment: Deployment, subject: Subject, lengths: Lengths) -> list[Argument]:
    pool, engine, version = deployment.pool, subject.engine, subject.version
    flags = backend_flags(subject, pool.flags)
    arguments = [
        Argument("--context-length", lengths.longest),
        Argument("--watchdog-timeout", START_LIMIT_S),
        *_sizes(deployment),
    ]
    if flags.get("all2all_backend") == "deepep":
        arguments.append(Argument("--deepep-mode", DEEPEP_MODES[deployment.phase]))
    knobs = flags | {"redundant_experts": pool.redundant_experts, "context_ranks": pool.dcp}
    knobs |= {"enable_eplb": False} if _mapped(pool) else {}
    arguments += knob_arguments(spelled(engine, version, knobs, deployment.phase))
    if _mapped(pool):
        arguments.append(Argument("--init-expert-location", Shell('"$EXPERT_LOCATION"')))
        # a static pick differs from rank to rank: it needs an all-to-all (srt/arg_groups/parallel_hook.py:776 of 0.5.23)
        spread = flags.get("all2all_backend", "none") != "none"
        arguments.append(Argument("--ep-dispatch-algorithm", "static" if spread else "dynamic"))
    if pool.draft_tokens:
        arguments += _drafting(pool, subject)
    if recipe_name(deployment) == "nvfp4":
        arguments.append(Argument("--quantization", "modelopt_fp4"))
    return [*arguments, *_transfer(deployment)]


def _drafting(pool: Pool, subject: Subject) -> list[Argument]:
    """A chain of drafts from the model's own module or an EAGLE-3 head, or the blocks of a block drafter.

    Raises ExportError where the version has no drafters that draft whole blocks.
    """
    chain = [
        Argument("--speculative-num-steps", pool.draft_tokens),
        Argument("--speculative-eagle-topk", 1),
        Argument("--speculative-num-draft-tokens", pool.draft_tokens + 1),
    ]
    if not pool.drafter:
        return [Argument("--speculative-algorithm", "NEXTN"), *chain]
    drafter = own_drafter(pool, subject.model)
    named = [
        Argument("--speculative-algorithm", drafter.kind.upper()),
        Argument("--speculative-draft-model-path", pool.drafter),
    ]
    if not drafter.works.whole_block:
        return [*named, *chain]
    size = f"--speculative-{drafter.kind}-block-size"
    if load_options(subject.engine.command_line, subject.version).find(size) is None:
        raise ExportError(f"SGLang {subject.version} has no {size}: it does not take the drafter {pool.drafter}")
    return [*named, Argument(size, pool.draft_tokens)]


def _mapped(pool: Pool) -> bool:
    """Whether experts are placed once from recorded loads."""
    return pool.expert_balance.kind == "static" and pool.expert_balance.skew is not None


def _sizes(deployment: Deployment) -> list[Argument]:
    """Batch and token budgets; SGLang takes totals over the attention-DP ranks."""
    pool = deployment.pool
    arguments = []
    if pool.batch_per_dp_rank:
        arguments.append(Argument("--max-running-requests", pool.batch_per_dp_rank * pool.dp))
    if deployment.phase != "decode" and pool.max_batched_tokens:
        budget = pool.max_batched_tokens * pool.dp
        arguments += [Argument("--chunked-prefill-size", budget), Argument("--max-prefill-tokens", budget)]
    if deployment.phase == "prefill":
        arguments.append(Argument("--disable-cuda-graph"))
    return arguments


def _transfer(deployment: Deployment) -> list[Argument]:
    """How KV caches are handed over; nothing for an aggregated instance."""
    if deployment.phase == "serve":
        return []
    arguments = [
        Argument("--disaggregation-mode", deployment.phase),
        Argument("--disaggregation-transfer-backend", "nixl"),
    ]
    if deployment.phase == "prefill":
        arguments.append(Argument("--disaggregation-bootstrap-port", Shell('"$BOOTSTRAP_PORT"')))
    return arguments


def _environment(deployment: Deployment, subject: Subject) -> dict[str, str | Shell]:
    pool, choice = deployment.pool, subject.choice()
    buffers = subject.engine.has("dispatch_buffer_tokens", subject.version)
    if choice is None or choice.value != "deepep" or deployment.phase == "prefill" or not buffers:
        return {}
    tokens = pool.batch_per_dp_rank * (1 + pool.draft_tokens)
    return {"SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK": str(tokens)}


def _comments(where: Where, lengths: Lengths) -> list[str]:
    deployment, subject, place = where.deployment, where.subject, where.place
    on = f"{place.nodes} node(s) x {place.gpus_per_node} GPUs per instance"
    lines = [f"SGLang {subject.version}; {on}, {deployment.pool.instances} instance(s); written by autotune."]
    if deployment.phase in OTHER_SIDE:
        other = OTHER_SIDE[deployment.phase]
        lines += [
            f"{deployment.phase.capitalize()} side of a prefill/decode pair: {other} servers must run with",
            f"--disaggregation-mode {other} and the same transfer backend; sglang_router pairs them (--pd-disaggregation).",
        ]
    lines.append(f"Requests of up to {lengths.longest:,} tokens are taken: {lengths.why}.")
    return [*lines, *notes_of(subject)]

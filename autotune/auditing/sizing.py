"""What a command makes of an instance: its ranks, drafts, graphs, and how much it takes at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from autotune.auditing.options import Command, whole_number
from autotune.documents.knobs import pool_settings
from autotune.errors import ProblemError
from cost_models.drafters import find_drafter
from cost_models.errors import unknown_name
from cost_models.specs.model import ModelSpec
from search_spaces.options import load_options
from search_spaces.schema import Value

SGLANG_CHUNKS = ((20e9, 2048), (60e9, 4096), (160e9, 8192), (math.inf, 16384))
"""Chunked-prefill sizes that SGLang takes below so many bytes of memory (srt/server_args.py)."""
SGLANG_DRAFT_STEPS = 3
"""Of --speculative-algorithm for DeepSeek models when nothing else is said (SGLang's documentation, DeepSeek usage)."""
BLOCK_SIZES = ("--speculative-dspark-block-size", "--speculative-dflash-block-size")
"""Options with the drafts of a drafter that drafts whole blocks."""
CAPTURED = ("--cudagraph-capture-sizes", "--cuda-graph-sizes", "--cuda-graph-bs-decode", "--cuda-graph-bs")
"""Options that list the batches to capture."""
WITHOUT_GRAPHS = ("--enforce-eager", "--disable-cuda-graph", "--disable-decode-cuda-graph")


def pool_of_command(
    command: Command, flags: dict[str, Value], phase: str, model: ModelSpec, size: int | None, memory_bytes: float
) -> dict[str, Any]:
    """Fields of the pool that a command starts.

    flags : engine knobs that it sets, to which it adds, and in which a gather takes the place of an all-to-all that no cost model
    describes; phase : prefill, decode or serve; size : sequences or tokens per attention-DP rank where the command leaves them
    open; memory_bytes : of one device. Raises ProblemError for what is no layout, and for an all-to-all that the release lacks.
    """
    layout = _layout(command, flags)
    if undescribed_exchange(command):
        choices = command.engine.backend_choices(command.version)
        flags["all2all_backend"] = next(choice.value for choice in choices if choice.model == "allgather_reducescatter")
    drafter = drafter_named(command)
    drafts = _drafts(command) if (model.mtp_layers or drafter) and phase != "prefill" else 0
    if drafts and command.engine.has("draft_tokens", command.version):
        flags["draft_tokens"] = drafts
    settings = pool_settings({**_rebalancing_defaults(command, flags), **flags})
    pool: dict[str, Any] = {
        **settings,
        **layout,
        "overlap": "two_batch" if flags.get("enable_dbo") else "single_batch" if flags.get("enable_sbo") else "none",
        "draft_tokens": drafts,
        "drafter": drafter if drafts else None,
        "expert_balance": _balance(command, settings),
        "flags": flags,
        **_graphs(command, flags, phase, drafts),
    }
    pool.pop("batch_per_dp_rank", None)
    pool.pop("max_batched_tokens", None)
    knob = command.engine.knob("dispatch_buffer_tokens")
    if phase == "decode" and flags.get("all2all_backend") == "deepep" and knob and knob.spelling(command.version):
        pool["max_batched_tokens"] = flags.setdefault("dispatch_buffer_tokens", knob.default(command.version) or 0)
    if "gpu_memory_fraction" in flags and command.engine.memory_fraction_covers == "everything":
        pool["memory_fraction"] = flags["gpu_memory_fraction"]
    if layout["dp"] > 1:
        pool["all2all_backend"] = _backend(command, flags, phase, layout["ep"])
    if pool.get("all2all_backend") == "deepep_normal":
        pool["cuda_graph"] = False  # SGLang's --deepep-mode normal, and vLLM's high-throughput kernels
    return pool | _sizes(command, flags, phase, layout["dp"], size, memory_bytes)


def servers_of(command: Command, pool: Mapping[str, Any], gpus_per_node: int) -> int:
    """API processes of an instance: as many as the command says, else as its engine starts them.

    Behind a balancer for every node (vLLM --data-parallel-hybrid-lb) each node has its own.
    """
    gpus = int(pool["tp"]) * int(pool["dp"]) * int(pool.get("pp", 1))
    nodes = -(-gpus // gpus_per_node) if "--data-parallel-hybrid-lb" in command.options else 1
    asked = command.whole("--api-server-count", least=1)
    return asked * nodes if asked else command.engine.api_servers(command.version, int(pool["dp"]), nodes)


def _layout(command: Command, flags: Mapping[str, Value]) -> dict[str, int]:
    """tp, dp, ep, pp and instances as the deployment counts them."""
    if command.engine.command_line == "vllm":
        tp, dp, pp = (command.count(f"--{kind}-parallel-size") for kind in ("tensor", "data", "pipeline"))
        return {"tp": tp, "dp": dp, "pp": pp, "ep": tp * dp if command.given("--enable-expert-parallel") else 1}
    ranks, replicas = command.count("--tp-size"), command.count("--dp-size")
    attention = command.count("--attn-dp-size")
    if command.given("--enable-dp-attention") and not command.given("--attn-dp-size"):
        attention, replicas = replicas, 1
    if ranks % attention:
        raise ProblemError(f"--tp-size {ranks} ranks do not divide into {attention} attention-DP ranks")
    # DeepEP and its like set the expert-parallel size to all ranks (srt/arg_groups/moe_hook.py); so did --enable-ep-moe
    spread = flags.get("all2all_backend", "none") != "none" or command.given("--enable-ep-moe")
    ep = ranks if spread else command.count("--ep-size")
    return {"tp": ranks // attention, "dp": attention, "pp": command.count("--pp-size"), "ep": ep, "instances": replicas}


def drafter_named(command: Command) -> str | None:
    """The drafter of its own weights that a command names, where its shapes are known; none otherwise."""
    if command.engine.command_line == "vllm":
        said = command.document("--speculative-config").get("model") or command.text("--spec-model")
    elif command.engine.command_line == "sglang":
        said = command.text("--speculative-draft-model-path")
    else:
        said = command.text("speculative_config.speculative_model")
    found = find_drafter(str(said)) if said else None
    return found.name if found else None


def _drafts(command: Command) -> int:
    """Draft tokens per step."""
    if command.engine.command_line == "vllm":
        said = command.document("--speculative-config").get("num_speculative_tokens") or command.whole("--spec-tokens") or 0
        number = whole_number(str(said))
        if number is None:
            raise ProblemError(f"--speculative-config: num_speculative_tokens needs a whole number, '{said}' was given")
        return number
    if not command.given("--speculative-algorithm"):
        return 0
    blocks = (size for name in BLOCK_SIZES if (size := command.whole(name, least=1)))
    if drafter_named(command) and (block := next(blocks, None)):
        return block
    return command.count("--speculative-num-steps") if command.given("--speculative-num-steps") else SGLANG_DRAFT_STEPS


def _rebalancing_defaults(command: Command, flags: Mapping[str, Value]) -> dict[str, Value]:
    """How the version rebalances experts where the command only switches it on."""
    names = ("eplb_window_steps", "eplb_interval_steps", "eplb_async") if flags.get("enable_eplb") else ()
    knobs = [knob for name in names if (knob := command.engine.knob(name))]
    return {knob.name: default for knob in knobs if (default := knob.default(command.version)) is not None}


def _balance(command: Command, settings: Mapping[str, Any]) -> dict[str, Any]:
    """How experts are balanced: rebalanced, placed once from a map, or not."""
    balance = dict(settings.get("expert_balance", {}))
    placed = command.text("--init-expert-location") not in (None, "trivial")
    if balance.get("kind", "none") == "none":
        return {"kind": "static" if placed else "none"}
    return balance


def _graphs(command: Command, flags: Mapping[str, Value], phase: str, drafts: int) -> dict[str, Any]:
    """Whether decode steps are captured, and up to which size in tokens where the command says one."""
    config = command.document("--compilation-config")
    mode = str(config.get("cudagraph_mode", "")).upper()
    off = any(command.given(name) for name in WITHOUT_GRAPHS) or mode in ("NONE", "0")
    if phase == "prefill" or off:
        return {"cuda_graph": False, "cuda_graph_tokens": None}
    listed = [size for name in CAPTURED if (size := command.largest(name)) is not None]
    listed += _captured("cudagraph_capture_sizes", config.get("cudagraph_capture_sizes") or [])
    said = flags.get("cudagraph_max_tokens", config.get("max_cudagraph_capture_size"))
    listed += _captured("max_cudagraph_capture_size", [said]) if said is not None and not listed else []
    largest = max(listed) if listed else None
    if largest is None:
        return {"cuda_graph": True, "cuda_graph_tokens": None}
    per_sequence = 1 + drafts if command.engine.command_line == "sglang" else 1  # SGLang counts sequences
    return {"cuda_graph": largest > 0, "cuda_graph_tokens": largest * per_sequence or None}


def _captured(field: str, sizes: object) -> list[int]:
    """Sizes of graphs in a document; raises ProblemError for what is no list of whole numbers."""
    found = [whole_number(str(size)) for size in sizes] if isinstance(sizes, list) else [None]
    if None in found:
        raise ProblemError(f"--compilation-config: {field} needs whole numbers, {str(sizes)[:60]} was given")
    return [size for size in found if size is not None]


def undescribed_exchange(command: Command) -> str | None:
    """The option and its value where a command asks for an all-to-all that its release has and no cost model describes."""
    knob = command.engine.knob("all2all_backend")
    spelling = knob.spelling(command.version) if knob else None
    said = command.said(spelling) if spelling else None
    if not said or spelling is None or said in [choice.value for choice in command.engine.backend_choices(command.version)]:
        return None
    option = load_options(str(command.engine.command_line), command.engine.release(command.version)).find(spelling.name)
    return f"{spelling.name} {said}" if option and said in option.choices else None


def _backend(command: Command, flags: Mapping[str, Value], phase: str, ep: int) -> str:
    """The all-to-all of the cost models; raises ProblemError for one that none describes."""
    choices = command.engine.backend_choices(command.version)
    by_itself = command.engine.taken_by_itself(command.version, ep, "prefill" if phase == "prefill" else "decode")
    if by_itself is not None:
        return by_itself.model_in(phase)
    knob = command.engine.knob("all2all_backend")
    assert knob is not None
    chosen = str(flags.get("all2all_backend", knob.default(command.version)))
    choice = next((c for c in choices if c.value == chosen), None)
    if choice is None:
        raise ProblemError(
            f"no cost model describes it: {unknown_name('all-to-all backend', chosen, [c.value for c in choices])}"
        )
    if command.text("--deepep-mode") == "normal" and choice.prefill_model:
        return choice.prefill_model
    return choice.model_in(phase)


def _sizes(
    command: Command, flags: Mapping[str, Value], phase: str, dp: int, size: int | None, memory_bytes: float
) -> dict[str, int]:
    """Sequences and tokens per attention-DP rank: given, as the command says, or the engine's default."""
    if command.engine.command_line == "sglang":
        return _sglang_sizes(command, flags, phase, dp, size, memory_bytes)
    wanted = {
        "decode": {"batch_per_dp_rank": "max_num_seqs"},
        "prefill": {"max_batched_tokens": "max_num_batched_tokens"},
        "serve": {"batch_per_dp_rank": "max_num_seqs", "max_batched_tokens": "max_num_batched_tokens"},
    }[phase]
    found = {}
    for column, name in wanted.items():
        knob = command.engine.knob(name)
        default = knob.default(command.version) if knob else None
        asked = size if column == next(iter(wanted)) else None
        found[column] = int(asked or flags.get(name, default) or 1)
    return found


def _sglang_sizes(
    command: Command, flags: Mapping[str, Value], phase: str, dp: int, size: int | None, memory_bytes: float
) -> dict[str, int]:
    """SGLang counts sequences and tokens over all attention-DP ranks."""
    found = {}
    if phase != "prefill":
        knob = command.engine.knob("max_num_seqs")
        assert knob is not None
        given = flags.get("max_num_seqs")
        found["batch_per_dp_rank"] = max(size or (int(given) // dp if given else int(knob.default(command.version) or 1)), 1)
    if phase != "decode":
        said = command.text("--chunked-prefill-size")
        asked = None if said is None or said.startswith("-") else whole_number(said)
        if asked is None and said is not None and not said.startswith("-"):
            raise ProblemError(f"--chunked-prefill-size needs a number, '{said}' was given")
        usual = sglang_chunk_tokens(memory_bytes)
        found["max_batched_tokens"] = (size if phase == "prefill" else None) or max((asked or usual) // dp, 1)
    return found


def sglang_chunk_tokens(memory_bytes: float) -> int:
    """SGLang's --chunked-prefill-size where it is not given; memory_bytes : of one device."""
    return next(tokens for below, tokens in SGLANG_CHUNKS if memory_bytes < below)

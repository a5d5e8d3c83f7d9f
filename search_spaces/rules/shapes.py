"""What ranks must divide: heads, experts, and the blocks that a quantised checkpoint keeps one scale for."""

from __future__ import annotations

import numpy as np

from cost_models.arrays import Ints
from cost_models.specs.matrix import Matrix
from search_spaces.rules.rule import Rule
from search_spaces.rules.subject import Bools, Subject

VLLM, EVERY = ("vllm",), ("vllm", "vllm-ascend", "sglang", "trtllm")
BLOCKS = {
    "fp8_block": 128,
    "int4_g32": 32,
    "int4_g64": 64,
    "int4_g128": 128,
    "mxfp8": 32,
    "mxfp4_mxfp4": 32,
    "nvfp4": 16,
    "nvfp4_a16": 16,
    "mxfp8_a16": 32,
}
"""Weights along a row that share one scale, by dtype: what a rank holds of a row must be whole ones. MXFP4 kernels pad instead
(vllm 0.33 fused_moe/oracle/mxfp4.py:837); BF16 and per-tensor FP8 have no blocks."""
FINEST_BLOCK = 32
"""What vLLM re-cuts 128-wide scale blocks of experts to at the finest (fused_moe/oracle/fp8.py:321 of 0.33.0)."""


def sharded_width(subject: Subject, matrix: Matrix) -> Ints | None:
    """What one rank holds of a matrix along the side that tensor parallelism cuts, (rows,); none where it cuts neither.

    Fused columns (gate and up, QKV) are left to their row-cut partners, which have the same width. Under data-parallel attention
    dense layers and shared experts run on each rank's own tokens (SGLang: --moe-dense-tp-size 1), uncut by other DP ranks.
    """
    rows = subject.rows
    ways = rows.moe_tp if matrix.family == "experts" else rows.tp
    whole = (rows.dp > 1) & (matrix.family in _WHOLE_UNDER_DP.get(subject.engine.name, ()))
    ways = np.where(whole, 1, ways)
    if matrix.sharding == "row":
        return np.asarray(np.where(matrix.k % ways, 1, matrix.k // ways), dtype=np.int64)
    if matrix.name in ("q", "q_b", "kv_b"):
        return np.asarray(np.where(matrix.n % ways, 1, matrix.n // ways), dtype=np.int64)
    return None


_WHOLE_UNDER_DP = {"sglang": ("dense_ffn", "shared_expert"), "vllm": ("shared_expert",)}


def uneven(subject: Subject, family: str | None = None) -> list[tuple[Matrix, Ints, Bools]]:
    """(matrix, width on a rank, rows in which scale blocks are cut), of one family or of all but the experts."""
    found = []
    for matrix in subject.model.layer_matrices():
        if matrix.family in ("router", "router_fp32", "embedding") or (matrix.family == "experts") != (family == "experts"):
            continue
        block = BLOCKS.get(str(getattr(subject.recipe, matrix.family)))
        width = sharded_width(subject, matrix)
        if block is None or width is None:
            continue
        ways = subject.rows.moe_tp if family == "experts" else subject.rows.tp
        found.append((matrix, width, (ways > 1) & (width % block != 0)))
    return found


def _any(parts: list[tuple[Matrix, Ints, Bools]], subject: Subject) -> Bools:
    return np.asarray(np.any([mask for _, _, mask in parts], axis=0)) if parts else subject.none()


def experts_cut(subject: Subject) -> Bools:
    """Rows that cut the scale blocks of experts."""
    return _any(uneven(subject, "experts"), subject)


def others_cut(subject: Subject) -> Bools:
    """Rows that cut the scale blocks of attention, dense or shared-expert projections."""
    return _any(uneven(subject), subject)


def _cut_text(subject: Subject, family: str | None) -> str:
    matrix, width, _ = next(part for part in uneven(subject, family) if part[2][0])
    dtype = str(getattr(subject.recipe, matrix.family))
    ways = int((subject.rows.moe_tp if family == "experts" else subject.rows.tp)[0])
    whole = int(width[0]) * ways
    heads, block = subject.model.heads, BLOCKS[dtype]
    fits = [w for w in range(ways - 1, 0, -1) if whole % w == 0 and (whole // w) % block == 0 and heads % w == 0]
    way_out = "expert parallelism keeps experts whole, and " if family == "experts" else ""
    return (
        f"{matrix.name}: {whole:,} / {ways} ranks = {int(width[0])} is not divisible by the {BLOCKS[dtype]}-wide scale blocks of "
        f"{dtype}; {way_out}{max(fits, default=1)} ranks would divide"
    )


def _recut(subject: Subject) -> Bools:
    """Rows whose 128-wide blocks vLLM can re-cut finely enough to shard."""
    if subject.experts != "fp8_block" or subject.model.moe is None:
        return subject.none()
    width = subject.model.moe.intermediate // np.maximum(subject.rows.moe_tp, 1)
    finest = np.gcd(np.gcd(width, 128), subject.model.hidden)
    return np.asarray(experts_cut(subject) & (finest >= FINEST_BLOCK) & (subject.rows.ep == 1))


def _recut_text(subject: Subject) -> str:
    return (
        f"{_cut_text(subject, 'experts')}. vLLM {subject.version} re-cuts the scales at load and falls back on Triton kernels, "
        f"whose time at such blocks nothing here knows; releases before 0.29 refuse to load it"
    )


def _heads(subject: Subject) -> Bools:
    return np.asarray(subject.model.heads % subject.rows.tp != 0)


def _kv_heads(subject: Subject) -> Bools:
    tp = subject.rows.tp
    found = [np.where(tp >= kv, tp % kv != 0, kv % np.maximum(tp, 1) != 0) for kv in _kv_head_counts(subject)]
    return np.asarray(np.any(found, axis=0)) if found else subject.none()


def _kv_head_counts(subject: Subject) -> list[int]:
    """KV heads of every attention kind that has several; a latent is one for all heads."""
    return sorted({kind.kv_heads for kind in subject.model.attentions if hasattr(kind, "kv_heads")})


def _experts_divide(subject: Subject) -> Bools:
    moe = subject.model.moe
    return subject.none() if moe is None else np.asarray((moe.experts + subject.rows.redundant_experts) % subject.rows.ep != 0)


def _experts_text(subject: Subject) -> str:
    moe, rows = subject.model.moe, subject.rows
    assert moe is not None
    return (
        f"{moe.experts} experts and {int(rows.redundant_experts[0])} redundant ones do not divide over {int(rows.ep[0])} ranks; "
        f"{-moe.experts % int(rows.ep[0])} redundant experts would"
    )


def _widths(subject: Subject) -> Bools:
    model, rows = subject.model, subject.rows
    dense = np.asarray(np.any([width % rows.tp != 0 for width in _dense_widths(subject)] or [subject.none()], axis=0))
    return dense if model.moe is None else np.asarray(dense | (model.moe.intermediate % rows.moe_tp != 0))


def _dense_widths(subject: Subject) -> list[int]:
    return [ffn.intermediate for ffn in subject.model.ffns if ffn.kind == "dense"]


def _widths_text(subject: Subject) -> str:
    model, rows = subject.model, subject.rows
    if model.moe is not None and model.moe.intermediate % int(rows.moe_tp[0]):
        return f"experts of width {model.moe.intermediate} do not divide over {int(rows.moe_tp[0])} tensor-parallel ranks"
    tp = int(rows.tp[0])
    width = next(width for width in _dense_widths(subject) if width % tp)
    return f"dense layers of width {width:,} do not divide over {tp} tensor-parallel ranks"


RULES = (
    Rule(
        name="heads_divide",
        says="Tensor parallelism divides the attention heads.",
        source="vllm/config/model.py verify_with_parallel_config (0.33.0); sglang srt/models/deepseek_v2.py asserts the same",
        engines=EVERY,
        broken=_heads,
        because=lambda s: f"tp {int(s.rows.tp[0])} does not divide {s.model.heads} attention heads",
    ),
    Rule(
        name="kv_heads_divide",
        says="Tensor parallelism divides the KV heads, or is a multiple of them.",
        source="vllm/model_executor/layers/linear.py QKVParallelLinear (0.33.0); sglang srt/layers/linear.py (0.5.23)",
        engines=EVERY,
        broken=_kv_heads,
        because=lambda s: f"tp {int(s.rows.tp[0])} neither divides {_kv_head_counts(s)[0]} KV heads nor is a multiple",
    ),
    Rule(
        name="redundant_experts_divide",
        says="Experts and redundant experts divide over the expert-parallel ranks.",
        source="vllm/model_executor/layers/fused_moe/layer.py (0.33.0); sglang srt/eplb/expert_location.py:85 (0.5.23)",
        engines=EVERY,
        broken=_experts_divide,
        because=_experts_text,
    ),
    Rule(
        name="widths_divide",
        says="Experts and dense layers divide over the ranks that cut them.",
        source="vllm/distributed/utils.py divide (0.33.0); sglang srt/layers/linear.py (0.5.23)",
        engines=EVERY,
        broken=_widths,
        because=_widths_text,
    ),
    Rule(
        name="expert_blocks",
        says="A rank's share of an expert is whole scale blocks (experts cut by tensor parallelism).",
        source="vllm quantization/fp8.py:565 (0.24.0), as in 0.13.0 to 0.28.0; vllm#17569",
        engines=VLLM,
        until="0.28",
        broken=experts_cut,
        because=lambda s: _cut_text(s, "experts"),
    ),
    Rule(
        name="expert_blocks",
        says="A rank's share of an expert is whole scale blocks (experts cut by tensor parallelism).",
        source="sglang srt/layers/quantization/fp8.py:1589 (0.5.23)",
        engines=("sglang",),
        broken=experts_cut,
        because=lambda s: _cut_text(s, "experts"),
    ),
    Rule(
        name="expert_blocks",
        says="A rank's share of an expert is whole scale blocks, as far as is known.",
        source="not read in TensorRT-LLM; vLLM and SGLang refuse it",
        engines=("trtllm",),
        effect="unsure",
        broken=experts_cut,
        because=lambda s: _cut_text(s, "experts"),
    ),
    Rule(
        name="expert_blocks",
        says="A rank's share of an expert is whole scale blocks, where vLLM cannot re-cut them.",
        source="vllm quantization/utils/fp8_utils.py:1361, fused_moe/oracle/fp8.py:321 (0.33.0)",
        engines=VLLM,
        since="0.29",
        broken=lambda s: experts_cut(s) & ~_recut(s),
        because=lambda s: _cut_text(s, "experts"),
    ),
    Rule(
        name="expert_blocks_recut",
        says="Expert scale blocks that vLLM re-cuts at load run on kernels that nothing here prices.",
        source="vllm fused_moe/oracle/fp8.py:292 refine_fp8_moe_block_shape (0.33.0); vllm#17569, vllm#52915",
        engines=VLLM,
        since="0.29",
        effect="unpriced",
        broken=_recut,
        because=_recut_text,
    ),
    Rule(
        name="projection_blocks",
        says="A rank's share of attention, dense and shared-expert projections is whole scale blocks.",
        source="vllm quantization/utils/fp8_utils.py:1296 (0.33.0); sglang srt/layers/quantization/fp8.py:594 (0.5.23)",
        engines=("vllm", "sglang"),
        broken=others_cut,
        because=lambda s: _cut_text(s, None),
    ),
)

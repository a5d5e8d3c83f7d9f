"""MLA decode attention in Triton: absorbed queries over a latent cache, split along the context and joined.

Imported only where Triton is. The arithmetic is FlashAttention's online softmax (arXiv 2205.14135) with split contexts
(FlashDecoding); keys are the latent and the rope part, values the latent itself, so the cache is read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LATENT, ROPE = 512, 64
BLOCK_CONTEXT = 32
MOST_SPLITS = 64


@triton.jit
def _partial(
    q_ptr, cache_ptr, out_ptr, lse_ptr, scale, heads, context, per_split,
    LATENT: tl.constexpr, ROPE: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sequence, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(2)
    head = group * HEADS + tl.arange(0, HEADS)
    latent, rope = tl.arange(0, LATENT), LATENT + tl.arange(0, ROPE)
    width = LATENT + ROPE
    row = q_ptr + (sequence * heads + head[:, None]).to(tl.int64) * width
    q = tl.load(row + latent[None], mask=head[:, None] < heads, other=0.0)
    q_rope = tl.load(row + rope[None], mask=head[:, None] < heads, other=0.0)
    best = tl.full([HEADS], -float("inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    acc = tl.zeros([HEADS, LATENT], tl.float32)
    start = split * per_split
    end = tl.minimum(start + per_split, context)
    cache = cache_ptr + sequence.to(tl.int64) * context * width
    for first in range(start, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < end
        key = tl.load(cache + at[:, None] * width + latent[None], mask=inside[:, None], other=0.0)
        key_rope = tl.load(cache + at[:, None] * width + rope[None], mask=inside[:, None], other=0.0)
        score = (tl.dot(q, tl.trans(key)) + tl.dot(q_rope, tl.trans(key_rope))) * scale
        score = tl.where(inside[None], score, -float("inf"))
        higher = tl.maximum(best, tl.max(score, 1))
        weight = tl.exp(score - higher[:, None])
        shrink = tl.exp(best - higher)
        total = total * shrink + tl.sum(weight, 1)
        acc = acc * shrink[:, None] + tl.dot(weight.to(key.dtype), key)
        best = higher
    where = (sequence * heads + head).to(tl.int64) * splits + split
    tl.store(out_ptr + where[:, None] * LATENT + latent[None], acc / total[:, None], mask=head[:, None] < heads)
    tl.store(lse_ptr + where, best + tl.log(total), mask=head < heads)


@triton.jit
def _joined(part_ptr, lse_ptr, out_ptr, splits, LATENT: tl.constexpr, SPLITS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    split, latent = tl.arange(0, SPLITS), tl.arange(0, LATENT)
    lse = tl.load(lse_ptr + row * splits + split, mask=split < splits, other=-float("inf"))
    weight = tl.exp(lse - tl.max(lse, 0))
    part = tl.load(part_ptr + (row * splits + split[:, None]) * LATENT + latent[None], mask=split[:, None] < splits, other=0.0)
    out = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out_ptr + row * LATENT + latent, out)


def mla_decode(q: torch.Tensor, cache: torch.Tensor, scale: float) -> torch.Tensor:
    """q (sequences, heads, 576), cache (sequences, context, 576), bf16 -> (sequences, heads, 512)."""
    sequences, heads, _ = q.shape
    context = cache.shape[1]
    block_heads = 64 if heads >= 64 else max(16, triton.next_power_of_2(heads))
    groups = triton.cdiv(heads, block_heads)
    processors = torch.cuda.get_device_properties(q.device).multi_processor_count
    wanted = max(1, min(MOST_SPLITS, 2 * processors // (sequences * groups), triton.cdiv(context, 4 * BLOCK_CONTEXT)))
    per_split = triton.cdiv(triton.cdiv(context, wanted), BLOCK_CONTEXT) * BLOCK_CONTEXT
    splits = triton.cdiv(context, per_split)
    part = torch.empty(sequences, heads, splits, LATENT, device=q.device, dtype=torch.float32)
    lse = torch.empty(sequences, heads, splits, device=q.device, dtype=torch.float32)
    out = torch.empty(sequences, heads, LATENT, device=q.device, dtype=q.dtype)
    _partial[(sequences, groups, splits)](
        q, cache, part, lse, scale, heads, context, per_split, LATENT, ROPE, block_heads, BLOCK_CONTEXT,
        num_warps=8 if block_heads == 64 else 4, num_stages=2,
    )  # fmt: skip
    _joined[(sequences * heads,)](part, lse, out, splits, LATENT, triton.next_power_of_2(splits), num_warps=4)
    return out

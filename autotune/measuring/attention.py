"""Attention kernels: the best of what PyTorch and Triton have here, each checked against float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autotune.measuring.clock import Kernel, random_bf16

if TYPE_CHECKING:
    import torch

MLA_LATENT, MLA_ROPE = 512, 64
MLA_QK, MLA_V = 192, 128


def measured_mla_decode(sequences: int, context_tokens: int, heads: int) -> list[Kernel]:
    """Absorbed MLA decode: two batched GEMMs with a softmax between, and a Triton kernel that reads the cache once."""
    width = MLA_LATENT + MLA_ROPE

    def make() -> tuple[torch.Tensor, ...]:
        return random_bf16(sequences, heads, width), random_bf16(sequences, context_tokens, width)

    def fused(q: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        from autotune.measuring.mla_decode_triton import mla_decode as kernel

        return kernel(q, cache, MLA_QK**-0.5)

    def reference(q: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
        import torch

        parts = [attended(a[None].double(), b[None].double()) for a, b in zip(q, cache, strict=True)]
        return torch.cat(parts)

    return [
        Kernel("triton mla_decode (autotune)", make, fused, reference),
        Kernel("torch.bmm, softmax, torch.bmm", make, attended, reference),
    ]


def attended(q: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    """softmax(q cache^T) cache[..., :512]; q (sequences, heads, 576), cache (sequences, context, 576)."""
    import torch

    scores = torch.bmm(q, cache.transpose(1, 2)) * MLA_QK**-0.5
    return torch.bmm(torch.softmax(scores, dim=-1), cache[..., :MLA_LATENT])


def measured_gqa_decode(sequences: int, context_tokens: int, heads: int, kv_heads: int, head_dim: int) -> list[Kernel]:
    """One query token per sequence over grouped KV heads."""

    def make() -> tuple[torch.Tensor, ...]:
        kv = (sequences, kv_heads, context_tokens, head_dim)
        return random_bf16(sequences, heads, 1, head_dim), random_bf16(*kv), random_bf16(*kv)

    return [_sdpa(backend, make, causal=False) for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION")]


def prefill(sequences: int, new_tokens: int, heads: int, qk_dim: int, v_dim: int) -> list[Kernel]:
    """Causal attention of whole prompts; every head has its own keys, as in un-absorbed MLA."""

    def make() -> tuple[torch.Tensor, ...]:
        shape = (sequences, heads, new_tokens)
        return random_bf16(*shape, qk_dim), random_bf16(*shape, qk_dim), random_bf16(*shape, v_dim)

    backends = ("CUDNN_ATTENTION", "FLASH_ATTENTION") if qk_dim == v_dim else ("CUDNN_ATTENTION", "padded FLASH_ATTENTION")
    return [_sdpa(backend, make, causal=True) for backend in backends]


def _sdpa(backend: str, make: object, *, causal: bool) -> Kernel:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = getattr(SDPBackend, backend.removeprefix("padded "))
    padded = backend.startswith("padded ")

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        width = v.shape[-1]
        if padded:
            v = torch.nn.functional.pad(v, (0, q.shape[-1] - width))
        with sdpa_kernel(chosen):
            grouped = k.shape[1] != q.shape[1]
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
        return out[..., :width]

    def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        share = q.shape[1] // k.shape[1]
        parts = []
        for head in range(q.shape[1]):  # float64 scores of one head at a time
            scores = q[:, head].double() @ k[:, head // share].double().transpose(1, 2) * q.shape[-1] ** -0.5
            if causal:
                scores += torch.full_like(scores[0], float("-inf")).triu(1)
            parts.append(torch.softmax(scores, dim=-1) @ v[:, head // share].double())
        return torch.stack(parts, dim=1)

    return Kernel(f"scaled_dot_product_attention, {backend}", make, run, reference)  # type: ignore[arg-type]

"""All attention kinds; the contract suite tests/contracts/test_attention_kinds.py runs over them."""

from __future__ import annotations

from typing import get_args

from cost_models.attention.base import AttentionKind
from cost_models.attention.block_sparse import BlockSparseSpec
from cost_models.attention.compressed import CompressedSpec
from cost_models.attention.dsa import DsaSpec
from cost_models.attention.gated_delta import GatedDeltaSpec
from cost_models.attention.gqa import GqaSpec
from cost_models.attention.kda import KdaSpec
from cost_models.attention.mamba2 import Mamba2Spec
from cost_models.attention.mla import MlaSpec
from cost_models.attention.windowed_mla import WindowedMlaSpec

Attention = (
    MlaSpec | WindowedMlaSpec | GqaSpec | BlockSparseSpec | DsaSpec | CompressedSpec | GatedDeltaSpec | KdaSpec | Mamba2Spec
)

KINDS: dict[str, type[AttentionKind]] = {kind.model_fields["kind"].default: kind for kind in get_args(Attention)}

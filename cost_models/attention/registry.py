"""All attention kinds; the contract suite tests/contracts/test_attention_kinds.py runs over them."""

from __future__ import annotations

from cost_models.attention.base import AttentionKind
from cost_models.attention.gqa import GqaSpec
from cost_models.attention.mla import MlaSpec

Attention = MlaSpec | GqaSpec

KINDS: dict[str, type[AttentionKind]] = {kind.model_fields["kind"].default: kind for kind in (MlaSpec, GqaSpec)}

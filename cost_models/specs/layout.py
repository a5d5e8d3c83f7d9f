"""Parallel layout of one engine instance."""

from __future__ import annotations

from pydantic import Field, model_validator

from cost_models.specs.base import Spec


class Layout(Spec):
    """Attention runs on dp groups of tp ranks; experts on ep groups of moe_tp ranks; both cover tp*dp ranks."""

    tp: int = Field(default=1, gt=0)
    dp: int = Field(default=1, gt=0)
    ep: int = Field(default=1, gt=0)
    moe_tp: int | None = Field(default=None, gt=0)
    """Ranks that share one expert's matrices; tp*dp/ep when not given."""
    pp: int = Field(default=1, gt=0)
    dcp: int = Field(default=1, gt=0)
    """Ranks of a tensor-parallel group that share the tokens of every sequence; they are no GPUs of their own."""

    @model_validator(mode="after")
    def _expert_ranks_cover_the_group(self) -> Layout:
        group = self.tp * self.dp
        if group % self.ep:
            raise ValueError(f"ep {self.ep} does not divide tp*dp = {group}")
        if self.moe_tp is not None and self.moe_tp * self.ep != group:
            raise ValueError(f"ep*moe_tp = {self.ep}*{self.moe_tp} must equal tp*dp = {group}")
        return self

    @property
    def moe_tp_ranks(self) -> int:
        return self.moe_tp or self.tp * self.dp // self.ep

    @property
    def gpus(self) -> int:
        """GPUs of one instance."""
        return self.tp * self.dp * self.pp

    def label(self) -> str:
        """Short name, e.g. DP48 EP48, TP8, TP8 DCP8, TP2 DP4 EP8."""
        parts = [("TP", self.tp), ("DCP", self.dcp), ("DP", self.dp), ("EP", self.ep), ("PP", self.pp)]
        text = " ".join(f"{name}{size}" for name, size in parts if size > 1) or "1 GPU"
        sharded = self.dp > 1 and self.moe_tp_ranks > 1
        return f"{text} (experts TP{self.moe_tp_ranks})" if sharded else text

"""The workload a decode pool sees: lengths, cache hits and draft acceptance."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cost_models.balance import REAL_TRAFFIC_SIGMA
from cost_models.specs.base import Spec

MAX_LENGTH_TOKENS = 10_000_000


class Workload(Spec):
    """Request lengths. Means of the traffic, not maxima."""

    isl_tokens: int = Field(gt=0, le=MAX_LENGTH_TOKENS)
    """Mean input length."""
    osl_tokens: int = Field(gt=0, le=MAX_LENGTH_TOKENS)
    """Mean output length."""
    mean_context_tokens: float | None = Field(default=None, gt=0, le=2 * MAX_LENGTH_TOKENS)
    """Mean context of a sequence while it decodes, where it was measured."""
    prefix_cache_hit_rate: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of input tokens found in the prefix cache (matters for prefill, not for decode)."""
    mtp_acceptance: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Probability that draft token i is accepted given that all before it were."""
    popularity_sigma: float | None = Field(default=None, ge=0.0, le=4.0)
    """How unequally the traffic uses experts: standard deviation of their log popularity. About 1.07 in mixed real traffic (the
    default), 1.57 where a benchmark sends random tokens, 0 for uniform random routing. `autotune place` reads it off recorded
    loads."""

    @property
    def sigma(self) -> float:
        """popularity_sigma, or that of mixed real traffic."""
        return REAL_TRAFFIC_SIGMA if self.popularity_sigma is None else self.popularity_sigma

    @property
    def context_tokens(self) -> float:
        """Mean context during decode: ISL + E[O^2] / (2 E[O]); with a fixed output length, ISL + OSL/2.

        A token of a long answer is more likely to be the one being decoded, hence the length bias.
        """
        if self.mean_context_tokens is not None:
            return self.mean_context_tokens
        return self.isl_tokens + self.osl_tokens / 2

    @property
    def peak_context_tokens(self) -> float:
        """Context of a finished request; what the KV cache must be able to hold [token]."""
        return float(self.isl_tokens + self.osl_tokens)

"""Multi-token prediction: tokens accepted per step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats


def accepted_tokens_per_step(drafts: ArrayLike, acceptance: Sequence[float]) -> Floats:
    """Mean tokens a sequence gains per step: 1 + a1 + a1 a2 + ... over the drafts.

    acceptance : conditional acceptance of draft i; the last value repeats for further drafts.
    """
    drafts = as_floats(drafts).astype(np.int64)
    longest = int(drafts.max(initial=0))
    if longest and not acceptance:
        raise ValueError("drafts need an acceptance rate")
    rates = [acceptance[min(i, len(acceptance) - 1)] for i in range(longest)]
    totals = np.concatenate([[1.0], 1.0 + np.cumsum(np.cumprod(rates))]) if longest else np.array([1.0])
    return as_floats(totals[drafts])

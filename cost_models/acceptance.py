"""Published acceptance of drafts, as curves by depth: one per model, drafter and kind of text."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources

import numpy as np
import yaml
from pydantic import Field

from cost_models.errors import UnsupportedModelError
from cost_models.specs.base import Spec

OWN_MODULE = "mtp"
"""The drafter that is priced: a module of the model's own."""
LEAST_RATE = 1e-3


class AcceptanceCurve(Spec):
    """Mean accepted tokens per verification step by number of drafts, from one on."""

    model: str
    """Preset."""
    drafter: str
    """mtp, eagle3 or dspark."""
    text: str
    """What was generated: coding, coding-thinking."""
    file: str
    """In the folder that the data file names."""
    lengths: tuple[float, ...] = Field(min_length=1)

    def rates(self) -> tuple[float, ...]:
        r"""Conditional acceptance of each draft.

        .. math:: a_i = g_i / g_{i-1}, \quad g = \text{the falling regression of } (1, l_1 - 1, l_2 - l_1, \ldots)

        A draft is never accepted more often than the one before it, so gains fall with depth. Every depth was measured on its
        own; where noise has gains rise, neighbours share their mean. Rates below 0.001 are raised to it.
        """
        gains = [min(max(gain, LEAST_RATE**2), 1.0) for gain in falling(np.diff([1.0, *self.lengths]).tolist())]
        before = [1.0, *gains[:-1]]
        return tuple(round(max(gain / last, LEAST_RATE), 4) for last, gain in zip(before, gains, strict=True))


def falling(values: Sequence[float]) -> list[float]:
    """The nearest series that never rises, in least squares (pool adjacent violators: Ayer et al., Ann. Math. Stat. 26, 1955)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while pools and pools[-1][0] / pools[-1][1] < total / count:
            total, count = total + pools[-1][0], count + pools[-1][1]
            pools.pop()
        pools.append((total, count))
    return [total / count for total, count in pools for _ in range(count)]


@functools.cache
def published_acceptance() -> tuple[AcceptanceCurve, ...]:
    """All curves, in the order of the file."""
    text = resources.files("cost_models").joinpath("data", "acceptance.yaml").read_text(encoding="utf-8")
    return tuple(AcceptanceCurve.model_validate(entry) for entry in yaml.safe_load(text))


def published_rates(model: str, text: str, drafter: str = OWN_MODULE) -> tuple[float, ...]:
    """Acceptance of each draft of a preset on a kind of text, by its own module or by a kind of drafter (eagle3, dspark).

    Raises UnsupportedModelError naming what is published for the model, and for curves that only drafters of another kind have.
    """
    own = [curve for curve in published_acceptance() if curve.model == model]
    found = [curve for curve in own if curve.text == text]
    for curve in found:
        if curve.drafter == drafter:
            return curve.rates()
    if found:
        raise UnsupportedModelError(
            f"acceptance '{text}' of {model} was measured with {found[0].drafter}, a drafter of its own weights: name one "
            f"of that kind with --drafter, or its weights and steps would be left out"
        )
    known = ", ".join(f"{curve.text} ({curve.drafter})" for curve in own) or "none"
    others = ", ".join(sorted({curve.model for curve in published_acceptance() if curve.drafter == OWN_MODULE}))
    raise UnsupportedModelError(
        f"no acceptance '{text}' is published for {model} (published for it: {known}; for {others} there are curves of their own "
        "module). Give rates, one per draft, such as 0.8,0.6"
    )

"""How many ranks and domains the choices of one token reach."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from cost_models.arrays import Floats, as_floats, distinct_values


def expected_destinations(choices: int, destinations: ArrayLike, reachable: ArrayLike = 1.0) -> Floats:
    """Distinct destinations of `choices` uniform picks: r (1 - (1 - 1/r)^choices), r the reachable ones.

    reachable : share of the destinations that group-limited routing leaves (topk_group / n_group).
    """
    r = np.maximum(as_floats(destinations) * as_floats(reachable), 1.0)
    missed = np.log1p(-1 / np.maximum(r, 1 + 1e-9))
    return np.where(r <= 1, 1.0, r * -np.expm1(choices * missed))


def reachable_share(ranks: ArrayLike, groups: int, top_k_groups: int, contiguous: ArrayLike) -> Floats:
    """Share of ranks one token can reach under group-limited routing; 1 once experts are shuffled."""
    ranks = as_floats(ranks)
    limited = np.asarray(contiguous) & (ranks >= groups) if groups > 1 else np.zeros(ranks.shape, dtype=bool)
    return np.where(limited, top_k_groups / groups, 1.0)


def expected_domains(choices: int, domains: ArrayLike, groups: int, top_k_groups: int, grouped: ArrayLike) -> Floats:
    """Distinct scale-up domains that one token's experts are on.

    grouped : expert groups stay whole inside domains (original order, or hierarchical EPLB). Then the token's
    top_k_groups of G groups, G/D of them per domain, leave a domain out with C(G - G/D, g) / C(G, g), and each chosen
    group is hit; 3.14 of 4 nodes for DeepSeek-V3. Otherwise the choices are spread at will.
    """
    d = as_floats(domains)
    spread = expected_destinations(choices, d)
    hit = spread
    for count in distinct_values(d[(d > 1) & np.asarray(grouped, dtype=np.bool_)]) if groups > 1 else ():
        if groups % count == 0:
            missed = math.comb(groups - groups // int(count), top_k_groups) / math.comb(groups, top_k_groups)
            hit = np.where((d == count) & np.asarray(grouped, dtype=np.bool_), np.minimum(d * (1 - missed), spread), hit)
    return as_floats(hit)

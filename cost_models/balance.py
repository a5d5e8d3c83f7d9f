"""Expert-load balance: how much more the busiest rank gets than the mean one."""

from __future__ import annotations

import functools
import math
from math import comb
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cost_models.arrays import Floats, as_floats, evaluate_distinct

FEW_TOKENS = 16
"""Per rank; from here on the normal form is within 2 %."""
NEVER = 60.0
"""Less negative logarithm of a probability than rounding of sums below 1 would show (37) [-]."""
REAL_TRAFFIC_SIGMA = 1.07
"""Standard deviation of log popularity of experts in mixed real traffic: LMSYS balancedness without EPLB at 8 and 16 GPUs [-]."""
RANDOM_TOKENS_SIGMA = 1.57
"""The same where benchmarks send random tokens: recorded DeepSeek-R1 loads, mean of 58 layers (docs/models/balance.md) [-]."""
POPULARITY_POINTS = 64
"""Quantiles that stand for the popularity distribution."""


def normal_quantile(p: ArrayLike) -> Floats:
    """Inverse of the standard normal distribution, element-wise (callers pass few distinct values)."""
    inverse = NormalDist().inv_cdf
    found = evaluate_distinct(lambda values: as_floats([inverse(value) for value in values.tolist()]), np.ravel(as_floats(p)))
    return as_floats(found).reshape(np.shape(p))


def uniform_max_over_mean(
    tokens_per_rank: ArrayLike, ranks: ArrayLike, experts: int, top_k: int, groups: int = 1, top_k_groups: int = 1
) -> Floats:
    r"""E[busiest rank's load / mean] when every token picks top_k of the experts that it may uniformly.

    .. math::
        1 + \frac{\sqrt{T v}}{\mu} \Phi^{-1}\!\left(\frac{G - 0.375}{G + 0.25}\right),\quad \mu = T k / G

    tokens_per_rank : tokens that each of the G ranks contributes; T = G * tokens_per_rank. v : `picks_variance`.
    Blom's expected maximum of G such loads; below FEW_TOKENS tokens per rank the discrete form
    (`discrete_max_over_mean`). Within 2 % of simulation for 8-128 ranks, 3 % where groups are chosen first.
    """

    def distinct(t: Floats, g: Floats) -> Floats:
        return _uniform(t, g, experts, top_k, groups, top_k_groups)

    return as_floats(evaluate_distinct(distinct, tokens_per_rank, ranks)).reshape(np.broadcast(tokens_per_rank, ranks).shape)


def _uniform(tokens: Floats, ranks: Floats, experts: int, top_k: int, groups: int, top_k_groups: int) -> Floats:
    few = (ranks > 1) & (ranks <= experts) & (tokens > 0) & (tokens < FEW_TOKENS)
    ratio = _blom(tokens, ranks, experts, top_k, groups, top_k_groups)
    exact = (
        discrete_max_over_mean(t, g, experts, top_k, groups, top_k_groups) for t, g in zip(tokens[few], ranks[few], strict=True)
    )
    ratio[few] = list(exact)
    return ratio


def whole_groups(ranks: ArrayLike, groups: int) -> NDArray[np.bool_]:
    """Whether ranks of experts in order hold whole groups, or whole parts of one."""
    counts = np.maximum(as_floats(ranks), 1.0)
    return np.asarray((groups > 1) & ((groups % counts == 0) | (counts % groups == 0)), dtype=np.bool_)


def picks_variance(ranks: ArrayLike, experts: int, top_k: int, groups: int = 1, top_k_groups: int = 1) -> Floats:
    r"""Variance of one token's picks on one of `ranks` ranks.

    .. math:: v = k F (E[p] - E[p^2]) + k^2 (E[p^2] - E[p]^2),\quad F = \frac{E s - k}{E s - 1}

    p : the rank's share of the experts that a token may pick, s = chosen groups / groups of them. A token that first chooses
    groups comes to a rank not at all or with several picks: at EP8 DeepSeek-V3's v is 1.71, twice that without groups.
    """
    count = np.maximum(as_floats(ranks), 1.0)
    limited = whole_groups(count, groups)
    all_groups, chosen = np.where(limited, groups, 1), np.where(limited, top_k_groups, 1)
    held = np.maximum(all_groups / count, 1.0)
    part = all_groups / held / count
    spread = chosen * (held / all_groups) * (1 - held / all_groups) * (all_groups - chosen) / np.maximum(all_groups - 1, 1)
    mean, square = 1 / count, (part / chosen) ** 2 * (spread + (chosen * held / all_groups) ** 2)
    reachable = experts * chosen / all_groups
    finite = (reachable - top_k) / np.maximum(reachable - 1, 1)
    return as_floats(top_k * finite * (mean - square) + top_k**2 * (square - mean**2))


@functools.cache
def discrete_max_over_mean(
    tokens_per_rank: float, ranks: float, experts: int, top_k: int, groups: int = 1, top_k_groups: int = 1
) -> float:
    r"""E[busiest / mean] of G ranks from the exact distribution F of one rank's load: sum over j of 1 - F(j)^G, over the mean.

    F is the T-fold convolution of one token's count (T whole tokens). Ranks are taken as independent; loads beyond
    `_reached` are left out.
    """
    tokens = max(round(tokens_per_rank * ranks), 1)
    mean = tokens * top_k / ranks
    variance, most_of_one = _one_token_spread(ranks, experts, top_k, groups, top_k_groups)
    reached = _reached(mean, tokens * variance, most_of_one)
    most = min(tokens * top_k, reached)
    size = 1 << most.bit_length()  # a power of two is the fastest length that holds the most picks
    spectrum = _one_token_spectrum(ranks, experts, top_k, groups, top_k_groups, size)
    loads = np.fft.irfft(_power(spectrum, tokens), size)[: most + 1]
    at_most = np.minimum(np.cumsum(np.maximum(loads, 0.0)), 1.0)
    return float((1 - at_most**ranks).sum() * ranks / (tokens * top_k))


@functools.cache
def _one_token_spread(ranks: float, experts: int, top_k: int, groups: int, top_k_groups: int) -> tuple[float, int]:
    """(variance at most, most of one) of the independent counts that a token's picks on a rank are the sum of, see `_reached`."""
    if bool(whole_groups(ranks, groups)):
        return float(picks_variance(ranks, experts, top_k, groups, top_k_groups)), top_k
    return top_k / ranks, 1


def _reached(mean: float, variance: float, most_of_one: int) -> int:
    r"""A load that a sum of independent counts passes with a probability below exp(-NEVER).

    .. math:: P(X \ge \mu + x) \le \exp\left(-\frac{x^2}{2 (v + b x / 3)}\right)

    Bernstein's inequality; b : most that one count is above its mean. A hypergeometric count is itself a sum of yes-or-no trials
    with unequal chances, so b is 1 and v at most the mean.
    """
    third = most_of_one * NEVER / 3
    return math.ceil(mean + third + math.sqrt(third**2 + 2 * NEVER * variance))


@functools.cache
def _one_token_spectrum(
    ranks: float, experts: int, top_k: int, groups: int, top_k_groups: int, size: int
) -> NDArray[np.complex128]:
    """Of `_one_token`; not to be written to."""
    spectrum = np.fft.rfft(_one_token(ranks, experts, top_k, groups, top_k_groups), size)
    spectrum.flags.writeable = False
    return spectrum


def _one_token(ranks: float, experts: int, top_k: int, groups: int, top_k_groups: int) -> list[float]:
    """Probabilities that 0, 1, .. top_k picks of a token are on one rank: hypergeometric, of E / G experts (a mixture of the two
    whole numbers beside it), or of the groups on it that the token chose."""
    if bool(whole_groups(ranks, groups)):
        held = max(int(groups / ranks), 1)
        local = experts / max(ranks, groups)
        reachable = experts * top_k_groups // groups
        cases = [(_picked(m, held, groups, top_k_groups), m * local) for m in range(min(held, top_k_groups) + 1)]
    else:
        cases, reachable = [(1.0, experts / ranks)], experts
    one = [0.0] * (top_k + 1)
    for probability, share in cases:
        low, part = divmod(share, 1)
        for whole, weight in ((int(low), 1 - part), (int(low) + 1, part)):
            if weight:
                for j in range(top_k + 1):
                    one[j] += probability * weight * _picked(j, whole, reachable, top_k)
    return one


def _power(base: NDArray[np.complex128], exponent: int) -> NDArray[np.complex128]:
    """base ** exponent by squaring: numpy takes a logarithm and an exponential of every complex number instead."""
    result = np.ones_like(base)
    while exponent:
        if exponent & 1:
            result = result * base
        exponent >>= 1
        if exponent:
            base = base * base
    return result


def _picked(count: int, local: int, experts: int, top_k: int) -> float:
    """Probability that `count` of a token's experts are among `local` ones."""
    return comb(local, count) * comb(experts - local, top_k - count) / comb(experts, top_k)


def _blom(tokens: Floats, ranks: Floats, experts: int, top_k: int, groups: int, top_k_groups: int) -> Floats:
    total = tokens * ranks
    variance = picks_variance(ranks, experts, top_k, groups, top_k_groups)
    mean = np.maximum(total * top_k / np.maximum(ranks, 1), 1e-12)
    return np.where((ranks > 1) & (total > 0), 1 + np.sqrt(total * variance) / mean * blom_quantile(ranks), 1.0)


def blom_quantile(groups: ArrayLike) -> Floats:
    """Expected maximum of that many standard normal values (Blom); of two where there is one."""
    many = np.maximum(as_floats(groups), 2)
    found = evaluate_distinct(lambda each: normal_quantile((each - 0.375) / (each + 0.25)), many.ravel())
    return as_floats(found).reshape(many.shape)


NEWTON_STEPS, NEWTON_SETTLED = 40, 1e-14
"""Most steps, and the relative change below which the next one would only round."""
DRAWS = 256
"""Draws of expert loads that the expected busiest rank is averaged over; its standard error is below 2 %."""


def in_order_max_over_mean(ranks: ArrayLike, slots: ArrayLike, experts: int, top_k: int, sigma: float) -> Floats:
    r"""E[busiest rank's load / mean] where experts lie on ranks in their order, physical expert i being expert i mod E.

    .. math:: E\left[\max_g \sum_{i \in g} p_{i \bmod E} / r_{i \bmod E}\right] G, \quad \log p \sim N(0, \sigma^2)

    r : replicas of an expert; a token picks an expert once, so p = (1 - exp(-c w)) / top_k of popularity w, as in
    `expected_active_experts`. Averaged over DRAWS seeded draws.
    One sigma of 1.07 gives 1.35 and 1.68 at 8 and 16 GPUs, where LMSYS published 1.49 and 1.63 without EPLB, and at EP72 3.8,
    where the published fall of throughput needs 4.3 (docs/models/balance.md).
    """

    def distinct(g: Floats, n: Floats) -> Floats:
        return as_floats([_in_order(int(x), int(y), experts, top_k, sigma) for x, y in zip(g, n, strict=True)])

    return as_floats(evaluate_distinct(distinct, ranks, slots)).reshape(np.broadcast(ranks, slots).shape)


@functools.cache
def _in_order(ranks: int, slots: int, experts: int, top_k: int, sigma: float) -> float:
    if ranks <= 1 or sigma == 0:
        return 1.0
    loads = _drawn_shares(experts, top_k, sigma)
    expert = np.arange(slots) % experts
    placed = (loads / np.bincount(expert, minlength=experts))[:, expert]
    edges = np.linspace(0, slots, ranks + 1)[:-1].astype(np.int64)  # ranks hold whole experts, of as near as can be equal number
    busiest = np.add.reduceat(placed, edges, axis=1).max(axis=1)
    return float(busiest.mean()) * ranks


@functools.cache
def _drawn_shares(experts: int, top_k: int, sigma: float) -> Floats:
    """Shares of the picks that experts get, (DRAWS, experts); not to be written to."""
    weights = np.exp(sigma * np.random.default_rng(0).standard_normal((DRAWS, experts)))
    weights = weights / weights.mean(axis=1, keepdims=True)
    shares = as_floats(-np.expm1(-_pace(weights, min(top_k / experts, 1 - 1e-9)) * weights) / top_k)
    shares.flags.writeable = False
    return shares


def combined_max_over_mean(*ratios: ArrayLike) -> Floats:
    """Independent causes of imbalance add in quadrature of their excess: 1 + sqrt(sum (r-1)^2)."""
    excess = sum((as_floats(ratio) - 1) ** 2 for ratio in ratios)
    return as_floats(1 + np.sqrt(excess))


@functools.cache
def popularity_quantiles(sigma: float, points: int = POPULARITY_POINTS) -> Floats:
    """Relative popularity of experts, log-normal with mean 1, at equally probable quantiles, (points,); not to be written to."""
    z = normal_quantile((np.arange(points) + 0.5) / points)
    weights = np.exp(sigma * z)
    popularity = as_floats(weights / weights.mean())
    popularity.flags.writeable = False
    return popularity


def expected_active_experts(tokens: ArrayLike, share: ArrayLike, experts: int, top_k: int, sigma: float = 0.0) -> Floats:
    r"""Share of experts that get at least one of `tokens` tokens, times share (experts on the rank).

    Expert i is picked by a token with probability q_i = 1 - exp(-c w_i), w_i its popularity and c such that
    sum q_i = top_k; it stays idle with (1 - q_i)^T. Popular experts are hit again and again, so skewed
    routing reads fewer weights: at 48 tokens 61 % of what uniform routing reads (measured DeepSeek-R1
    loads, sigma 1.57: docs/models/balance.md).

    tokens : routed in the whole group; share : experts on the rank. Returns experts.
    """
    paces = -_pick_pace(sigma, min(top_k / experts, 1 - 1e-9)) * popularity_quantiles(sigma)

    def distinct(many: Floats) -> Floats:
        exponents = np.multiply.outer(many, paces)
        return as_floats(np.exp(exponents, out=exponents).mean(axis=-1))

    idle = evaluate_distinct(distinct, np.ravel(as_floats(tokens))).reshape(np.shape(tokens))
    return as_floats(as_floats(share) * (1 - idle))


def active_experts_slope(tokens: ArrayLike, share: ArrayLike, experts: int, top_k: int, sigma: float = 0.0) -> Floats:
    """What one more token adds to `expected_active_experts`."""
    paces = _pick_pace(sigma, min(top_k / experts, 1 - 1e-9)) * popularity_quantiles(sigma)

    def distinct(many: Floats) -> Floats:
        return as_floats((paces * np.exp(-np.multiply.outer(many, paces))).mean(axis=-1))

    found = evaluate_distinct(distinct, np.ravel(as_floats(tokens))).reshape(np.shape(tokens))
    return as_floats(as_floats(share) * found)


def busiest_active_experts(active: ArrayLike, local_experts: ArrayLike, ranks: ArrayLike, lumps: ArrayLike = 0.0) -> Floats:
    r"""Active experts of the rank that has most of them, of `ranks` ranks.

    .. math:: \min\left(E, A + z(G) \sqrt{A (1 - A / E) + l}\right)

    active : A, mean over ranks; local_experts : E of each. Whether an expert gets a token at all is a Bernoulli trial, however
    unequal experts are; z is Blom's expected maximum of G normals. All ranks wait for the one that reads most weights.
    lumps : l, variance that choosing groups first adds (`lumped_variance`).
    Within 4 % of simulation from one token per rank on, 6 % with groups (tests).
    """
    mean, slots, groups = (as_floats(x) for x in np.broadcast_arrays(active, local_experts, ranks))
    spread = np.sqrt(np.maximum(mean * (1 - mean / np.maximum(slots, 1e-12)) + as_floats(lumps), 0.0))
    return as_floats(np.where(groups > 1, np.minimum(mean + blom_quantile(groups) * spread, slots), mean))


def lumped_variance(
    tokens: ArrayLike, slope: ArrayLike, ranks: ArrayLike, experts: int, top_k: int, groups: int, top_k_groups: int
) -> Floats:
    """What groups that a token chooses first add to the variance of a rank's active experts: to the variance of its picks, times
    the square of what one more pick adds.

    slope : `active_experts_slope` of the rank.
    """
    added = picks_variance(ranks, experts, top_k, groups, top_k_groups) - picks_variance(ranks, experts, top_k)
    return as_floats(as_floats(tokens) * np.maximum(added, 0.0) * (as_floats(slope) * as_floats(ranks) / top_k) ** 2)


@functools.cache
def _pick_pace(sigma: float, mean_probability: float) -> float:
    """c with mean(1 - exp(-c w)) = mean_probability over the quantiles of popularity."""
    return float(_pace(popularity_quantiles(sigma)[None, :], mean_probability)[0, 0])


def _pace(weights: Floats, mean_probability: float) -> Floats:
    """The same for each row of weights, (rows, 1), by Newton's method from below (concave, monotone)."""
    pace = np.full((len(weights), 1), mean_probability)
    for _ in range(NEWTON_STEPS):
        idle_less_one = np.expm1(-pace * weights)
        value = -idle_less_one.mean(axis=1, keepdims=True) - mean_probability
        change = value / (weights * (1 + idle_less_one)).mean(axis=1, keepdims=True)
        pace = pace - change
        if np.all(np.abs(change) <= NEWTON_SETTLED * pace):
            break
    return pace


def expected_tiles(tokens_per_expert: ArrayLike, tile_tokens: float) -> Floats:
    """E[ceil(n / tile)] for a Poisson number n of tokens with the given mean.

    Sum over j of P(n > j tile); the normal tail is replaced by a logistic one (|error| < 0.01), which
    needs no special function. Once the spread passes half a tile the remainder is uniform, and the
    expectation is mean/tile + (1 - 1/tile)/2 (what oscillates about it is below 0.3 % of a tile).
    """
    mean = np.atleast_1d(as_floats(tokens_per_expert))
    spread = np.sqrt(np.maximum(mean, 1e-12))
    smooth = spread > tile_tokens / 2
    reached = np.where(smooth, 0, np.ceil((mean + 6 * spread) / tile_tokens))  # per element: none depends on its neighbours
    tiles = -np.expm1(-mean)
    for j in range(1, int(np.max(reached, initial=0.0)) + 1):
        those = reached >= j
        margin = np.clip((mean[those] - j * tile_tokens - 0.5) / spread[those], -40.0, 40.0)
        tiles[those] += 1 / (1 + np.exp(-1.702 * margin))
    tiles = np.where(smooth, mean / tile_tokens + (1 - 1 / tile_tokens) / 2, tiles)
    return tiles.reshape(np.shape(tokens_per_expert))

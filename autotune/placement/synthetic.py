"""Synthetic expert loads for who has recorded none, and the two numbers that describe recorded ones."""

from __future__ import annotations

import numpy as np

from autotune.errors import ProblemError
from autotune.placement.loads import Choices, Loads
from cost_models.arrays import as_floats, quantile_of
from cost_models.specs.model import ModelSpec

TOKENS = 1_000_000
MAX_SPREAD = 8.0
"""Beyond it the experts on the average carry nothing: one in 3,000 has 10^12 times the load of the median one."""
CAPPING_ROUNDS = 20


def synthetic_loads(model: ModelSpec, spread: float, workloads: int = 1, apart: float = 0.0, seed: int = 0) -> Loads:
    """Log-normal loads: what experts have in common over workloads, and what sets workloads apart.

    spread, apart : standard deviations of log load over experts, and of the log ratio of two workloads. No expert gets
    more than one choice of every token. Recorded DeepSeek-R1 loads have a spread of 1.7 in the median layer.
    """
    if model.moe is None:
        raise ProblemError(f"{model.name} has no experts to place")
    if not (0 <= spread <= MAX_SPREAD and 0 <= apart <= MAX_SPREAD):
        raise ProblemError(f"synthetic loads have a spread between 0 and {MAX_SPREAD:g}, not {spread:g} ({apart:g} apart)")
    own = apart / np.sqrt(2.0)
    if own > spread:
        raise ProblemError(
            f"workloads {apart:g} apart cannot have a spread of {spread:g} only; at most {spread * np.sqrt(2):.2f}"
        )
    rng = np.random.default_rng(seed)
    shape = (model.moe_layers, model.moe.experts)
    common = rng.normal(0, np.sqrt(spread**2 - own**2), shape)
    shares = np.exp(common + rng.normal(0, own, (workloads, *shape)))
    for _ in range(CAPPING_ROUNDS):
        shares = np.minimum(shares / shares.sum(axis=2, keepdims=True), 1 / model.moe.top_k)
    names = tuple(f"synthetic {i + 1}" for i in range(workloads))
    return Loads(names, as_floats(np.rint(shares * TOKENS * model.moe.top_k) + 1))


def synthetic_choices(model: ModelSpec, tokens: int, communities: int, together: float, spread: float, seed: int = 0) -> Choices:
    """Tokens with a topic: a community of experts from which each choice comes with probability `together`, else from all.

    spread : standard deviation of log popularity inside a community. Experts of a community are scattered over all numbers,
    differently in every layer. Raises ProblemError where communities do not divide the experts or are smaller than a token's.
    """
    if model.moe is None:
        raise ProblemError(f"{model.name} has no experts to place")
    experts, top_k = model.moe.experts, model.moe.top_k
    if experts % communities or experts // communities < top_k:
        raise ProblemError(f"{communities} communities of {experts} experts cannot hold the {top_k} choices of a token each")
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(model.moe_layers):
        community = rng.permutation(experts) % communities
        weight = rng.normal(0, spread, experts)
        topic = rng.integers(communities, size=tokens)
        own = np.log(together * communities + (1 - together)) * (community[None] == topic[:, None])
        own = own + np.log(max(1 - together, 1e-9)) * (community[None] != topic[:, None])
        noisy = weight + own + rng.gumbel(size=(tokens, experts))
        layers.append(np.argpartition(-noisy, top_k, axis=1)[:, :top_k])
    return Choices(np.stack(layers))


def described_drift(loads: Loads) -> tuple[float, float]:
    """(spread, apart) of recorded loads, medians over layers; the inverse of `synthetic_loads`."""
    logs = np.log(loads.counts + 1)
    spread = quantile_of(logs.std(axis=2), 0.5)
    if len(loads.names) < 2:
        return spread, 0.0
    shares = logs - logs.mean(axis=2, keepdims=True)
    ratios = [(shares[i] - shares[j]).std(axis=1) for i in range(len(shares)) for j in range(i)]
    return spread, quantile_of(ratios, 0.5)

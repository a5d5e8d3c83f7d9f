"""How long choosing a fleet takes, and how near to the optimum the answer is proved: 5 models, 3 clusters, 2,000 GPUs.

The services are made up (each size carries a random rate per GPU), so that this measures the solver and not the sweep before it.
Every seed is another fleet. `python benchmarks/fleets.py`; its gap is that of both questions, the worse.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from autotune.documents.fleet import Cluster, FleetModel, FleetProblem
from autotune.documents.sweep import Found
from autotune.fleets.allocating import Fleet, allocate, growth
from autotune.fleets.options import FleetOption, Site, asked_of

SEEDS = 10
MODELS = 5
CLUSTERS = (
    Cluster(name="gb200", hardware="gb200-nvl72", racks=5, most_racks=10, rack_usd=3.9e6, gpu_hour_usd=10.5),
    Cluster(name="b200", hardware="hgx-b200", rack_gpus=32, racks=10, most_racks=20, rack_usd=1.9e6, gpu_hour_usd=7.2),
    Cluster(name="h200", hardware="hgx-h200", rack_gpus=32, racks=20, gpu_hour_usd=3.6),
)
"""720, 640 and 640 GPUs with those for sale: 2,000."""
PER_GPU_PER_S = {"gb200": 2.0, "b200": 1.4, "h200": 0.6}
"""Requests, of the middle model at its middle size."""
LOAD_OF_ALL = 0.75
"""The loads' share of what all GPUs carry where models share them alike and each runs its best size."""


def made_up(seed: int) -> Fleet:
    """A fleet whose services carry random rates, none at some sizes of some models."""
    rng = np.random.default_rng(seed)
    names = [f"model-{m}" for m in range(MODELS)]
    weight = dict(zip(names, rng.lognormal(0, 0.8, MODELS), strict=True))
    problem = FleetProblem(
        models=tuple(FleetModel(name=name, model="deepseek-v3", rate_per_s=1.0) for name in names), clusters=CLUSTERS, seed=seed
    )
    rates = {
        (a.model.name, a.site.cluster.name, a.gpus): _rate(rng, weight[a.model.name], a.site, a.gpus) for a in asked_of(problem)
    }
    loads = {name: _load(rates, name) for name in names}
    models = {m.name: m.model_copy(update={"rate_per_s": loads[m.name]}) for m in problem.models}
    problem = problem.model_copy(update={"models": tuple(models.values())})
    options = [
        FleetOption(models[a.model.name], a.site, a.gpus, Found(status="plan", requests_per_s=rate))
        for a in asked_of(problem)
        if (rate := rates[a.model.name, a.site.cluster.name, a.gpus])
    ]
    return Fleet(problem, tuple(Site.of(cluster) for cluster in CLUSTERS), tuple(options))


def _rate(rng: np.random.Generator, weight: float, site: Site, gpus: int) -> float:
    """Requests per second of a service; a model's weights do not fit the smallest sizes."""
    if gpus < 4 * weight:
        return 0.0
    return float(PER_GPU_PER_S[site.cluster.name] / weight * gpus * rng.uniform(0.6, 1.4))


def _load(rates: dict[tuple[str, str, int], float], name: str) -> float:
    best = (
        max(rate / gpus for (model, at, gpus), rate in rates.items() if (model, at) == (name, site.cluster.name)) * site.most_gpus
        for site in map(Site.of, CLUSTERS)
    )
    return LOAD_OF_ALL * sum(best) / MODELS


def main() -> None:
    """One line a seed, and the medians."""
    took, gaps = [], []
    for seed in range(SEEDS):
        f = made_up(seed)
        start = time.process_time()
        found = allocate(f)
        chose_s = time.process_time() - start
        if found is None:
            print(f"seed {seed}: {len(f.options)} services; proved that they cannot carry the loads, {chose_s:.1f} CPU s")
            continue
        racks = [site.cluster.racks + bought for site, bought in zip(f.sites, found.bought, strict=True)]
        for more in (None, *range(len(racks))):
            growth(f, [n + (s == more) for s, n in enumerate(racks)])
        all_s = time.process_time() - start
        gap = max(found.purchase.gap, found.running.gap)
        print(
            f"seed {seed}: {len(f.options)} services, {sum(found.replicas)} replicas, racks bought {found.bought}; gap {gap:.2%} "
            f"({found.purchase.status}, {found.running.status}); {chose_s:.1f} CPU s, {all_s:.1f} with the next rack"
        )
        took.append(all_s)
        gaps.append(gap)
    print(f"median {statistics.median(took):.1f} CPU s, most {max(took):.1f}; largest gap {max(gaps):.2%}; target 1% in 20 s")


if __name__ == "__main__":
    main()

"""Fleets: allocation against brute force, packing, what is missing, and one small fleet from its file to its folder."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import yaml

import autotune
from autotune.documents.fleet import Cluster, FleetModel, FleetProblem
from autotune.documents.sweep import Found
from autotune.errors import NoFeasiblePlan, ProblemError
from autotune.exporters import has_exporter
from autotune.fleets.allocating import Fleet, allocate, budget_needed, growth, racks_needed, unserved_milli
from autotune.fleets.folders import write_fleet
from autotune.fleets.options import Asked, FleetOption, Site, asked_of
from autotune.fleets.planning import _what_is_missing, fleet
from autotune.sweeping.executors import Serial
from cost_models.catalog import hardware_names
from cost_models.errors import AutotuneError

CLUSTERS = (
    {"name": "east", "hardware": "hgx-h200", "racks": 1, "most_racks": 3, "rack_usd": 300.0},
    {"name": "west", "hardware": "hgx-b200", "racks": 1, "most_racks": 2, "rack_usd": 500.0},
)


def fleet_of(rates: tuple[float, ...], carried: dict[tuple[int, str, int], float], **problem) -> Fleet:
    """rates : asked of each model; carried : (model, cluster, GPUs) -> requests/s of one service."""
    models = [FleetModel(name=f"m{i}", model="llama-3.1-70b", rate_per_s=rate) for i, rate in enumerate(rates)]
    asked = FleetProblem(**{"models": models, "clusters": CLUSTERS, **problem})
    sites = {cluster.name: Site.of(cluster) for cluster in asked.clusters}
    options = [
        FleetOption(models[m], sites[name], gpus, Found(status="plan", requests_per_s=rate))
        for (m, name, gpus), rate in carried.items()
    ]
    return Fleet(asked, tuple(sites.values()), tuple(options))


def brute_force(f: Fleet) -> tuple[int, int] | None:
    """(USD for racks, GPUs in use) of the cheapest racks and then the least GPUs, naively."""
    best = None
    sites = range(len(f.sites))
    for bought in itertools.product(*(range(site.cluster.for_sale + 1) for site in f.sites)):
        usd = sum(f.usd(s) * bought[s] for s in sites)
        if f.problem.budget_usd is not None and usd > f.problem.budget_usd:
            continue
        have = [site.rack_gpus * (site.cluster.racks + n) for site, n in zip(f.sites, bought, strict=True)]
        for replicas in itertools.product(*(range(have[f.sites.index(o.site)] // o.gpus + 1) for o in f.options)):
            used = [sum(o.gpus * n for o, n in zip(f.options, replicas, strict=True) if o.site == site) for site in f.sites]
            carried = [
                sum(o.rate_milli * n for o, n in zip(f.options, replicas, strict=True) if o.model == m) for m in f.problem.models
            ]
            enough = all(carried[m] >= f.demand_milli(m) for m in range(len(carried)))
            if enough and all(u <= h for u, h in zip(used, have, strict=True)):
                best = min(best or (10**9, 0), (usd, sum(used)))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_allocation_agrees_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    rates = tuple(float(rng.choice([2, 5, 9, 14])) for _ in range(2))
    sizes = [(m, name, gpus) for m in (0, 1) for name in ("east", "west") for gpus in (4, 8)]
    chosen = [sizes[i] for i in rng.choice(len(sizes), 5, replace=False)]
    carried = {key: float(rng.integers(5, 30)) / 10 * key[2] / 4 for key in chosen}
    budget = {"budget_usd": 600.0} if seed % 3 == 0 else {}
    f = fleet_of(rates, carried, **budget)
    expected, found = brute_force(f), allocate(f)
    if expected is None:
        assert found is None
        assert sum(unserved_milli(f)) > 0
        return
    assert found is not None
    assert (found.purchase.objective, found.running.objective) == expected
    assert found.purchase.gap == found.running.gap == 0


def test_two_thousand_gpus_of_three_clusters_are_shared_by_five_models_within_a_percent_of_the_bound():
    rng = np.random.default_rng(5)
    clusters = (
        {"name": "gb200", "hardware": "gb200-nvl72", "racks": 5, "most_racks": 10, "rack_usd": 3.9e6},
        {"name": "b200", "hardware": "hgx-b200", "rack_gpus": 32, "racks": 10, "most_racks": 20, "rack_usd": 1.9e6},
        {"name": "h200", "hardware": "hgx-h200", "rack_gpus": 32, "racks": 20},
    )
    speed = {"gb200": 2.0, "b200": 1.4, "h200": 0.6}
    sizes = {one["name"]: Site.of(Cluster(**one)).sizes() for one in clusters}
    carried = {
        (m, name, gpus): per_gpu * gpus * rng.uniform(0.6, 1.4)
        for m in range(5)
        for name, per_gpu in speed.items()
        for gpus in sizes[name]
    }
    f = fleet_of((540.0, 600.0, 500.0, 580.0, 560.0), carried, clusters=clusters)
    assert sum(site.most_gpus for site in f.sites) == 2000
    found = allocate(f)
    assert sum(found.bought) > 0
    assert found.purchase.gap <= 0.01
    assert found.running.gap <= 0.01
    for m, model in enumerate(f.problem.models):
        assert sum(
            o.rate_milli * n for o, n in zip(f.options, found.replicas, strict=True) if o.model == model
        ) >= f.demand_milli(m)


QUESTIONS = [allocate, unserved_milli, budget_needed, lambda f: growth(f, [1, 1]), lambda f: racks_needed(f, 0, 1)]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_solver_that_runs_out_of_time_is_one_message(monkeypatch, question):
    def unknown(*_, **__):
        raise RuntimeError("CP-SAT stopped with UNKNOWN")

    monkeypatch.setattr("autotune.fleets.allocating.solved", unknown)
    with pytest.raises(
        ProblemError, match=r"1 services of 1 models on 2 clusters: within 8 s .* neither found .* fewer clusters"
    ):
        question(fleet_of((1.0,), {(0, "east", 8): 1.0}))


def test_growth_is_what_the_racks_carry_over_what_is_asked():
    # one kind of service: 2 requests/s on 4 GPUs; 8 GPUs carry 4, 16 carry 8, asked are 3
    f = fleet_of((3.0,), {(0, "east", 4): 2.0})
    assert growth(f, [1, 1]) == pytest.approx(4 / 3, abs=1e-3)
    assert growth(f, [2, 1]) == pytest.approx(8 / 3, abs=1e-3)


def test_what_is_missing_is_said_for_each_model_with_the_smallest_way_out():
    # 3 racks at most: 24 GPUs carry 12 requests/s of 20
    f = fleet_of((20.0,), {(0, "east", 4): 2.0})
    assert allocate(f) is None
    assert unserved_milli(f) == [8000]
    assert racks_needed(f, 0, 100) == 2  # 5 racks carry 20
    assert racks_needed(f, 1, 100) is None
    text = _what_is_missing(f)
    assert "m0: 8.0 of 20.0 requests/s (40%)" in text
    assert "2 more racks of east" in text


def test_a_budget_that_is_too_small_names_the_one_that_would_do():
    # 12 requests/s take 3 racks: 2 more of 300 USD
    f = fleet_of((12.0,), {(0, "east", 4): 2.0}, budget_usd=599.0)
    assert allocate(f) is None
    assert budget_needed(f) == 600
    assert "a budget of 600 instead of 599 USD" in _what_is_missing(f)


@pytest.mark.parametrize("name", hardware_names())
def test_services_of_all_sizes_fill_domains_without_gaps(name):
    # each part divides the next larger one, so largest first packs whatever fits by its sum
    site = Site.of(Cluster(name="c", hardware=name, racks=1))
    domain = site.hardware.scale_up.domain_gpus
    sizes = site.sizes()
    assert domain in sizes
    for small, large in itertools.pairwise(sizes):
        assert large % small == 0
    rng = np.random.default_rng(0)
    parts = [s for s in sizes if s <= domain]
    for _ in range(30):
        left, taken = domain * 2, []
        while left >= parts[0] and rng.random() < 0.95:
            size = int(rng.choice([p for p in parts if p <= left]))
            taken.append(size)
            left -= size
        free = [domain, domain]
        for size in sorted(taken, reverse=True):
            at = next(i for i, room in enumerate(free) if room >= size)
            free[at] -= size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clusters": [{"name": "a", "hardware": "hgx-h200"}]}, "no racks and none may be bought"),
        ({"clusters": [{"name": "a", "hardware": "hgx-h200", "most_racks": 2}]}, "rack_usd"),
        (
            {"clusters": [{"name": "a", "hardware": "hgx-h200", "racks": 3, "most_racks": 2, "rack_usd": 1}]},
            "less than the 3 racks",
        ),
        ({"clusters": [CLUSTERS[0], CLUSTERS[0]]}, "'east' stands twice"),
        ({"models": [{"name": "a", "model": "x", "rate_per_s": 1, "clusters": ["north"]}]}, "'north', which is no cluster"),
        ({"clusters": [{**CLUSTERS[0], "gpu_hour_usd": 2.0}, CLUSTERS[1]]}, "all have a price"),
        ({"clusters": [{**CLUSTERS[0], "rack_gpus": 12}]}, "no whole scale-up domains of 8 GPUs"),
        ({"clusters": [{**CLUSTERS[0], "hardware": "hgx-h2oo"}]}, "unknown hardware 'hgx-h2oo'"),
        ({"models": []}, "models"),
    ],
)
def test_bad_fleets_are_one_message(change, message):
    document = {"models": [{"name": "a", "model": "llama-3.1-70b", "rate_per_s": 1}], "clusters": list(CLUSTERS), **change}
    with pytest.raises(AutotuneError, match=message):
        fleet(document, executor=Serial())


def test_a_bad_model_says_which_service_asked_for_it():
    document = {"models": [{"name": "a", "model": "nosuch", "rate_per_s": 1}], "clusters": [{**CLUSTERS[0], "most_racks": 1}]}
    with pytest.raises(ProblemError, match="a on east, 1 GPUs: unknown model 'nosuch'"):
        fleet(document, executor=Serial())


def test_services_are_asked_for_as_much_as_their_limits_allow():
    asked = asked_of(FleetProblem(models=[FleetModel(name="a", model="m", rate_per_s=1, ttft_p99_limit_s=2)], clusters=CLUSTERS))
    assert [(one.site.cluster.name, one.gpus) for one in asked] == [
        *(("east", n) for n in (1, 2, 4, 8, 16)), *(("west", n) for n in (1, 2, 4, 8, 16)),
    ]  # fmt: skip
    assert isinstance(asked[0], Asked)
    problem = autotune.Problem.model_validate(asked[0].problem())
    assert (problem.target, problem.load, problem.ttft_p99_limit_s) == ("serve", None, 2)


SMALL = {
    "models": [{"name": "chat", "model": "llama-3.1-70b", "rate_per_s": 20, "workload": {"isl_tokens": 500, "osl_tokens": 100}}],
    "clusters": [{"name": "east", "hardware": "hgx-h200", "racks": 1}],
}


@pytest.mark.slow
def test_a_small_fleet_from_its_problem_to_its_folder(tmp_path):
    result = autotune.fleet(SMALL, tmp_path, executor=Serial())
    assert sum(p.replicas * p.share_per_s_each for p in result.placements) == pytest.approx(20)
    assert all(p.share_per_s_each <= p.requests_per_s_each for p in result.placements)
    assert result.clusters[0].used_gpus <= 8
    assert result.growth >= 1
    assert result.next_racks[0].growth > result.growth
    assert result.running.gap == 0
    write_fleet(tmp_path, result)
    again = autotune.FleetResult.model_validate(yaml.safe_load((tmp_path / "fleet.yaml").read_text()))
    assert again == result
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    deployment = autotune.Deployment.model_validate(yaml.safe_load((folder / "deployment.yaml").read_text()))
    assert has_exporter(deployment.engine.name)
    assert any(path.suffix == ".sh" for path in folder.iterdir())
    prediction = autotune.predict_service(deployment)
    assert prediction.requests_per_s == pytest.approx(result.placements[0].share_per_s_each, rel=0.02)
    assert not prediction.overloaded


@pytest.mark.slow
def test_a_model_that_no_cluster_serves_says_why(tmp_path):
    document = {**SMALL, "models": [{**SMALL["models"][0], "tpot_limit_s": 0.0005}]}
    with pytest.raises(NoFeasiblePlan, match=r"chat \(20 requests/s\) meets its limits on no cluster"):
        autotune.fleet(document, tmp_path, executor=Serial())

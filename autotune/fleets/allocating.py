"""How many of which services run where, and how many racks are bought: CP-SAT over swept services.

Two questions one after the other, each with its proof: the cheapest racks that serve all loads, then the cheapest use of them.
Everything is an integer: what a service carries is rounded down, what is asked up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autotune.cp_sat import load_cp_model
from autotune.documents.fleet import FleetProblem
from autotune.errors import ProblemError
from autotune.fleets.options import MILLI, FleetOption, Site
from autotune.layouts.select import ModelAnswer, Named, Proof, solved

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

TIME_LIMIT_S = 8.0
"""Of each question."""
CENTS = 100
MOST_GROWTH = 100 * MILLI


@dataclass(frozen=True, slots=True)
class Fleet:
    """Everything the models compare."""

    problem: FleetProblem
    sites: tuple[Site, ...]
    options: tuple[FleetOption, ...]

    def demand_milli(self, model: int) -> int:
        """Requests asked of a model [mHz], rounded up."""
        return math.ceil(self.problem.models[model].rate_per_s * MILLI)

    def usd(self, site: int) -> int:
        """Price of a rack, rounded up."""
        return math.ceil(self.sites[site].cluster.rack_usd or 0)


@dataclass(frozen=True, slots=True)
class Allocation:
    """Replicas of every option, racks bought of every site, and what was proved."""

    replicas: tuple[int, ...]
    bought: tuple[int, ...]
    purchase: Proof
    running: Proof


class FleetVariables:
    """replicas[o] of every option; bought[s] racks of every site, at most `for_sale`."""

    def __init__(self, model: cp_model.CpModel, fleet: Fleet, for_sale: Sequence[int]) -> None:
        self.fleet = fleet
        self.bought = [model.new_int_var(0, most, f"bought[{s}]") for s, most in enumerate(for_sale)]
        self.replicas = [
            model.new_int_var(0, self._most(option, for_sale), f"replicas[{o}]") for o, option in enumerate(fleet.options)
        ]

    def _most(self, option: FleetOption, for_sale: Sequence[int]) -> int:
        at = [site.cluster.name for site in self.fleet.sites].index(option.site.cluster.name)
        return option.site.rack_gpus * (option.site.cluster.racks + for_sale[at]) // option.gpus

    def of_model(self, model: int) -> Any:
        """What a model's services carry [mHz]."""
        name = self.fleet.problem.models[model].name
        return sum(o.rate_milli * n for o, n in zip(self.fleet.options, self.replicas, strict=True) if o.model.name == name)

    def gpus(self, site: int) -> Any:
        """In use at a site."""
        here = self.fleet.sites[site].cluster.name
        return sum(o.gpus * n for o, n in zip(self.fleet.options, self.replicas, strict=True) if o.site.cluster.name == here)

    def purchase(self) -> Any:
        """Price of the racks bought [USD]."""
        return sum(self.fleet.usd(s) * n for s, n in enumerate(self.bought))

    def running(self) -> Any:
        """Cents an hour of the GPUs in use, or their number."""
        prices = [max(round((site.cluster.gpu_hour_usd or 1 / CENTS) * CENTS), 1) for site in self.fleet.sites]
        return sum(price * self.gpus(s) for s, price in enumerate(prices))


def gpus_are_there(fleet: Fleet, v: FleetVariables) -> Iterable[Named]:
    """Services fit the racks of their cluster, those that are there and those bought."""
    for s, site in enumerate(fleet.sites):
        yield f"gpus_are_there[{site.cluster.name}]", v.gpus(s) <= site.rack_gpus * (site.cluster.racks + v.bought[s])


def loads_are_served(fleet: Fleet, v: FleetVariables) -> Iterable[Named]:
    """Services of every model carry its load."""
    for m, model in enumerate(fleet.problem.models):
        yield f"loads_are_served[{model.name}]", v.of_model(m) >= fleet.demand_milli(m)


def within_budget(fleet: Fleet, v: FleetVariables) -> Iterable[Named]:
    """The racks bought cost no more than there is to spend."""
    if fleet.problem.budget_usd is not None:
        yield "within_budget", v.purchase() <= math.floor(fleet.problem.budget_usd)


FAMILIES = (gpus_are_there, loads_are_served, within_budget)


def _answer(model: cp_model.CpModel, fleet: Fleet) -> ModelAnswer | None:
    """As `solved`; raises ProblemError where time runs out with neither an answer nor a proof that there is none."""
    try:
        return solved(model, fleet.problem.seed, TIME_LIMIT_S, linear=True)
    except RuntimeError as error:
        raise ProblemError(
            f"{len(fleet.options)} services of {len(fleet.problem.models)} models on {len(fleet.sites)} clusters: within "
            f"{TIME_LIMIT_S:g} s the solver neither found a fleet nor proved that there is none; let each model run on fewer "
            "clusters, or plan them apart"
        ) from error


def allocate(fleet: Fleet) -> Allocation | None:
    """The cheapest racks, and the cheapest use of them; None when CP-SAT proves that the loads cannot be served."""
    for_sale = [site.cluster.for_sale for site in fleet.sites]
    model, v = _model(fleet, FAMILIES, for_sale)
    model.minimize(v.purchase())
    if (answer := _answer(model, fleet)) is None:
        return None
    solver, purchase = answer
    spent = sum(fleet.usd(s) * solver.value(n) for s, n in enumerate(v.bought))
    first = [solver.value(n) for n in (*v.bought, *v.replicas)]
    model, v = _model(fleet, FAMILIES, for_sale)
    for variable, value in zip((*v.bought, *v.replicas), first, strict=True):
        model.add_hint(variable, value)  # satisfies all: where time runs out there is an answer
    model.add(v.purchase() <= spent).with_name("cheapest_racks")
    model.minimize(v.running())
    answer = _answer(model, fleet)
    assert answer is not None  # the hint satisfies it
    solver, running = answer
    return Allocation(tuple(map(solver.value, v.replicas)), tuple(map(solver.value, v.bought)), purchase, running)


def growth(fleet: Fleet, racks: Sequence[int]) -> float:
    """How many times larger all loads could be, served by so many racks of every site."""
    cp_model = load_cp_model()
    more = [count - site.cluster.racks for count, site in zip(racks, fleet.sites, strict=True)]
    model = cp_model.CpModel()
    v = FleetVariables(model, fleet, more)
    for name, constraint in gpus_are_there(fleet, v):
        model.add(constraint).with_name(name)
    times = model.new_int_var(0, MOST_GROWTH, "times")
    for m in range(len(fleet.problem.models)):
        model.add(v.of_model(m) * MILLI >= fleet.demand_milli(m) * times)
    model.maximize(times)
    answer = _answer(model, fleet)
    return answer[1].objective / MILLI if answer else 0.0


def unserved_milli(fleet: Fleet) -> list[int]:
    """Requests of every model that stay unserved when as large a share of all loads as possible is served [mHz]."""
    cp_model = load_cp_model()
    model = cp_model.CpModel()
    v = FleetVariables(model, fleet, [site.cluster.for_sale for site in fleet.sites])
    for family in (gpus_are_there, within_budget):
        for name, constraint in family(fleet, v):
            model.add(constraint).with_name(name)
    demands = [fleet.demand_milli(m) for m in range(len(fleet.problem.models))]
    missing = [model.new_int_var(0, demand, f"missing[{m}]") for m, demand in enumerate(demands)]
    for m, demand in enumerate(demands):
        model.add(v.of_model(m) + missing[m] >= demand)
    model.minimize(sum(max(round(10**6 / demand * MILLI), 1) * part for demand, part in zip(demands, missing, strict=True)))
    answer = _answer(model, fleet)
    assert answer is not None  # serving nothing satisfies it
    return [int(answer[0].value(part)) for part in missing]


def budget_needed(fleet: Fleet) -> float | None:
    """What the racks would cost that serve all loads, were there the money; None when those for sale are too few."""
    model, v = _model(fleet, (gpus_are_there, loads_are_served), [site.cluster.for_sale for site in fleet.sites])
    model.minimize(v.purchase())
    answer = _answer(model, fleet)
    return answer[1].objective if answer else None


def racks_needed(fleet: Fleet, site: int, most: int) -> int | None:
    """Racks of one site, beyond all that there may be, that would serve all loads; None when `most` would not."""
    for_sale = [one.cluster.for_sale for one in fleet.sites]
    for_sale[site] += most
    model, v = _model(fleet, (gpus_are_there, loads_are_served), for_sale)
    model.minimize(v.bought[site])
    answer = _answer(model, fleet)
    return None if answer is None else max(int(answer[1].objective) - fleet.sites[site].cluster.for_sale, 0)


def _model(fleet: Fleet, families: Iterable[Any], for_sale: Sequence[int]) -> tuple[cp_model.CpModel, FleetVariables]:
    cp_model = load_cp_model()
    model = cp_model.CpModel()
    v = FleetVariables(model, fleet, for_sale)
    for family in families:
        for name, constraint in family(fleet, v):
            model.add(constraint).with_name(name)
    return model, v

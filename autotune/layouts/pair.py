"""CP-SAT selection of a prefill and a decode pool together: layouts, instance counts and request rate.

Requests per second are the common currency: the service takes what the slower pool takes. The largest ratio (requests per
GPU, or per dollar) is enumerated (`best_ratio.py`), exactly, since everything is an integer; among the pairs close to it
CP-SAT chooses the one that serves most.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from autotune.cp_sat import load_cp_model
from autotune.layouts.best_ratio import RateAndCost, best_ratio
from autotune.layouts.packing import Domains
from autotune.layouts.select import Named, Proof, solved
from cost_models.arrays import Ints

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

TIME_LIMIT_S = 10.0
MOST_ROUNDS = 60
SLACK_PER_MILLE = 30
"""Among pairs this close to the best ratio (3 %) the one that serves most is taken: idle GPUs serve nobody."""


@dataclass(frozen=True, slots=True)
class PairSide:
    """Candidate rows of one pool, (rows,) integers; a unit is `instances` engine instances."""

    size: Ints
    """GPUs of one instance."""
    instances: Ints
    """Instances of one unit: 1, or what a row was costed with."""
    most_units: Ints
    rate: Ints
    """Requests that a unit serves [mHz], rounded down."""
    transfer_rate: Ints
    """Requests whose KV cache a unit's links hand over [mHz], rounded down."""
    layout: Ints
    gpu_cost: int = 1
    """What one GPU costs, in any unit."""

    def __len__(self) -> int:
        return len(self.size)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pools to choose."""

    prefill: PairSide
    decode: PairSide
    budgets: tuple[int, int] | int
    """GPUs of each pool's own hardware, or of one that they share."""
    domains: Domains | None
    """Of shared hardware."""
    required_rate: int = 0
    """Requests that must be served [mHz]; more than that counts for nothing."""


@dataclass(frozen=True, slots=True)
class PairSelection(Proof):
    """The solver's answer and its proof."""

    rows: tuple[int, int]
    """Of prefill and decode."""
    instances: tuple[int, int]
    rate: int
    """[mHz]."""
    cost: int


class PairVariables:
    """chosen[s][r] : row r of side s runs; units[s][r] : how many units of it; rate : requests served."""

    def __init__(self, model: cp_model.CpModel, pair: Pair) -> None:
        self.sides = (pair.prefill, pair.decode)
        names = ("prefill", "decode")
        self.chosen = [
            [model.new_bool_var(f"{name}_chosen[{r}]") for r in range(len(s))] for name, s in zip(names, self.sides, strict=True)
        ]
        self.units = [
            [model.new_int_var(0, max(int(s.most_units[r]), 0), f"{name}_units[{r}]") for r in range(len(s))]
            for name, s in zip(names, self.sides, strict=True)
        ]
        most = min(int(np.max(s.rate * np.maximum(s.most_units, 0), initial=0)) for s in self.sides)
        self.rate = model.new_int_var(0, max(most, 0), "rate")

    def total(self, side: int, values: Ints) -> Any:
        """A value of each unit, summed."""
        return sum(int(v) * unit for v, unit in zip(values, self.units[side], strict=True))

    @property
    def cost(self) -> Any:
        return sum(s.gpu_cost * self.total(i, s.size * s.instances) for i, s in enumerate(self.sides))


def one_layout_each(_pair: Pair, v: PairVariables) -> Iterable[Named]:
    """Exactly one row of each pool is chosen, and only its units run."""
    for side, rows in enumerate(v.chosen):
        yield f"one_layout[{side}]", sum(rows) == 1
        for r, (chosen, units) in enumerate(zip(rows, v.units[side], strict=True)):
            most = max(int(v.sides[side].most_units[r]), 0)
            yield f"runs_only_if_chosen[{side},{r}]", units <= most * chosen
            yield f"chosen_runs[{side},{r}]", units >= chosen


def pair_gpu_budget(pair: Pair, v: PairVariables) -> Iterable[Named]:
    """Both pools fit the GPUs that they share, or each its own."""
    used = [v.total(i, s.size * s.instances) for i, s in enumerate(v.sides)]
    if isinstance(pair.budgets, int):
        yield "gpu_budget", used[0] + used[1] <= pair.budgets
        return
    for side, budget in enumerate(pair.budgets):
        yield f"gpu_budget[{side}]", used[side] <= budget


def rate_balance(_pair: Pair, v: PairVariables) -> Iterable[Named]:
    """The service takes no more requests than either pool."""
    for i, side in enumerate(v.sides):
        yield f"rate_balance[{i}]", v.rate <= v.total(i, side.rate)


def kv_transfer(_pair: Pair, v: PairVariables) -> Iterable[Named]:
    """Nor more than either pool's links hand over."""
    for i, side in enumerate(v.sides):
        yield f"kv_transfer[{i}]", v.rate <= v.total(i, side.transfer_rate)


def required_rate(pair: Pair, v: PairVariables) -> Iterable[Named]:
    """What must be served is served; serving more counts for nothing."""
    if pair.required_rate:
        yield "required_rate", v.rate == pair.required_rate


FAMILIES = (one_layout_each, pair_gpu_budget, rate_balance, kv_transfer, required_rate)
Goal = Literal["ratio", "total"]


class PairSolver:
    """A pair with the cuts found so far."""

    def __init__(self, pair: Pair, seed: int = 0) -> None:
        self.pair = pair
        self.seed = seed
        self.excluded: list[tuple[int, int]] = []
        """(prefill layout, decode layout) of pairs already returned."""
        self.packing_cuts: dict[tuple[int, int, int], int] = {}
        """(prefill size, prefill instances, decode size) -> most decode instances beside them."""

    def best(self, goal: Goal) -> PairSelection | None:
        """Best pair, or None when there is none; raises RuntimeError when the solver stops without an answer."""
        if not (len(self.pair.prefill) and len(self.pair.decode)):
            return None
        return self._solve(best_ratio(self.pair, self.excluded) if goal == "ratio" else None)

    def exclude(self, selection: PairSelection) -> None:
        """Never return its pair of layouts again."""
        prefill, decode = selection.rows
        self.excluded.append((int(self.pair.prefill.layout[prefill]), int(self.pair.decode.layout[decode])))

    def _solve(self, ratio: RateAndCost | None) -> PairSelection | None:
        """The largest rate (then less cost) close to a ratio, with packing cuts as they are found."""
        for _ in range(MOST_ROUNDS):
            selection = self._solve_once(ratio)
            if selection is None or self._packs(selection):
                return selection
        raise RuntimeError("no placement in scale-up domains found within the rounds allowed")

    def _solve_once(self, ratio: RateAndCost | None) -> PairSelection | None:
        cp_model = load_cp_model()
        model = cp_model.CpModel()
        v = PairVariables(model, self.pair)
        for family in FAMILIES:
            for name, constraint in family(self.pair, v):
                model.add(constraint).with_name(name)
        self._add_cuts(model, v)
        if ratio is not None:
            model.add(1000 * ratio.cost * v.rate >= (1000 - SLACK_PER_MILLE) * ratio.rate * v.cost).with_name("ratio")
        if self.pair.required_rate:  # of the cheapest the one with most room
            room = v.total(0, self.pair.prefill.rate) + v.total(1, self.pair.decode.rate)
            most = sum(int(np.max(s.rate * np.maximum(s.most_units, 0))) for s in v.sides) + 1
            model.maximize(room - most * v.cost)
        else:
            largest_cost = sum(s.gpu_cost * int(np.max(s.size * s.instances * np.maximum(s.most_units, 0))) for s in v.sides) + 1
            model.maximize(largest_cost * v.rate - v.cost)
        answer = solved(model, self.seed, TIME_LIMIT_S, presolve=False)
        if answer is None:
            return None
        solver, proof = answer
        rows = [next(r for r, chosen in enumerate(side) if solver.value(chosen)) for side in v.chosen]
        units = [solver.value(v.units[i][r]) for i, r in enumerate(rows)]
        return PairSelection(
            rows=(rows[0], rows[1]),
            instances=(
                units[0] * int(self.pair.prefill.instances[rows[0]]),
                units[1] * int(self.pair.decode.instances[rows[1]]),
            ),
            rate=solver.value(v.rate),
            cost=solver.value(v.cost),
            status=proof.status,
            objective=proof.objective,
            bound=proof.bound,
        )

    def _add_cuts(self, model: cp_model.CpModel, v: PairVariables) -> None:
        for prefill, decode in self.excluded:
            left = [c for c, layout in zip(v.chosen[0], self.pair.prefill.layout, strict=True) if layout == prefill]
            right = [c for c, layout in zip(v.chosen[1], self.pair.decode.layout, strict=True) if layout == decode]
            model.add(sum(left) + sum(right) <= 1).with_name(f"no_good[{prefill},{decode}]")
        for (prefill_size, count, decode_size), most in self.packing_cuts.items():
            sides = ((self.pair.prefill, prefill_size), (self.pair.decode, decode_size))
            placed = [v.total(i, np.where(side.size == size, side.instances, 0)) for i, (side, size) in enumerate(sides)]
            crowded = model.new_bool_var(f"crowded[{prefill_size},{count},{decode_size}]")
            model.add(placed[0] <= count - 1).only_enforce_if(~crowded)
            model.add(placed[1] <= most).only_enforce_if(crowded)

    def _packs(self, selection: PairSelection) -> bool:
        """Whether the instances lie in the domains; a cut is kept where they do not."""
        if self.pair.domains is None:
            return True
        sizes = [int(side.size[r]) for side, r in zip((self.pair.prefill, self.pair.decode), selection.rows, strict=True)]
        count, wanted = selection.instances
        most = self.pair.domains.most_beside(sizes[0], count, sizes[1])
        if most >= wanted:
            return True
        self.packing_cuts[(sizes[0], count, sizes[1])] = max(most, 0)
        return False

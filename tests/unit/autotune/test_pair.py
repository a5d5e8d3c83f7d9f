"""Two pools chosen together: packing and CP-SAT against brute force."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.layouts.best_ratio import best_ratio
from autotune.layouts.packing import Domains
from autotune.layouts.pair import SLACK_PER_MILLE, Pair, PairSide, PairSolver


def naive_most_beside(domains: Domains, first: int, count: int, second: int) -> int:
    """Try every way of giving domains to the two sizes."""
    whole, rest = divmod(domains.budget, domains.size)
    places = [domains.size] * whole + [rest]
    best = -1

    def place(position: int, left: int, beside: int, free: int) -> None:
        nonlocal best
        if position == len(places):
            if left <= 0:
                best = max(best, beside + (free * domains.size // second if second > domains.size else 0))
            return
        gpus = places[position]
        for a in range((gpus // first if first <= domains.size else 0) + 1):
            b = (gpus - a * first) // second if second <= domains.size else 0
            empty = a == 0 and second > domains.size and gpus == domains.size
            place(position + 1, left - a, beside + b, free + empty)

    if first > domains.size:
        taken = count * (first // domains.size)
        if taken > whole:
            return -1
        return naive_most_beside(Domains(domains.budget - taken * domains.size, domains.size), 1, 0, second)
    place(0, count, 0, 0)
    return best


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 30),
    st.sampled_from([4, 6, 8]),
    st.sampled_from([1, 2, 3, 4, 8, 16]),
    st.integers(0, 6),
    st.sampled_from([1, 2, 4, 8, 16]),
)
def test_packing_is_exact(budget, size, first, count, second):
    if (first > size and first % size) or (second > size and second % size):
        return
    domains = Domains(budget, size)
    found = domains.most_beside(first, count, second)
    assert max(found, -1) == naive_most_beside(domains, first, count, second)


def test_sixty_four_racks_pack_by_hand():
    # 72 = 24 + 48 = 3 x 24: with 64 instances of 48 GPUs one of 24 fits beside each, with 32 of them also three in the rest
    domains = Domains(64 * 72, 72)
    assert domains.most_beside(48, 64, 24) == 64
    assert domains.most_beside(48, 32, 24) == 32 + 3 * 32
    assert domains.most_beside(48, 65, 24) == -1


def random_pair(seed: int, required: int = 0) -> Pair:
    rng = np.random.default_rng(seed)

    def side() -> PairSide:
        rows = int(rng.integers(1, 5))
        size = rng.choice([1, 2, 4, 6, 8], rows)
        return PairSide(
            size=size,
            instances=np.ones(rows, dtype=np.int64),
            most_units=16 // 8 * (8 // size),
            rate=rng.integers(1, 60, rows) * size,
            transfer_rate=rng.integers(20, 400, rows) * size,
            layout=np.arange(rows),
        )

    return Pair(side(), side(), 16, Domains(16, 8), required)


def every_pair(pair: Pair):
    """(rate, cost, rows) of every combination that is allowed."""
    for p, d in itertools.product(range(len(pair.prefill)), range(len(pair.decode))):
        prefill_gpus, decode_gpus = int(pair.prefill.size[p]), int(pair.decode.size[d])
        beside = {
            n: pair.domains.most_beside(prefill_gpus, n, decode_gpus) for n in range(1, int(pair.prefill.most_units[p]) + 1)
        }
        for n, m in itertools.product(beside, range(1, int(pair.decode.most_units[d]) + 1)):
            cost = n * prefill_gpus + m * decode_gpus
            if beside[n] < m:
                continue
            sides = ((pair.prefill, p, n), (pair.decode, d, m))
            rate = min(min(int(s.rate[r]), 10**9) * k for s, r, k in sides)
            rate = min(rate, *(int(s.transfer_rate[r]) * k for s, r, k in sides))
            if pair.required_rate:
                if rate < pair.required_rate:
                    continue
                rate = pair.required_rate
            yield rate, cost, (p, d)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_the_most_requests_are_found(seed):
    pair = random_pair(seed)
    assert PairSolver(pair).best("total").rate == max(rate for rate, _, _ in every_pair(pair))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_the_best_ratio_is_found_and_then_the_largest_service(seed):
    pair = random_pair(seed)
    everything = list(every_pair(pair))
    best = max(Fraction(rate, cost) for rate, cost, _ in everything)
    close = best * Fraction(1000 - SLACK_PER_MILLE, 1000)
    found = PairSolver(pair).best("ratio")
    assert Fraction(found.rate, found.cost) >= close
    assert found.rate == max(rate for rate, cost, _ in everything if Fraction(rate, cost) >= close)
    assert found.gap == 0


def test_a_row_that_serves_less_than_the_resolution_is_in_no_pair():
    pair = random_pair(1, 40)
    idle = dataclasses.replace(pair.decode, rate=pair.decode.rate * [0, *[1] * (len(pair.decode) - 1)])
    found = best_ratio(dataclasses.replace(pair, decode=idle))
    ratios = [Fraction(rate, cost) for rate, cost, chosen in every_pair(pair) if chosen[1] != 0]
    assert (found and Fraction(found.rate, found.cost)) == max(ratios, default=None)
    nothing = dataclasses.replace(pair.decode, rate=pair.decode.rate * 0)
    assert best_ratio(dataclasses.replace(pair, decode=nothing)) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 0, 40, 200]))
def test_the_enumerated_ratio_is_the_best_of_all_that_are_not_excluded(seed, required):
    pair = random_pair(seed, required)
    out = (int(pair.prefill.layout[0]), int(pair.decode.layout[-1]))
    rows = (0, len(pair.decode) - 1)
    ratios = [Fraction(rate, cost) for rate, cost, chosen in every_pair(pair) if chosen != rows]
    found = best_ratio(pair, [out])
    assert (found is None) == (not ratios)
    if found:
        assert Fraction(found.rate, found.cost) == max(ratios)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, 6), st.sampled_from([1, 2, 4, 8, 16]))
def test_packing_beside_each_number_is_that_beside_every_one(budget, first, largest, second):
    domains = Domains(budget, 8)
    assert domains.most_beside_each(first, largest, second).tolist() == [
        domains.most_beside(first, count, second) for count in range(largest + 1)
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 400))
def test_what_must_be_served_is_served_at_least_cost(seed, required):
    pair = random_pair(seed, required)
    costs = [cost for _, cost, _ in every_pair(pair)]
    found = PairSolver(pair).best("total")
    assert (found is None) == (not costs)
    if found:
        assert (found.rate, found.cost) == (required, min(costs))


def test_excluded_layouts_do_not_come_back():
    solver = PairSolver(random_pair(3))
    seen = set()
    while found := solver.best("ratio"):
        assert found.rows not in seen
        seen.add(found.rows)
        solver.exclude(found)
    assert len(seen) == len(solver.pair.prefill) * len(solver.pair.decode)


@pytest.mark.parametrize(("budgets", "cost"), [((4, 8), 12), (12, 12)])
def test_pools_of_their_own_hardware_have_their_own_budget(budgets, cost):
    ones = np.array([1])
    side = PairSide(np.array([4]), ones, np.array([9]), np.array([100]), np.array([10**6]), ones)
    decode = PairSide(np.array([8]), ones, np.array([9]), np.array([100]), np.array([10**6]), ones)
    assert PairSolver(Pair(side, decode, budgets, None)).best("total").cost == cost

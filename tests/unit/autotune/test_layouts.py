"""Layout enumeration, pruning, selection against brute force, and explanations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autotune.documents.problem import Problem
from autotune.errors import NoFeasiblePlan
from autotune.layouts.enumerate import instance_sizes, layout_rows, redundancy_choices, shard_shapes
from autotune.layouts.explain import alternatives, clashing_families, explain_infeasible
from autotune.layouts.families import FAMILIES, Limits, excess, feasible
from autotune.layouts.phases import DECODE
from autotune.layouts.prune import prune
from autotune.layouts.select import Instance, Selection, instance_of, select_top
from autotune.layouts.table import LayoutTable, build_table, largest_within
from autotune.resolving import resolve_problem
from autotune.searching.pools import search
from cost_models.catalog import load_hardware, load_model
from cost_models.rows import Rows
from cost_models.specs.layout import Layout


def test_instances_are_parts_of_a_node_or_whole_nodes_inside_a_domain():
    assert instance_sizes(load_hardware("gb200-nvl72"), 16) == [1, 2, 4, 8, 12, 16]
    assert instance_sizes(load_hardware("hgx-h200"), 24) == [1, 2, 4, 8, 16, 24]


@pytest.mark.parametrize(("hw", "gpus"), [("gb200-nvl72", 72), ("hgx-h200", 32)])
def test_every_shape_is_valid_and_the_largest_size_is_tried(hw, gpus):
    model, hardware = load_model("deepseek-v3"), load_hardware(hw)
    found = list(shard_shapes(model, hardware, gpus))
    for shape in found:
        layout = Layout(tp=shape.tp, dp=shape.dp, ep=shape.ep, pp=shape.pp)
        assert layout.gpus <= gpus
        assert model.heads % shape.tp == 0
    assert max(s.tp * s.dp * s.pp for s in found) == gpus
    assert len(set(found)) == len(found)


def test_redundant_experts_make_ep_divide():
    assert redundancy_choices(256, 72, eplb=True) == [32]
    assert redundancy_choices(256, 48, eplb=True) == [32]
    assert redundancy_choices(256, 8, eplb=True) == [0, 32]
    assert redundancy_choices(256, 72, eplb=False) == []


def test_batch_grid_covers_four_sizes_an_octave():
    grid = DECODE.grid
    assert grid[0] == 1
    assert np.all(np.diff(grid) > 0)
    assert np.all(grid[1:] / grid[:-1] <= 2)


def test_backends_that_need_a_domain_stay_inside_it():
    resolved = resolve_problem(Problem(hardware="hgx-b200", gpus=16))
    rows = layout_rows(resolved)
    one_sided = rows.take(rows.backend == 4)
    assert one_sided.group.max() == 8


def synthetic_table(rng: np.random.Generator, size: int) -> LayoutTable:
    """Random rows over a few layouts; nothing physical about them."""
    gpus = rng.choice([1, 2, 4, 8], size)
    dp = np.minimum(gpus, rng.choice([1, 2, 4, 8], size))
    rows = Rows.of(tp=gpus // np.gcd(gpus, dp), dp=np.gcd(gpus, dp), ep=1, batch=rng.integers(1, 500, size))
    return LayoutTable(
        rows=rows,
        layout=rows.tp * 100 + rows.dp,
        latency_s=rng.uniform(0.01, 0.2, size),
        instance_tokens_per_s=rng.integers(100, 10_000, size).astype(float),
        instance_sequences=rows.batch * rows.dp,
        memory_bytes=rng.uniform(50e9, 120e9, size),
        max_instances=np.asarray(16 // rows.gpus),
    )


def brute_force(table: LayoutTable, limits: Limits, objective: str) -> tuple[int, int] | None:
    """Best (score, total tokens/s) over every row and every number of instances, naively."""
    i = instance_of(table, limits, objective)
    best = None
    for r in range(len(table)):
        for n in range(1, int(i.max_instances[r]) + 1):
            ok = (
                n * i.gpus[r] <= i.gpu_budget
                and i.memory_mib[r] <= i.memory_limit_mib
                and i.latency_us[r] <= i.latency_limit_us
                and n * i.sequences[r] >= i.required_sequences
                and n * i.tokens_per_s[r] >= i.required_tokens_per_s
            )
            if ok:
                best = max(best or (-(10**18), 0), (int(i.score[r]), int(n * i.tokens_per_s[r])))
    return best


def select(instance: Instance) -> Selection | None:
    """The best row."""
    return next(iter(select_top(instance, np.arange(len(instance)), 1)), None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 40),
    gpus=st.integers(1, 16),
    tpot_ms=st.integers(20, 200),
    sequences=st.sampled_from([0, 0, 100, 2000]),
    rate=st.sampled_from([0, 0, 5000, 40_000]),
    objective=st.sampled_from(["tokens_per_s_per_gpu", "tokens_per_s", "tpot"]),
)
def test_selection_agrees_with_brute_force_over_all_rows(seed, size, gpus, tpot_ms, sequences, rate, objective):
    table = synthetic_table(np.random.default_rng(seed), size)
    limits = Limits(gpus, 100e9, tpot_ms / 1e3, sequences, float(rate))
    expected = brute_force(table, limits, objective)
    # the pipeline: per-row limits, exact pruning, selection
    ok = np.flatnonzero((table.memory_bytes <= limits.memory_bytes) & (table.latency_s <= limits.latency_s))
    kept = table.take(ok)
    kept = kept.take(prune(kept, keep_layouts=1, sequences_matter=sequences > 0, latency_matters=objective == "tpot"))
    instance = instance_of(kept, limits, objective)
    found = select(instance)
    if expected is None:
        assert found is None
        return
    assert found is not None
    total = int(instance.tokens_per_s[found.row] * found.instances)
    assert (int(instance.score[found.row]), total) == expected
    assert found.gap == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 4), sequences=st.sampled_from([0, 400]))
def test_pruning_keeps_the_k_best_distinct_layouts(seed, k, sequences):
    table = synthetic_table(np.random.default_rng(seed), 60)
    limits = Limits(16, 1e12, 1.0, sequences, 0.0)

    def scores(t: LayoutTable) -> list[int]:
        instance = instance_of(t, limits, "tokens_per_s_per_gpu")
        return [int(instance.score[s.row]) for s in select_top(instance, t.layout, k)]

    kept = table.take(prune(table, keep_layouts=k, sequences_matter=sequences > 0, latency_matters=False))
    assert scores(kept) == scores(table)


def test_top_plans_have_distinct_layouts_in_falling_order(small_problem):
    table = build_table(small_problem)
    limits = Limits.of(small_problem)
    kept = table.take(feasible(table, limits))
    kept = kept.take(prune(kept, keep_layouts=3, sequences_matter=False, latency_matters=False))
    instance = instance_of(kept, limits, "tokens_per_s_per_gpu")
    found = select_top(instance, kept.layout, 3)
    assert len({int(kept.layout[s.row]) for s in found}) == 3
    scores = [int(instance.score[s.row]) for s in found]
    assert scores == sorted(scores, reverse=True)
    assert {s.status for s in found} == {"ENUMERATED"}


def test_the_second_pass_reaches_the_tpot_limit(small_problem):
    # without it the best batch would be one of four per octave
    table = build_table(small_problem)
    ok = table.take(feasible(table, Limits.of(small_problem)))
    assert ok.latency_s.max() > 0.99 * small_problem.problem.tpot_limit_s


def one_row(**changes) -> tuple[LayoutTable, Limits]:
    rows = Rows.of(tp=1, dp=4, ep=4, batch=10, backend=1)
    values = {
        "rows": rows,
        "layout": np.array([1]),
        "latency_s": np.array([0.05]),
        "instance_tokens_per_s": np.array([800.0]),
        "instance_sequences": np.array([40]),
        "memory_bytes": np.array([80e9]),
        "max_instances": np.array([2]),
    }
    limits = {"gpus": 8, "memory_bytes": 100e9, "latency_s": 0.1, "sequences": 60, "tokens_per_s": 1500.0}
    table_changes = {k: np.array([v]) for k, v in changes.items() if k in values}
    limit_changes = {k: v for k, v in changes.items() if k in limits and k not in values}
    return LayoutTable(**{**values, **table_changes}), Limits(**{**limits, **limit_changes})


VIOLATIONS = {
    "gpu_budget": {"gpus": 3, "max_instances": 0, "sequences": 0, "tokens_per_s": 0.0},
    "gpu_memory": {"memory_bytes": 120e9},
    "latency_limit": {"latency_s": 0.3},
    "concurrency": {"sequences": 81},
    "throughput": {"tokens_per_s": 1601.0},
}


def violated_table(name: str) -> tuple[LayoutTable, Limits]:
    changes = dict(VIOLATIONS[name])
    if name == "latency_limit":
        table, limits = one_row()
        return LayoutTable(
            **{f: getattr(table, f) for f in LayoutTable.__slots__ if f != "latency_s"}, latency_s=np.array([0.3])
        ), limits
    if name == "gpu_memory":
        table, limits = one_row()
        fields = {f: getattr(table, f) for f in LayoutTable.__slots__ if f != "memory_bytes"}
        return LayoutTable(**fields, memory_bytes=np.array([120e9])), limits
    return one_row(**changes)


def test_every_family_has_a_violation_case():
    assert set(VIOLATIONS) == {family.__name__ for family in FAMILIES}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_each_family_is_satisfied_and_violated_alone(name):
    table, limits = one_row()
    assert feasible(table, limits).all()
    assert select(instance_of(table, limits, "tokens_per_s")) is not None
    table, limits = violated_table(name)
    assert [f.__name__ for f in clashing_families(table, limits)] == [name]
    over = excess(table, limits)[0]
    assert (over > 0).tolist() == [f.__name__ == name for f in FAMILIES]
    assert select(instance_of(table, limits, "tokens_per_s")) is None


@pytest.mark.slow
def test_infeasible_memory_says_which_lines_and_what_fits():
    resolved = resolve_problem(Problem(hardware="hgx-h100"))
    text = explain_infeasible(resolved, build_table(resolved)).message()
    assert "gpu_memory cannot hold" in text
    assert "expert weights 81.8 GB" in text  # 653.9e9 B of FP8 experts over eight GPUs
    assert "16 GPUs" in text


def test_the_table_of_a_larger_budget_holds_that_of_a_smaller_one(small_problem):
    """Budgets bound the size and the number of instances, nothing of what one costs."""

    def rows_of(table):
        columns = (table.layout, table.rows.batch, table.rows.backend, table.latency_s, table.memory_bytes, table.max_instances)
        return sorted(zip(*(column.tolist() for column in columns), strict=True))

    within, own = build_table(small_problem, 8).within(small_problem, 4), build_table(small_problem, 4)
    assert len(within) == len(own) > 0
    assert np.allclose(rows_of(within), rows_of(own), rtol=1e-12)


SMALL = {"hardware": "hgx-b200", "model": "qwen3-30b-a3b", "gpus": 4, "trials": 0}


@pytest.mark.parametrize(
    ("changes", "family", "option"),
    [
        ({"min_concurrency": 10**6}, "concurrency", "concurrency "),
        ({"min_tokens_per_s": 1e9}, "throughput", "tokens/s"),
    ],
)
def test_infeasible_limits_name_the_family_the_shortage_and_the_way_out(changes, family, option):
    with pytest.raises(NoFeasiblePlan) as caught:
        search(Problem(**SMALL, **changes))
    text = str(caught.value)
    assert family in text
    assert option in text.split("Smallest changes that fit:")[1]
    assert caught.value.exit_code == 2


def test_a_suggested_tpot_limit_really_fits():
    with pytest.raises(NoFeasiblePlan, match="latency_limit") as caught:
        search(Problem(**SMALL, tpot_limit_s=0.001))
    suggested = float(str(caught.value).split("Smallest changes that fit:")[1].split("TPOT limit ")[1].split(" ms")[0])
    result = search(Problem(**SMALL, tpot_limit_s=suggested / 1e3))
    assert result.best.prediction.tpot_s <= suggested / 1e3


def test_losing_layouts_say_why(small_problem):
    table = build_table(small_problem)
    ok = np.flatnonzero(feasible(table, Limits.of(small_problem)))
    chosen = int(ok[np.argmax(table.tokens_per_s_per_gpu[ok])])
    others = {a.kind: a for a in alternatives(small_problem, table, chosen)}
    assert "copies of each KV cache" in others["TP attention, TP experts"].reason
    assert others["TP attention, TP experts"].tokens_per_s_per_gpu < table.tokens_per_s_per_gpu[chosen]


@given(st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 40)), min_size=1, max_size=6))
def test_the_largest_size_within_a_limit_is_that_of_trying_every_one(rows):
    # whatever a size needs beyond the one before it: nothing for long, or a lot at once
    most = np.array([min(highest, len(growth)) for growth, highest in rows])
    needs = [np.cumsum(growth) for growth, _ in rows]
    asked = []

    def used(which, size):
        asked.append(len(which))
        return np.array([float(needs[row][at - 1]) for row, at in zip(which, size, strict=True)])

    found = largest_within(used, 30.0, most)
    for row, highest in enumerate(most.tolist()):
        assert found[row] == max((n for n in range(1, highest + 1) if needs[row][n - 1] <= 30), default=1)
    assert len(asked) <= 2 + 3 * 6

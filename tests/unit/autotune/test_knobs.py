"""One table of settings: rows <-> pools without loss, and every column in it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.documents.deployment import ExpertBalance, Offload, Pool
from autotune.documents.knobs import COLUMNS, LAYOUT_COLUMNS, canonical, flag_columns, pool_rows, pool_settings, pool_values
from cost_models.dispatch import BACKENDS
from cost_models.overlap import OVERLAPS
from cost_models.rows import FLOAT_COLUMNS, UNLIMITED, Rows

RATIOS = st.one_of(st.just(np.nan), st.floats(1.0, 10.0))


@st.composite
def rows(draw) -> Rows:
    """One row with any value in any column that a pool may hold."""
    tp, dp, pp = draw(st.sampled_from([(1, 1, 1), (8, 1, 1), (2, 4, 1), (1, 16, 1), (4, 1, 4)]))
    ep = draw(st.sampled_from([1, tp * dp]))
    spread = dp > 1
    group = draw(st.integers(0, 8))
    return Rows.of(
        tp=tp,
        dp=dp,
        ep=ep,
        pp=pp,
        dcp=draw(st.sampled_from([n for n in (1, 2, 8) if tp % n == 0])),
        batch=draw(st.integers(1, 4096)),
        drafts=draw(st.integers(0, 3)),
        redundant_experts=draw(st.integers(0, 64)),
        backend=draw(st.integers(1, len(BACKENDS) - 1)) if spread else 0,
        overlap=draw(st.integers(0, len(OVERLAPS) - 1)),
        eplb=draw(st.integers(0, 1)),
        eplb_window_steps=draw(st.integers(1, 5000)),
        eplb_interval_steps=draw(st.integers(0, 5000)),
        eplb_async=draw(st.integers(0, 1)),
        moe_chunk_tokens=draw(st.integers(0, 1024)),
        activation_chunk_rows=draw(st.integers(0, 65536)),
        graph_tokens=draw(st.one_of(st.just(0), st.just(UNLIMITED), st.integers(1, 8192))),
        output_chunk=draw(st.one_of(st.just(UNLIMITED), st.integers(1, 4096))),
        api_servers=draw(st.integers(1, 16)),
        batched_tokens=draw(st.integers(0, 65536)),
        offload_group_size=group,
        offload_in_group=draw(st.integers(1, max(group, 1))),
        offload_prefetch_step=draw(st.integers(0, 3)),
        imbalance=draw(RATIOS),
        skew=draw(RATIOS),
        popularity=draw(st.one_of(st.just(np.nan), st.floats(0.0, 3.0))),
    )


def values(row: Rows) -> dict[str, float]:
    return {f.name: float(getattr(row, f.name)[0]) for f in dataclasses.fields(row)}


@pytest.mark.slow
@given(rows())
def test_a_row_comes_back_from_its_pool(row: Rows):
    pool = Pool(**pool_values(row, "decode"))
    assert values(pool_rows(pool)) == pytest.approx(values(canonical(row)), nan_ok=True)


@pytest.mark.slow
@given(rows())
def test_the_canonical_row_is_a_fixed_point_and_a_pool_comes_back_from_its_row(row: Rows):
    once = canonical(row)
    assert values(canonical(once)) == pytest.approx(values(once), nan_ok=True)
    pool = Pool(**pool_values(row, "decode"))
    assert Pool(**pool_values(pool_rows(pool), "decode")) == pool


def test_every_candidate_column_stands_in_the_table_once():
    names = [column.name for column in COLUMNS]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(Rows))
    assert {name for name in names if np.isnan(next(c for c in COLUMNS if c.name == name).default)} == set(FLOAT_COLUMNS)
    assert LAYOUT_COLUMNS[:4] == ("tp", "dp", "ep", "pp")


def test_a_prefill_step_has_no_batch_and_a_decode_step_no_offload():
    decode, prefill = ({column.name for column in flag_columns(step)} for step in ("decode", "prefill"))
    assert "batch" in decode - prefill
    assert "offload_group_size" in prefill - decode
    assert decode & prefill >= {"backend", "overlap", "eplb", "redundant_experts", "batched_tokens"}


def test_pools_say_what_rows_cannot_and_rows_cost_it_the_same():
    perfect = pool_rows(Pool(expert_balance=ExpertBalance(kind="perfect")))
    assert perfect.imbalance[0] == 1.0
    none = pool_rows(Pool(expert_balance=ExpertBalance(kind="none", window_steps=7, interval_steps=9)))
    assert (none.eplb_window_steps[0], none.eplb_interval_steps[0]) == (1000, 0)  # nothing is rebalanced


def test_a_graph_that_is_too_small_for_the_step_leaves_it_eager():
    # 300 sequences with one draft each are 600 tokens
    row = Rows.of(batch=300, drafts=1, graph_tokens=[599, 600])
    assert list(canonical(row).graph_tokens) == [599, UNLIMITED]
    small = Pool(**pool_values(row.take(np.array([0])), "decode"))
    assert (small.cuda_graph, small.cuda_graph_tokens) == (True, 599)


def test_outputs_of_an_api_process():
    # 2 ranks x 33 sequences over 4 processes: 66 / 4 = 16.5, the busiest has 17
    assert Rows.of(dp=2, batch=33, api_servers=[4, 0]).api_outputs.tolist() == [17, 0]


def test_engine_knobs_set_a_pool_only_where_their_switch_is_on():
    flags = {"enable_eplb": False, "eplb_window_steps": 100, "offload_group_size": 4, "offload_num_in_group": 2}
    assert pool_settings(flags) == {
        "expert_balance": {"kind": "none"},
        "offload": {"group_size": 4, "num_in_group": 2},
    }
    on = pool_settings({**flags, "enable_eplb": True, "offload_group_size": 0})
    assert on == {"expert_balance": {"kind": "eplb", "window_steps": 100}}


def test_offload_of_a_row():
    pool = Pool(**pool_values(Rows.of(offload_group_size=8, offload_in_group=2, graph_tokens=0), "prefill"))
    assert pool.offload == Offload(group_size=8, num_in_group=2, prefetch_step=1)
    assert pool.batch_per_dp_rank == 0

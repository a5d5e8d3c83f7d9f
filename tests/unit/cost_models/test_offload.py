"""Weight offload: which layers, what it frees, and the timeline replayed against a brute-force simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.offload import freed_bytes, offloaded_mask, prefetch_pass_s, zero_copy_pass_s


def test_the_last_layers_of_each_group_are_offloaded():
    assert offloaded_mask(61, 2, 1).sum() == 30
    assert offloaded_mask(6, 3, 2).tolist() == [False, True, True, False, True, True]


def test_the_prefetch_slots_stay_on_the_gpu():
    # four layers of 2 B leave, one slot of 2 B stays
    assert freed_bytes(np.full(6, 2.0), offloaded_mask(6, 3, 2), 1) == 6.0
    assert freed_bytes(np.full(6, 2.0), offloaded_mask(6, 3, 2), 4) == 0.0


def test_a_copy_shorter_than_the_layer_between_is_hidden():
    # the one slot refills while the layer in between (3 s) runs: copies of 3 s cost nothing, copies of 4 s cost 1 s each
    mask = offloaded_mask(8, 2, 1)
    assert prefetch_pass_s(np.full(8, 3.0), np.full(8, 3.0), mask, 1) == pytest.approx(24)
    assert prefetch_pass_s(np.full(8, 3.0), np.full(8, 4.0), mask, 1) == pytest.approx(24 + 4 * 1)


def test_when_copies_bind_a_pass_takes_all_copies():
    # 4 copies of 10 s on one stream
    mask = offloaded_mask(8, 2, 1)
    assert prefetch_pass_s(np.full(8, 1.0), np.full(8, 10.0), mask, 2) == pytest.approx(40)


def test_enough_slots_for_all_layers_never_copy():
    mask = offloaded_mask(8, 2, 1)
    assert prefetch_pass_s(np.full(8, 1.0), np.full(8, 100.0), mask, 4) == pytest.approx(8)


def test_zero_copy_takes_the_slower_of_link_and_compute_layer_by_layer():
    mask = offloaded_mask(4, 2, 1)
    assert zero_copy_pass_s(np.array([1.0, 1, 5, 5]), np.full(4, 2.0), mask) == pytest.approx(1 + 2 + 5 + 5)


def brute_force(compute, copies, mask, step, passes=6):
    """Event by event with explicit slots: a copy needs a free slot, the stream is in order, a layer needs its copy."""
    order = [i for i, taken in enumerate(mask) if taken]
    slots = min(step, len(order))
    resident = dict.fromkeys(range(slots), 0.0)  # offloaded index -> time its weights are there
    stream, now, starts = 0.0, 0.0, []
    for _ in range(passes):
        starts.append(now)
        for layer, time in enumerate(compute):
            if mask[layer]:
                j = order.index(layer)
                now = max(now, resident.pop(j))
                now += time
                following = (j + slots) % len(order)
                if slots < len(order):
                    stream = max(stream, now) + copies[order[following]]
                    resident[following] = stream
                else:
                    resident[j] = 0.0
            else:
                now += time
    return now - starts[-1]


@given(
    layers=st.integers(2, 24),
    group=st.integers(1, 6),
    taken=st.integers(1, 6),
    step=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
def test_replay_equals_brute_force(layers, group, taken, step, seed):
    rng = np.random.default_rng(seed)
    mask = offloaded_mask(layers, group, min(taken, group))
    compute, copies = rng.uniform(0.1, 2, layers), rng.uniform(0.0, 4, layers)
    # integers of passes: both start from resident slots, so compare a late pass
    expected = brute_force(compute, copies, mask, step) if mask.any() else compute.sum()
    replayed = prefetch_pass_s(compute, copies, mask, step)
    assert replayed == pytest.approx(expected, rel=1e-9) or replayed == pytest.approx(
        brute_force(compute, copies, mask, step, passes=4), rel=1e-9
    )
    assert replayed >= compute.sum() - 1e-9


@given(step=st.integers(1, 6), slow=st.floats(0.0, 5.0))
def test_more_slots_never_hurt_and_slower_links_never_help(step, slow):
    mask = offloaded_mask(12, 3, 1)
    compute = np.full(12, 1.0)
    time = prefetch_pass_s(compute, np.full(12, slow), mask, step)
    assert prefetch_pass_s(compute, np.full(12, slow), mask, step + 1) <= time + 1e-9
    assert prefetch_pass_s(compute, np.full(12, slow + 0.1), mask, step) >= time - 1e-9


def test_rows_are_replayed_independently():
    mask = offloaded_mask(6, 2, 1)
    compute = np.stack([np.full(6, 1.0), np.full(6, 3.0)], axis=1)
    both = prefetch_pass_s(compute, np.full((6, 2), 2.0), mask, 1)
    assert both.tolist() == [float(prefetch_pass_s(np.full(6, t), np.full(6, 2.0), mask, 1)) for t in (1.0, 3.0)]

"""Laws that every all-to-all backend obeys; a new one needs its file and its line in the registry, nothing here."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cost_models.all_to_all.base import AllToAll, BufferShape
from cost_models.all_to_all.registry import ALL_TO_ALL, BY_NAME
from cost_models.catalog import calibration_for
from cost_models.dispatch import BACKENDS, BackendName, DispatchCoefficients, transfer_bound_s, transfer_time_s, volumes
from cost_models.links import Links
from search_spaces.loader import engine_names, load_engine

NVL72, HGX = Links(72, 900e9, 50e9), Links(8, 450e9, 50e9)
MOVING = [backend for backend in ALL_TO_ALL if backend.name != "none"]
ROUTING = {"token_bytes": 7168.0, "top_k": 8, "groups": 8, "top_k_groups": 4, "contiguous": False}


@pytest.fixture(params=MOVING, ids=lambda backend: backend.name, scope="module")
def backend(request: pytest.FixtureRequest) -> AllToAll:
    return request.param


def moved_bytes(name: str, tokens: float, ranks: float, links: Links) -> float:
    moved = volumes(name, tokens, ranks, links=links, **ROUTING)
    return float(moved.scale_up_bytes + moved.scale_out_bytes)


def test_names_are_those_that_documents_take_in_the_order_of_their_codes():
    assert tuple(BY_NAME) == BACKENDS == get_args(BackendName)


def test_nothing_to_send_takes_nothing(backend):
    moved = volumes(backend.name, 0.0, 16, links=HGX, **ROUTING)
    c = DispatchCoefficients(start_s=1e-5, scale_up_efficiency=0.5)
    assert moved_bytes(backend.name, 0.0, 16, HGX) == 0
    assert transfer_time_s(moved, 16, 256, 1.0, links=HGX, coefficients=c) == 0


@given(tokens=st.integers(1, 4096), ranks=st.sampled_from((2, 4, 8, 16, 32, 64)))
@settings(max_examples=25, deadline=None)
def test_bytes_grow_with_tokens_and_stay_in_a_domain_that_holds_all_ranks(backend, tokens, ranks):
    assert moved_bytes(backend.name, 2 * tokens, ranks, NVL72) == pytest.approx(
        2 * moved_bytes(backend.name, tokens, ranks, NVL72)
    )
    assert volumes(backend.name, tokens, ranks, links=NVL72, **ROUTING).scale_out_bytes == 0


@given(tokens=st.integers(1, 4096), ranks=st.sampled_from((8, 16, 64)))
@settings(max_examples=25, deadline=None)
def test_no_more_is_moved_than_a_copy_for_every_expert_or_every_rank(backend, tokens, ranks):
    # gathering sends a token to every other rank; the others send it at most once for each of its eight experts, and once
    # more over a domain's own links where it comes in from another
    most = (ranks - 1) if backend.gathers else 2 * 8
    for links in (NVL72, HGX):
        assert moved_bytes(backend.name, tokens, ranks, links) <= most * tokens * 7168 * (2 if backend.gathers else 1)


def test_both_directions_are_calibrated_and_no_transfer_beats_the_links(backend):
    for direction in ("dispatch", "combine"):
        c = calibration_for("GB200", "vllm").get("dispatch", f"{backend.name}.{direction}", DispatchCoefficients)
        for tokens in (1, 64, 4096):
            moved = volumes(backend.name, tokens, 16, links=HGX, **ROUTING)
            time_s = transfer_time_s(moved, 16, 256, 1.0, links=HGX, coefficients=c)
            assert time_s >= transfer_bound_s(moved, HGX)


def test_buffers_never_shrink_with_tokens(backend):
    tokens = np.array([16.0, 256.0, 4096.0])
    shape = BufferShape(tokens, np.full(3, 16.0), np.full(3, 256.0), 7168, 7232.0, 2.0 * 2**30)
    assert np.all(np.diff(backend.buffer_bytes(shape)) >= 0)
    assert np.all(backend.buffer_bytes(shape) > 0)


def test_a_stand_in_for_prompts_is_a_backend_that_computes_them(backend):
    if backend.prefills_as:
        assert BY_NAME[backend.prefills_as].prefills_as is None


def test_fits_start_inside_their_bounds(backend):
    assert {"start_s", "scale_up_efficiency"} <= set(backend.fitted) <= set(DispatchCoefficients.__slots__)
    assert all(c.low <= c.start <= c.high for c in backend.fitted.values())


def test_every_backend_is_offered_by_a_version_of_an_engine_and_every_offer_is_a_backend():
    engines = [load_engine(name) for name in engine_names()]
    choices = [c for engine in engines for version in engine.versions for c in engine.backend_choices(version.version)]
    offered = {choice.model for choice in choices}
    assert {backend.name for backend in MOVING} <= offered <= set(BACKENDS)

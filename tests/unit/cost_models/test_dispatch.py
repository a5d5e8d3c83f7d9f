"""Bytes and time of dispatch and combine, by backend."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_models.all_to_all.routing import expected_destinations, reachable_share
from cost_models.catalog import calibration_for
from cost_models.dispatch import (
    DispatchCoefficients,
    payload_bytes,
    scale_up_efficiency,
    transfer_bound_s,
    transfer_time_s,
    volumes,
)
from cost_models.links import Links

NVL72 = Links(72, 900e9, 50e9)
HGX = Links(8, 450e9, 50e9)
SHAPE = {"token_bytes": 14336.0, "top_k": 8, "groups": 1, "top_k_groups": 1, "contiguous": False}


def test_all_gather_receives_every_other_ranks_tokens():
    moved = volumes("allgather_reducescatter", 1024, 8, links=NVL72, **SHAPE)
    assert moved.scale_up_bytes == pytest.approx(7 * 1024 * 14336)
    assert moved.scale_out_bytes == 0
    assert moved.buffer_bytes == pytest.approx(8 * 1024 * 14336)


def test_low_latency_sends_a_copy_per_expert_and_splits_by_link():
    # EP72 on 8-GPU domains: 8 copies, 64/72 leave the domain, 7/72 stay on other GPUs of it, 1/72 is local
    moved = volumes("deepep_low_latency", 128, 72, links=HGX, **SHAPE)
    assert moved.scale_out_bytes == pytest.approx(8 * 128 * 14336 * 64 / 72)
    assert moved.scale_up_bytes == pytest.approx(8 * 128 * 14336 * 7 / 72)


def test_one_sided_sends_a_copy_per_distinct_rank():
    # 8 ranks, 8 uniform picks: 8 (1 - (7/8)^8) = 5.251 distinct ranks, 7/8 of them remote
    moved = volumes("nvlink_one_sided", 1000, 8, links=NVL72, **SHAPE)
    assert moved.scale_up_bytes == pytest.approx(1000 * 14336 * 5.251 * 7 / 8, rel=1e-3)


def test_group_limited_routing_reaches_half_the_ranks():
    # DeepSeek: 4 of 8 groups; with 8 contiguous ranks only 4 can be reached: 4 (1 - (3/4)^8) = 3.6
    share = reachable_share([4, 8, 64], groups=8, top_k_groups=4, contiguous=np.array([True, True, True]))
    assert share.tolist() == [1.0, 0.5, 0.5]
    assert expected_destinations(8, 8, 0.5) == pytest.approx(3.6, rel=1e-3)


def test_normal_mode_crosses_to_each_domain_once():
    # EP32 on four 8-GPU domains: 4 (1 - (3/4)^8) = 3.6 domains, 3/4 of them remote
    moved = volumes("deepep_normal", 4096, 32, links=HGX, **SHAPE)
    assert moved.scale_out_bytes == pytest.approx(4096 * 14336 * 3.6 * 0.75, rel=1e-3)


def test_payload_of_nvfp4_is_between_0_28_and_0_31_of_bf16():
    assert 0.28 < payload_bytes(7168, 0.5625, 8) / (7168 * 2) < 0.31


@pytest.mark.parametrize(
    ("ranks", "dispatch_us", "combine_us"),
    [(16, 118, 195), (32, 155, 273), (64, 173, 314), (128, 192, 369)],
)
def test_low_latency_reproduces_the_published_h800_table(ranks, dispatch_us, combine_us):
    # DeepEP README, H800, 128 tokens, hidden 7168, top-8, FP8 dispatch, BF16 combine; balanced synthetic routing
    calibration = calibration_for("H800", "deepseek")
    links = Links(8, 200e9, 50e9)
    for direction, element, published in (("dispatch", 1 + 4 / 128, dispatch_us), ("combine", 2, combine_us)):
        moved = volumes("deepep_low_latency", 128, ranks, links=links, **{**SHAPE, "token_bytes": 7168 * element})
        c = calibration.get("dispatch", f"deepep_low_latency.{direction}", DispatchCoefficients)
        time = float(transfer_time_s(moved, ranks, 288, 1.0, links=links, coefficients=c))
        assert time * 1e6 == pytest.approx(published, rel=0.10)


@pytest.mark.parametrize(
    ("ranks", "tokens", "dispatch_us", "combine_us"),
    [
        (8, 1024, 166.3, 175.6),
        (16, 1024, 181.2, 188.2),
        (32, 1024, 197.5, 197.5),
        (64, 1024, 209.4, 199.2),
        (8, 2048, 311.8, 322.6),
    ],
)
def test_one_sided_reproduces_the_published_gb200_table(ranks, tokens, dispatch_us, combine_us):
    # TensorRT-LLM tech blog 18, BF16, perfect router: each token goes to min(EP, 8) distinct ranks
    calibration = calibration_for("GB200", "vllm")
    distinct = min(ranks, 8)
    for direction, published in (("dispatch", dispatch_us), ("combine", combine_us)):
        sent = tokens * 14336 * distinct * (ranks - 1) / ranks
        moved = volumes(
            "nvlink_one_sided", 1, ranks, links=NVL72, **{**SHAPE, "top_k": 1, "token_bytes": sent * ranks / (ranks - 1)}
        )
        c = calibration.get("dispatch", f"nvlink_one_sided.{direction}", DispatchCoefficients)
        time = float(transfer_time_s(moved, ranks, 256, 1.0, links=NVL72, coefficients=c))
        assert time * 1e6 == pytest.approx(published, rel=0.15)


@pytest.mark.parametrize(
    ("ranks", "megabytes", "published_us"), [(2, 128, 332), (2, 1024, 2154), (4, 32, 200), (4, 256, 1325), (4, 1024, 4998)]
)
def test_reduce_scatter_reproduces_the_published_gb200_table(ranks, megabytes, published_us):
    # vllm.ai/blog/2026-02-03-dsr1-gb200-part1, megabytes per GPU
    c = calibration_for("GB200", "vllm").get("dispatch", "allgather_reducescatter.combine", DispatchCoefficients)
    moved = volumes("allgather_reducescatter", 1, ranks, links=NVL72, **{**SHAPE, "token_bytes": megabytes * 1e6})
    time = float(transfer_time_s(moved, ranks, 256, 1.0, links=NVL72, coefficients=c))
    assert time * 1e6 == pytest.approx(published_us, rel=0.13)


@given(
    backend=st.sampled_from(["allgather_reducescatter", "deepep_low_latency", "deepep_normal", "nvlink_one_sided"]),
    tokens=st.integers(0, 4096),
    ranks=st.sampled_from([2, 4, 8, 16, 32, 64]),
)
def test_no_transfer_beats_its_links_and_nothing_costs_nothing(backend, tokens, ranks):
    c = DispatchCoefficients(start_s=1e-6, scale_up_efficiency=1.0, scale_out_efficiency=1.0)
    moved = volumes(backend, tokens, ranks, links=HGX, **SHAPE)
    time = transfer_time_s(moved, ranks, 256, 1.0, links=HGX, coefficients=c)
    assert time >= transfer_bound_s(moved, HGX)
    if tokens == 0:
        assert time == 0


@pytest.mark.parametrize(
    ("direction", "element", "published_us"), [("dispatch", 1, (7378, 5948, 5010)), ("combine", 2, (12610, 10362, 8669))]
)
def test_deepep_normal_moves_bytes_in_proportion_to_its_processors_as_the_public_table_has_it(direction, element, published_us):
    # aiconfigurator-core gb200/comm/sglang/0.5.12/wideep_deepep_normal_perf.parquet: four ranks, 65,536 tokens, hidden 7168,
    # top 8 of 256 on 16, 20 and 24 SMs, of which the fit saw the last two: 7378 / 5010 = 1.47, 12610 / 8669 = 1.45, 24 / 16 = 1.5
    c = calibration_for("GB200", "sglang").get("dispatch", f"deepep_normal.{direction}", DispatchCoefficients)
    moved = volumes("deepep_normal", 65536, 4, links=NVL72, **{**SHAPE, "token_bytes": 7168 * element})
    times = [float(transfer_time_s(moved, 4, 256, 1.0, links=NVL72, coefficients=c, processors=n)) for n in (16, 20, 24)]
    assert times[0] / times[2] == pytest.approx(published_us[0] / published_us[2], rel=0.04)
    assert times[1] / times[2] == pytest.approx(published_us[1] / published_us[2], rel=0.03)


def test_the_link_share_of_deepep_normal_is_what_h200_reaches_once_more_processors_do_not_help():
    # the same table on H200, eight ranks, 16,384 tokens: 1,939 us on 20 SMs and 1,926 on 24, combine 3,598 and 3,568. A token has
    # 8 (1 - (7/8)^8) = 5.25 distinct ranks, 4.59 of them remote: 4.59 x 7,456 B x 16,384 / 450 GB/s = 1.25 ms, 14,336 B 2.40 ms
    copies = 8 * (1 - (7 / 8) ** 8) * 7 / 8 * 16384
    for direction, size, published_us in (("dispatch", 7456, 1926), ("combine", 14336, 3568)):
        c = calibration_for("GB200", "sglang").get("dispatch", f"deepep_normal.{direction}", DispatchCoefficients)
        assert copies * size / 450e9 / published_us * 1e6 == pytest.approx(c.link_efficiency, abs=0.02)


def test_processors_matter_until_the_link_is_full_and_not_where_the_timings_are_the_links():
    bound = DispatchCoefficients(start_s=0.0, scale_up_efficiency=0.2, processors=22, link_efficiency=0.64)
    # 0.2 x 44 / 22 = 0.4; 128 SMs would be 1.16, more than the link takes; 0 is as many as it takes by itself
    assert scale_up_efficiency(bound, [0, 11, 22, 44, 128]) == pytest.approx([0.2, 0.1, 0.2, 0.4, 0.64])
    full = DispatchCoefficients(start_s=0.0, scale_up_efficiency=0.7)
    assert scale_up_efficiency(full, [0, 24, 128]) == pytest.approx([0.7, 0.7, 0.7])

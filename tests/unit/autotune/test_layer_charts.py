"""One MoE layer as a timeline: its visible bars are its share of the step, its hidden ones what overlap takes off."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from autotune.documents.deployment import Deployment
from autotune.documents.prediction import HiddenTime, LayerPrediction, Prediction, PrefillPrediction
from autotune.predicting.step import predict
from autotune.report.page.layer_charts import lane_bars, layer_charts, layer_parts

SPREAD = {"dp": 8, "ep": 8, "all2all_backend": "deepep_low_latency"}
LONG = {**SPREAD, "all2all_backend": "deepep_normal", "max_batched_tokens": 16384, "cuda_graph": False}
PRECISIONS = {"deepseek-r1": "fp8-block", "glm-5.2": "fp8-block", "gpt-oss-120b": "mxfp4"}
WORKLOAD = {"isl_tokens": 2000, "osl_tokens": 2000}


def predicted(
    overlap: str = "none", phase: str = "decode", model: str = "deepseek-r1", engine: str = "vllm", **pool: Any
) -> Prediction | PrefillPrediction:
    kind = {**SPREAD, "batch_per_dp_rank": 64} if phase == "decode" else LONG
    document = {"hardware": "hgx-h200", "model": model, "engine": {"name": engine}, "workload": WORKLOAD, "phase": phase}
    pools = {phase: {**kind, "overlap": overlap, **pool}}
    found = predict(Deployment.model_validate({**document, "precision": PRECISIONS.get(model, "bf16"), "pools": pools}))
    assert isinstance(found, Prediction | PrefillPrediction)
    return found


CASES = [
    *(
        (overlap, phase, "deepseek-r1", {})
        for overlap in ("none", "two_batch", "single_batch")
        for phase in ("decode", "prefill")
    ),
    ("none", "decode", "gpt-oss-120b", {}),  # two kinds of MoE layers
    ("two_batch", "decode", "glm-5.2", {"batch_per_dp_rank": 512}),
    ("none", "decode", "qwen3-235b-a22b", {"tp": 2, "dp": 4, "batch_per_dp_rank": 256}),
    ("two_batch", "decode", "qwen3-235b-a22b", {"tp": 2, "dp": 4, "batch_per_dp_rank": 256}),
    ("none", "decode", "deepseek-r1", {"pp": 2}),  # stages of 31 and 30 layers
    ("none", "decode", "deepseek-r1", {"tp": 8, "dp": 1, "ep": 1, "all2all_backend": "none"}),
]


@pytest.mark.parametrize(("overlap", "phase", "model", "pool"), CASES)
def test_visible_bars_follow_one_another_and_add_up_to_the_layers_of_the_step(
    overlap: str, phase: str, model: str, pool: dict[str, Any]
) -> None:
    prediction = predicted(overlap, phase, model, **pool)
    drawn_s = 0.0
    for layer in prediction.layers:
        bars = lane_bars(layer)
        visible = sorted((bar for bar in bars if not bar.hidden), key=lambda bar: bar.start_s)
        for bar, after in itertools.pairwise(visible):
            assert after.start_s == pytest.approx(bar.start_s + bar.time_s)
        # operators - hidden = visible = the layer
        hidden_s = sum(hidden.time_s for hidden in layer.hidden)
        assert visible[0].start_s == 0
        assert sum(bar.time_s for bar in visible) == pytest.approx(layer.time_s)
        assert sum(operator.time_s for operator in layer.operators) - hidden_s == pytest.approx(layer.time_s)
        assert sum(bar.time_s for bar in bars if bar.hidden) == pytest.approx(max(hidden_s, 0))
        drawn_s += sum(bar.time_s for bar in visible) * layer.passes
    assert drawn_s == pytest.approx(prediction.layer_kinds["moe_layers"])
    stretch = 62 / 61 if pool.get("pp") == 2 else 1  # both stages take as long as the one of 31 layers
    for layer in prediction.layers:
        assert layer.passes == pytest.approx(layer.count * stretch)


def test_a_layer_is_its_kinds_time_over_the_number_of_layers() -> None:
    prediction = predicted("two_batch", batch_per_dp_rank=256)
    (layer,) = prediction.layers
    assert (layer.count, layer.microbatches) == (58, 2)  # DeepSeek-R1: 61 layers, the first 3 dense
    assert layer.time_s == pytest.approx(prediction.layer_kinds["moe_layers"] / 58)


def test_two_micro_batches_hide_what_the_overlap_line_of_the_step_takes_off() -> None:
    prediction = predicted("two_batch", batch_per_dp_rank=256)
    (layer,) = prediction.layers
    step = {line.name: line.time_s for line in prediction.operators}
    exchanged = next(part for part in layer_parts(layer) if part.name == "dispatch + combine")
    assert exchanged.time_s == pytest.approx((step["dispatch"] + step["combine"]) / 58)
    assert exchanged.hidden_s == pytest.approx(-step["overlap"] / 58)
    halves = [[bar for bar in lane_bars(layer) if bar.lane == f"micro-batch {half}"] for half in (1, 2)]
    assert [bar.name for bar in halves[0]] == [bar.name for bar in halves[1]]
    assert [bar.time_s for bar in halves[0]] == pytest.approx([bar.time_s for bar in halves[1]])
    (chart,) = layer_charts(prediction)
    assert "The model knows how much is hidden, not when." in chart.says
    assert "Engines alternate the two micro-batches; here one follows the other." in chart.says


def test_a_single_batch_hides_dispatch_under_the_shared_expert_and_combine_under_the_down_projection() -> None:
    (layer,) = predicted("single_batch", engine="sglang", batch_per_dp_rank=256).layers
    times = {operator.name: operator.time_s for operator in layer.operators}
    hidden = {one.behind: one for one in layer.hidden}
    stream_s = hidden["experts"].time_s if "experts" in hidden else 0.0
    shared_s = times["shared_gate_up"] + times["shared_down"] - stream_s
    under_shared, under_down = min(times["dispatch"], shared_s), min(times["combine"], times["experts"] / 3)
    # the same share of both
    assert hidden["shared expert"].time_s / under_shared == pytest.approx(hidden["down-projection"].time_s / under_down)
    bars = {(bar.name, bar.hidden): bar for bar in lane_bars(layer)}
    experts, combine = bars["experts", False], bars["combine", True]
    assert combine.start_s + combine.time_s == pytest.approx(experts.start_s + experts.time_s)
    assert combine.time_s <= experts.time_s / 3


def test_without_overlap_nothing_is_hidden() -> None:
    prediction = predicted("none", model="gpt-oss-120b")  # no shared expert
    assert all(not layer.hidden for layer in prediction.layers)
    for chart in layer_charts(prediction):
        assert "Nothing overlaps: one operator after another." in chart.says
        assert not [series for series in chart.option["series"] if series["name"].endswith("(hidden)")]


def test_operators_stand_in_the_order_of_a_layer() -> None:
    for phase, core in (("decode", ["absorb", "attention"]), ("prefill", ["kv_b", "attention"])):
        (layer,) = predicted("none", phase).layers
        order = [o.name for o in layer.operators if o.lane != "between"]
        assert order == [
            "q_a_kv_a", "q_b", *core, "o_proj", "router", "shared_gate_up", "shared_down", "dispatch", "experts", "combine",
        ]  # fmt: skip


def test_every_kind_of_moe_layer_has_its_chart_and_a_dense_model_none() -> None:
    charts = layer_charts(predicted("none", model="gpt-oss-120b"))
    assert [(chart.id, chart.title) for chart in charts] == [
        ("layer", "One MoE layer, kind 1 of 2"),
        ("layer-2", "One MoE layer, kind 2 of 2"),
    ]
    assert all(chart.says.startswith("18 of 36 MoE layers are like this") for chart in charts)
    dense = {"tp": 8, "dp": 1, "ep": 1, "all2all_backend": "none"}
    assert layer_charts(predicted("none", model="llama-3.1-70b", **dense)) == []


def test_running_together_may_cost_more_than_it_hides(layer: LayerPrediction) -> None:
    slower = HiddenTime(operators=("dispatch", "combine"), behind="other micro-batch", time_s=-1e-5)
    kept = [hidden for hidden in layer.hidden if hidden.behind != "other micro-batch"]
    saved_s = sum(hidden.time_s for hidden in layer.hidden) - sum(hidden.time_s for hidden in kept)
    costly = layer.model_copy(update={"hidden": (*kept, slower), "time_s": layer.time_s + saved_s + 1e-5})
    visible = [bar for bar in lane_bars(costly) if not bar.hidden]
    assert sum(bar.time_s for bar in visible) == pytest.approx(costly.time_s)
    (chart,) = layer_charts(predicted("two_batch", batch_per_dp_rank=256).model_copy(update={"layers": (costly,)}))
    assert "takes 0.010 ms longer beside the other micro-batch" in chart.says


@pytest.fixture
def layer() -> LayerPrediction:
    return predicted("two_batch", batch_per_dp_rank=256).layers[0]


@pytest.mark.parametrize("overlap", ["none", "two_batch", "single_batch"])
def test_chart_and_table_say_the_same(overlap: str) -> None:
    prediction = predicted(overlap, batch_per_dp_rank=256)
    (chart,), (layer,) = layer_charts(prediction), prediction.layers
    drawn = [series for series in chart.option["series"] if series["name"] != "before"]
    shown_ms = sum(sum(v or 0 for v in s["data"]) for s in drawn if not s["name"].endswith("(hidden)"))
    assert shown_ms == pytest.approx(layer.time_s * 1e3, abs=1e-5 * len(drawn))
    adds = [float(re.sub(r"[^\d.-]", "", row[-1])) for row in chart.rows]
    assert sum(adds[:-1]) == pytest.approx(adds[-1], abs=5e-4 * len(adds))
    assert adds[-1] == pytest.approx(layer.time_s * 1e3, abs=5e-4)

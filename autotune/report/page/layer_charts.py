"""Timeline of one MoE layer: compute and communication in lanes, and what is hidden behind what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from autotune.documents.prediction import Lane, LayerPrediction, StepPrediction
from autotune.report.page.charts import Chart, bars

MILLI = 1e3
BETWEEN_LANE, STREAM_LANE = "in between", "second stream"
TOGETHER = "other micro-batch"
COLOURS: dict[Lane, str] = {"compute": "#3d7fc4", "communication": "#e08a3c", "between": "#7d8a97"}
PALE: dict[Lane, str] = {"compute": "#a9c8e6", "communication": "#f2cda6", "between": "#c4ccd4"}
"""Of what is hidden."""
INK = "#12171d"
ROUNDING_MS = 1e-5
LEAST_LABEL, LEAST_LEVEL_LABEL = 0.04, 0.3
"""Shares of a layer from which a bar carries its name, and carries it level."""
LANE_PX = 116


@dataclass(frozen=True, slots=True)
class LayerPart:
    """An operator of a layer, or several of which only the sum hidden is known; times of all micro-batches [s]."""

    name: str
    lane: Lane
    time_s: float
    hidden_s: float = 0.0
    behind: str = ""

    @property
    def visible_s(self) -> float:
        """What it adds to the layer."""
        return self.time_s - self.hidden_s


@dataclass(frozen=True, slots=True)
class LaneBar:
    """One bar of a lane [s]."""

    name: str
    lane: str
    kind: Lane
    start_s: float
    time_s: float
    hidden: bool = False


def layer_parts(layer: LayerPrediction) -> list[LayerPart]:
    """Operators in order; those that are hidden together are one part, at the place of the last."""
    groups = {name: hidden for hidden in layer.hidden for name in hidden.operators}
    times = {operator.name: operator.time_s for operator in layer.operators}
    found = []
    for operator in layer.operators:
        group = groups.get(operator.name)
        if not group:
            found.append(LayerPart(_words(operator.name), operator.lane, operator.time_s))
            continue
        members = [name for name in times if name in group.operators]
        if operator.name == members[-1]:
            total_s = sum(times[name] for name in members)
            name = " + ".join(_words(member) for member in members)
            found.append(LayerPart(name, operator.lane, total_s, group.time_s, group.behind))
    return found


def _words(name: str) -> str:
    return name.replace("_", " ")


def lane_bars(layer: LayerPrediction) -> list[LaneBar]:
    """Bars of a layer: visible ones follow one another from 0 to its time, hidden ones lie under what hides them.

    What two micro-batches hide of each other has no place in time, so it is drawn up to where the visible rest begins.
    """
    parts = layer_parts(layer)
    halves = layer.microbatches
    own = [part for part in parts if part.lane != "between" and part.behind != TOGETHER]
    found: list[LaneBar] = []
    clock = 0.0
    for half in range(halves):
        for part in own:
            lane = f"micro-batch {half + 1}" if halves > 1 else part.lane
            found += _bars_of(part, lane, clock, halves)
            clock += part.visible_s / halves
    found += [bar for part in own if part.behind == "experts" for bar in _beside_experts(part, found, halves)]
    for part in (*(p for p in parts if p.lane == "between"), *(p for p in parts if p.behind == TOGETHER)):
        lane = BETWEEN_LANE if part.lane == "between" else "dispatch and combine"
        found += _bars_of(part, lane, clock, 1)
        clock += part.visible_s
    return found


def _bars_of(part: LayerPart, lane: str, clock: float, halves: int) -> list[LaneBar]:
    """The visible bar of a part from `clock` on, and before it what is hidden under its neighbours."""
    hidden_s, visible_s = part.hidden_s / halves, part.visible_s / halves
    found = [LaneBar(part.name, lane, part.lane, clock, visible_s)] if visible_s > 0 else []
    if hidden_s > 0 and part.behind != "experts":
        found.append(LaneBar(part.name, lane, part.lane, clock - hidden_s, hidden_s, hidden=True))
    return found


def _beside_experts(part: LayerPart, drawn: Sequence[LaneBar], halves: int) -> list[LaneBar]:
    starts = [bar.start_s for bar in drawn if bar.name == "experts" and not bar.hidden]
    return [LaneBar(part.name, STREAM_LANE, part.lane, start, part.hidden_s / halves, hidden=True) for start in starts]


def layer_charts(prediction: StepPrediction) -> list[Chart]:
    """One MoE layer of each kind that the model has."""
    total = sum(layer.count for layer in prediction.layers)
    kinds = len(prediction.layers)
    return [
        _chart(
            layer,
            "layer" if not i else f"layer-{i + 1}",
            "One MoE layer" + (f", kind {i + 1} of {kinds}" if kinds > 1 else ""),
            f"{layer.count} of {total} MoE layers are like this",
        )
        for i, layer in enumerate(prediction.layers)
    ]


def _chart(layer: LayerPrediction, name: str, title: str, alike: str) -> Chart:
    drawn = lane_bars(layer)
    lanes = _lanes(drawn)
    option = bars(lanes, "ms", [one for lane in lanes for one in _series_of(lane, lanes, drawn, layer.time_s)])
    option["tooltip"] = {"trigger": "item", "formatter": "{a}: {c} ms"}
    option["xAxis"]["max"] = round(layer.time_s * MILLI, 4)
    option["xAxis"]["axisLabel"] = {"hideOverlap": True, "showMaxLabel": False}
    return Chart(
        id=name,
        title=title,
        says=f"{alike}, each {_ms(layer.time_s)}: solid bars add up to it. {said_of_overlap(layer)}",
        option=option,
        columns=("operator", "lane", "takes", "hidden", "behind", "adds to the layer"),
        rows=(*(_row(part) for part in layer_parts(layer)), ("the layer", "", "", "", "", _ms(layer.time_s))),
        height_px=50 + LANE_PX * len(lanes),
    )


def _lanes(drawn: Sequence[LaneBar]) -> list[str]:
    """Lanes that have bars, from top to bottom."""
    order = ("compute", "micro-batch 1", "micro-batch 2", STREAM_LANE, "communication", "dispatch and combine", BETWEEN_LANE)
    return [lane for lane in order if any(bar.lane == lane for bar in drawn)]


def _series_of(lane: str, lanes: Sequence[str], drawn: Sequence[LaneBar], layer_s: float) -> list[dict[str, Any]]:
    """Stacked series of one lane: its bars in time, and transparent ones for the time between them."""
    found: list[dict[str, Any]] = []
    clock = 0.0
    for bar in sorted((bar for bar in drawn if bar.lane == lane), key=lambda bar: bar.start_s):
        if (gap_s := bar.start_s - clock) * MILLI > ROUNDING_MS:
            found.append(_series("before", gap_s, lane, lanes, {"itemStyle": {"color": "transparent"}, "silent": True}))
        found.append(_series(bar.name + (" (hidden)" if bar.hidden else ""), bar.time_s, lane, lanes, _style(bar, layer_s)))
        clock = bar.start_s + bar.time_s
    return found


def _series(name: str, time_s: float, lane: str, lanes: Sequence[str], style: Mapping[str, Any]) -> dict[str, Any]:
    data = [round(time_s * MILLI, 5) if one == lane else None for one in lanes]
    return {"name": name, "stack": "layer", "barCategoryGap": "12%", "data": data, **style}


def _style(bar: LaneBar, layer_s: float) -> dict[str, Any]:
    share = bar.time_s / layer_s
    item = {"color": COLOURS[bar.kind], "borderColor": INK, "borderWidth": 0.5}
    if bar.hidden:
        item |= {"color": PALE[bar.kind], "borderType": "dashed", "borderColor": COLOURS[bar.kind], "borderWidth": 1.5}
    label = {"show": True, "formatter": bar.name, "color": INK, "fontSize": 11, "width": LANE_PX - 16, "overflow": "truncate"}
    turned: Literal[0, 90] = 0 if share >= LEAST_LEVEL_LABEL else 90
    shown = {"label": {**label, "rotate": turned}, "labelLayout": {"hideOverlap": True}} if share >= LEAST_LABEL else {}
    return {"itemStyle": item, **shown}


def _ms(time_s: float) -> str:
    return f"{time_s * MILLI:,.3f} ms"


def _row(part: LayerPart) -> tuple[str, ...]:
    lane = BETWEEN_LANE if part.lane == "between" else part.lane
    hidden = _ms(part.hidden_s) if part.hidden_s else "-"
    return part.name, lane, _ms(part.time_s), hidden, part.behind or "-", _ms(part.visible_s)


def said_of_overlap(layer: LayerPrediction) -> str:
    """What is hidden behind what, and what is not known about it."""
    parts = [part for part in layer_parts(layer) if part.hidden_s]
    between_s = sum(part.time_s for part in layer_parts(layer) if part.lane == "between")
    spread = f"Small kernels and gaps, {_ms(between_s)} in all, lie between the others and are drawn last." if between_s else ""
    if not parts:
        return f"Nothing overlaps: one operator after another. {spread}".strip()
    hidden = "; ".join(_hidden_words(part) for part in parts)
    known = "The model knows how much is hidden, not when."
    if layer.microbatches > 1:
        known += " Engines alternate the two micro-batches; here one follows the other."
    return f"Pale bars are hidden: {hidden}. {known} {spread}".strip()


def _hidden_words(part: LayerPart) -> str:
    if part.hidden_s < 0:
        return f"none of {part.name}, which takes {_ms(-part.hidden_s)} longer beside the {part.behind}"
    return f"{_ms(part.hidden_s)} of the {_ms(part.time_s)} of {part.name} behind the {part.behind}"

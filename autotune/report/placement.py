"""Terminal report of a placement."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.placement.loads import Loads
from autotune.placement.placing import Balance, NodesPerToken, Placement, RedundancyChoice
from autotune.placement.synthetic import described_drift
from autotune.report.printing import new_table, paragraph

LAYERS_SHOWN = 5


def placement_report(placement: Placement, loads: Loads) -> RenderableType:
    """Balance beside EPLB and the bound, and the layers that stay uneven."""
    head = Text()
    head.append(f"{placement.balance.worst_scenario:.1%} balanced", style="bold green")
    head.append(
        f" in the worst of {len(placement.scenarios)} workload(s): {placement.slots} physical experts on {placement.gpus} GPUs, "
        f"{len(placement.experts)} layers"
    )
    if placement.moves is not None:
        head.append(f"; {placement.moves} of {placement.slots * len(placement.experts):,} replicas move")
    skew = ", ".join(f"{name} {values.mean():.2f}" for name, values in zip(loads.names, loads.skew, strict=True))
    moved = f"; workloads differ in {loads.drift:.0%} of their tokens" if len(loads.names) > 1 else ""
    spread, apart = described_drift(loads)
    return Group(
        head,
        Text(f"busiest expert / mean: {skew}{moved}"),
        Text(f"log loads spread by {spread:.2f} over experts" + (f", workloads {apart:.2f} apart" if apart else "")),
        Text(f"busiest GPU above the lower bound: {placement.median_gap:.2%} (median over layers)"),
        *([Text(_nodes_line(placement.nodes_per_token))] if placement.nodes_per_token else []),
        Text(f"in a deployment: expert_balance: {{skew: {placement.balance.skew:.4f}}}; with EPLB {placement.eplb.skew:.4f}"),
        "",
        _balance_table(placement),
        "",
        _layers_table(placement),
        "",
        paragraph(
            "Reading it",
            "Balanced: mean / max load over GPUs, averaged over layers. A step waits for its busiest GPU in every layer, so "
            "expert time is what perfect balance would take, divided by this. Stock vLLM loads no static map: use its EPLB.",
        ),
    )


def _nodes_line(nodes: NodesPerToken) -> str:
    """How many nodes a token's experts lie on."""
    grouped = "" if nodes.eplb_hierarchical is None else f", hierarchical {nodes.eplb_hierarchical:.2f}"
    return f"nodes per token: {nodes.placed:.2f} (EPLB, global {nodes.eplb:.2f}{grouped})"


def _balance_table(placement: Placement) -> Table:
    table = new_table("Balanced")
    table.add_column("placement", style="cyan")
    for name in (*placement.scenarios, "worst", "worst layer"):
        table.add_column(name, justify="right")
    rows: list[tuple[str, Balance | None]] = [
        ("this one", placement.balance),
        ("EPLB, global", placement.eplb),
        ("EPLB, hierarchical", placement.eplb_hierarchical),
    ]
    for name, balance in rows:
        if balance is not None:
            values = (*balance.by_scenario, balance.worst_scenario, balance.worst_layer)
            table.add_row(name, *(f"{value:.2%}" for value in values))
    return table


def _layers_table(placement: Placement) -> Table:
    table = new_table("Least balanced layers (worst workload)")
    for name in ("layer", "this one", "EPLB", "at best"):
        table.add_column(name, justify="right")
    for layer in sorted(placement.layers, key=lambda entry: entry.placed)[:LAYERS_SHOWN]:
        table.add_row(str(layer.layer), f"{layer.placed:.2%}", f"{layer.eplb:.2%}", f"{layer.bound:.2%}")
    return table


def redundancy_table(choices: list[RedundancyChoice]) -> Table:
    """What more replicas buy, and when they cannot buy more."""
    table = new_table("Redundant experts (balanced, each layer in its worst workload)")
    for name in ("redundant", "slots per GPU", "placed", "EPLB", "at best", "by layer", "GB per GPU (FP8)"):
        table.add_column(name, justify="right")
    for choice in choices:
        shares = (f"{value:.2%}" for value in (choice.placed, choice.eplb, choice.bound, choice.by_layer))
        size = f"{choice.weights_bytes_per_gpu / 1e9:.1f}"
        table.add_row(str(choice.redundant_experts), str(choice.slots_per_gpu), *shares, size)
    return table

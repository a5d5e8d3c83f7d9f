"""Pictures of a placement (extra `plots`): balance by layer beside EPLB and the bound, and every GPU's load before and after."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from autotune.files import save_figure
from autotune.placement.loads import Loads
from autotune.placement.placing import NodesPerToken, Placement
from autotune.placement.solve import gpu_loads, in_order, normalised
from cost_models.arrays import Floats, Ints

mpl.use("agg")
DPI = 130
BRIGHTEST = 2.0
"""Load / mean at which the colour scale ends."""


def balance_by_layer(placement: Placement, path: Path) -> None:
    """Balancedness of every layer in its worst workload."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    layers = [entry.layer for entry in placement.layers]
    axes.plot(layers, [entry.bound for entry in placement.layers], color="grey", ls="--", label="at best")
    axes.plot(layers, [entry.placed for entry in placement.layers], color="tab:blue", marker=".", label="this placement")
    axes.plot(layers, [entry.eplb for entry in placement.layers], color="tab:orange", marker=".", label="EPLB, global")
    axes.set(xlabel="layer", ylabel="mean / max load over GPUs, worst workload")
    axes.set(title=f"{placement.slots} physical experts on {placement.gpus} GPUs")
    axes.set_ylim(top=1.01)
    axes.legend(loc="lower left")
    save_figure(figure, path, DPI)


def nodes_by_layer(nodes: NodesPerToken, first_layer: int, path: Path) -> None:
    """Nodes that a token's experts lie on, layer by layer: what crosses between nodes."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot()
    layers = range(first_layer, first_layer + len(nodes.by_layer))
    axes.plot(layers, nodes.by_layer, color="tab:blue", marker=".", label="this placement")
    axes.plot(layers, nodes.eplb_by_layer, color="tab:orange", marker=".", label="EPLB, global")
    axes.set(xlabel="layer", ylabel="nodes per token", title=f"nodes per token: {nodes.placed:.2f}, EPLB {nodes.eplb:.2f}")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower left")
    save_figure(figure, path, DPI)


def load_by_gpu(placement: Placement, loads: Loads, path: Path) -> None:
    """Load over mean, layers down and GPUs across, in the first workload: experts in order, then placed."""
    linear = in_order(loads.counts.shape[2], placement.slots, placement.gpus)
    before = np.stack([_relative(loads, i, linear) for i in range(len(placement.experts))])
    after = np.stack([_relative(loads, i, np.array(layer)) for i, layer in enumerate(placement.experts)])
    figure = Figure(figsize=(10, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, values, title in zip(panels, (before, after), ("experts in order", "this placement"), strict=True):
        image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=BRIGHTEST, interpolation="nearest")
        axes.set(title=f"{title}: busiest GPU {values.max():.2f} x mean", xlabel="GPU")
    panels[0].set_ylabel("MoE layer")
    figure.colorbar(image, ax=panels, label=f"load / mean ({loads.names[0]})", extend="max")
    save_figure(figure, path, DPI)


def _relative(loads: Loads, layer: int, placed: Ints) -> Floats:
    carried: Floats = gpu_loads(normalised(loads.layer(layer)), placed)[0] * len(placed)
    return carried

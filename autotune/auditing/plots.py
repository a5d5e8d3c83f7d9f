"""Tornado plot of a sensitivity (extra `plots`)."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from autotune.auditing.sensitivity import STEPS, Sensitivity
from autotune.files import save_figure

mpl.use("agg")
DPI = 130
SHOWN_STEP = 0.2


def tornado(found: Sensitivity, path: Path) -> None:
    """Throughput at -20 % and +20 % of each parameter, most influential on top."""
    figure = Figure(figsize=(8, 0.5 * len(found.influences) + 1.5), layout="constrained")
    axes = figure.add_subplot()
    rows = list(reversed(found.influences))
    for sign, colour in ((-1, "tab:orange"), (1, "tab:blue")):
        at = STEPS.index(sign * SHOWN_STEP)
        axes.barh(range(len(rows)), [100 * r.effects[at] for r in rows], color=colour, label=f"{sign * SHOWN_STEP:+.0%}")
    axes.set_yticks(range(len(rows)), [r.name for r in rows])
    axes.axvline(0, color="black", lw=0.8)
    axes.set(xlabel="change of throughput, %", title=f"{found.tokens_per_s:,.0f} tokens/s as planned")
    axes.legend(loc="lower right")
    save_figure(figure, path, DPI)

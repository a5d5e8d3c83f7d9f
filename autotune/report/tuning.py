"""Terminal report of a tuning session, and what is shown while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from autotune.documents.tuned import RATE, TunedTrial, TuneResult
from autotune.report.printing import ms, new_table

SHOWN = 24
LONGEST_REASON = 60


def tuning_report(result: TuneResult) -> RenderableType:
    """The winner, what it gains, every trial, and what was learned of the model."""
    parts: list[RenderableType] = [Text(line) for line in _headline(result)]
    parts += [Text(), trials_table(result.trials, result.limits, result.best), Text()]
    if result.accuracy:
        parts.append(_accuracy(result))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in result.warnings]
    return Group(*parts)


def _headline(result: TuneResult) -> list[str]:
    best = result.trial(result.best)
    lines = []
    if best is not None:
        knobs = ", ".join(f"{name} {value}" for name, value in best.settings.items() if value != "default")
        lines.append(f"best: trial {best.number}, {best.layout}, level {best.level:g}" + (f", {knobs}" if knobs else ""))
        lines.append(f"{best.measured[RATE]:,.0f} tokens/s/GPU measured, {best.predicted.get(RATE, 0):,.0f} predicted beforehand")
    for what, number, gain in (
        ("the engine's defaults", result.defaults, result.gain_over_defaults),
        ("the model's first plan", result.first_guess, result.gain_over_first_guess),
    ):
        lines.append(_gained(what, result.trial(number), gain))
    lines.append(f"runs of one configuration differ by {result.noise:.1%}; stopped: {result.stopped}")
    if result.random_needed is not None:
        lines.append(
            f"random search would need about {result.random_needed:,.0f} trials for the same less 2 % (by the recalibrated model)"
        )
    return lines


def _gained(what: str, trial: TunedTrial | None, gain: float | None) -> str:
    if trial is None:
        return f"{what}: not tried"
    if gain is not None:
        return f"{what}: {trial.measured[RATE]:,.0f} tokens/s/GPU (trial {trial.number}); {gain:+.1%}"
    if trial.state == "failed":
        return f"{what}: failed, {trial.reason} (trial {trial.number})"
    missed = ", ".join(name for name, excess in trial.constraints.items() if excess > 0)
    return (
        f"{what}: {trial.measured.get(RATE, 0):,.0f} tokens/s/GPU, over the limit on {missed or 'nothing'} (trial {trial.number})"
    )


def trials_table(trials: Sequence[TunedTrial], limits: dict[str, float], best: int | None = None) -> Table:
    """One row per trial, the newest last."""
    table = new_table("Trials")
    times = list(limits) or ["ttft_p99_s", "tpot_s"]
    heads = [name.removesuffix("_s").replace("_", " ").upper() for name in times]
    for name in ("#", "why", "layout", "level", "knobs", "runs", "tokens/s/GPU", "predicted", *heads):
        table.add_column(name, justify="left" if name in ("why", "layout", "knobs") else "right")
    for trial in trials[-SHOWN:]:
        knobs = ", ".join(f"{name}={value}" for name, value in trial.settings.items() if value != "default")
        predicted = f"{trial.predicted[RATE]:,.0f}" if RATE in trial.predicted else ""
        style = "bold green" if trial.number == best else "dim" if trial.state == "failed" else None
        shared = (str(trial.number), trial.origin, trial.layout, f"{trial.level:g}", knobs or "-", str(len(trial.loads)))
        table.add_row(*shared, _rate(trial), predicted, *(_time(trial, name) for name in times), style=style)
    return table


def _rate(trial: TunedTrial) -> str:
    if trial.state == "running":
        return "..."
    if trial.state == "failed":
        return trial.reason[:LONGEST_REASON]
    return f"{trial.measured[RATE]:,.0f}"


def _time(trial: TunedTrial, name: str) -> str:
    if trial.state == "failed" or name not in trial.measured:
        return ""
    said = ms(trial.measured[name]) if name.endswith("_s") else f"{trial.measured[name]:.2f}"
    return said + ("!" if trial.constraints.get(name, 0) > 0 else "")


def _accuracy(result: TuneResult) -> Table:
    table = new_table("Predictions against what was measured: mean error")
    for name in ("quantity", "trials", "the model", "with what was learned (left out in turn)"):
        table.add_column(name, justify="left" if name == "quantity" else "right")
    for line in result.accuracy:
        name = "tokens/s/GPU" if line.quantity == RATE else line.quantity.removesuffix("_s").replace("_", " ").upper()
        table.add_row(name, str(line.trials), f"{line.before:.1%}", f"{line.after:.1%}")
    return table

"""Terminal reports of recipes: what was imported, and recipes beside our plans."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.text import Text

from autotune.recipes.collecting import ImportedDeployment, ImportedRecipes
from autotune.recipes.comparing import ComparedFigures, RecipeComparison, RecipeComparisons
from autotune.report.printing import ms, new_table, paragraph


def imported_report(found: ImportedRecipes) -> RenderableType:
    """A row for each deployment, and what each file left open."""
    table = new_table(f"{len(found.deployments)} deployments")
    for name in ("deployment", "model", "engine", "hardware", "pools", "GPUs"):
        table.add_column(name, justify="right" if name == "GPUs" else "left", overflow="fold")
    for one in found.deployments:
        made = one.deployment
        engine = f"{made.engine.name} {made.engine.version or ''}".strip()
        table.add_row(*map(escape, (one.name, made.model, engine, made.hardware, pools_label(one), str(one.gpus))))
    parts: list[RenderableType] = [table]
    for title, lines in (("Would not start", "conflicts"), ("Not modelled", "unmodelled")):
        said = [f"{one.name}: {line}" for one in found.deployments for line in getattr(one, lines)]
        parts += ["", paragraph(title, "\n".join(said))] if said else []
    if found.passed_over:
        parts += ["", Text(f"{len(found.passed_over)} files start no engine that is known here")]
    return Group(*parts)


def pools_label(one: ImportedDeployment) -> str:
    """Instances, layouts and roles."""
    return " + ".join(f"{p.instances} x {p.layout.label()} {role}" for role, p in one.deployment.pools.items())


GOAL_TEXT = {
    "tpot_s": "TPOT",
    "ttft_s": "one prompt",
    "ttft_p50_s": "TTFT P50",
    "ttft_p95_s": "TTFT P95",
    "ttft_p99_s": "TTFT P99",
}
MOST_OPTIONS = 40
"""Lines of options in the terminal; --json has all."""


def recipe_report(found: RecipeComparisons) -> RenderableType:
    """Each recipe beside our plan."""
    parts: list[RenderableType] = []
    for one in found.compared:
        parts += [*([""] if parts else []), *_compared(one)]
    return Group(*parts)


def _compared(one: RecipeComparison) -> list[RenderableType]:
    problem = one.problem
    about = f"{problem['model']} on {problem['gpus']} GPUs of {problem['hardware']}, {problem['engine']}"
    asked = "; ours may be no slower for a user than the recipe (no limit was given)" if one.same_speed else ""
    parts: list[RenderableType] = [Text(one.name, style="bold"), Text(about + asked), "", _figures_table(one)]
    if one.no_plan:
        parts += ["", paragraph("No plan of ours", one.no_plan)]
    if one.ours is not None:
        parts += ["", _worths_table(one), Text(_sum_text(one))]
    if one.options:
        parts += ["", _options_table(one)]
    for title, lines in (("The recipe would not run", one.recipe.conflicts), ("Not modelled", one.recipe.unmodelled),
                         ("Remarks", one.remarks)):  # fmt: skip
        parts += ["", paragraph(title, "\n".join(lines))] if lines else []
    return parts


def _figures_table(one: RecipeComparison) -> RenderableType:
    sides = [one.recipe, *([one.ours] if one.ours else [])]
    table = new_table("")
    for name in ("", "the recipe", "our plan")[: len(sides) + 1]:
        table.add_column(name, style="cyan" if not name else None, overflow="fold")
    rows: list[tuple[str, list[str]]] = [
        ("plan", [side.label for side in sides]),
        ("verdict", [side.answer for side in sides]),
        ("tokens/s/GPU", [_rate(side.tokens_per_s_per_gpu) for side in sides]),
        ("tokens/s", [_rate(side.tokens_per_s) for side in sides]),
        ("GPUs", [str(side.gpus) for side in sides]),
        ("one prompt" if one.problem["target"] == "prefill" else "TPOT", [_time(side.latency_s) for side in sides]),
    ]
    if any(side.ttft_s is not None for side in sides):
        rows += [("mean TTFT", [_time(side.ttft_s) for side in sides]), ("TTFT P99", [_time(side.ttft_p99_s) for side in sides])]
    for at, goal in enumerate(one.recipe.goals):
        name = f"{GOAL_TEXT.get(goal.name, goal.name)} within {ms(goal.wanted)}"
        rows.append((name, [_odds(side, at) for side in sides]))
    for name, values in rows:
        table.add_row(name, *map(escape, values))
    return table


def _odds(side: ComparedFigures, at: int) -> str:
    if at >= len(side.goals):
        return "-"
    goal = side.goals[at]
    chance = "" if goal.probability is None else f", P {goal.probability:.0%}"
    return f"{'met' if goal.met else 'missed'}{chance}"


def _worths_table(one: RecipeComparison) -> RenderableType:
    if not one.differences:
        return Text("No difference that a price hangs on.")
    table = new_table("Each difference alone, made on the recipe")
    for name in ("difference", "the recipe", "our plan", "tokens/s/GPU", "TPOT", ""):
        table.add_column(name, justify="right" if name in ("tokens/s/GPU", "TPOT") else "left", overflow="fold")
    for worth in one.differences:
        cells = (worth.what, worth.recipe, worth.ours, _gain(worth.gain), _time(worth.latency_s), worth.note)
        table.add_row(*map(escape, cells))
    return table


def _sum_text(one: RecipeComparison) -> str:
    whole = f"All of it: {_gain(one.gain)} tokens/s/GPU"
    if one.alone is None:
        return f"{whole}; some differences cannot be made alone, so their worths are no sum"
    if one.adds_up:
        return f"{whole}; the differences alone make {_gain(one.alone)}"
    return f"{whole}; alone they would make {_gain(one.alone)}: they do not add up, each changes what the others are worth"


def _options_table(one: RecipeComparison) -> RenderableType:
    left = len(one.options) - MOST_OPTIONS
    table = new_table("Options of the commands" + (f" ({left} more in --json)" if left > 0 else ""))
    for name in ("option", "the recipe", "our plan"):
        table.add_column(name, overflow="fold")
    several = len({option.pool for option in one.options}) > 1
    for option in one.options[:MOST_OPTIONS]:
        label = f"{option.pool}: {option.option}" if several else option.option
        table.add_row(*map(escape, (label, option.recipe, option.ours)))
    return table


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _time(value_s: float | None) -> str:
    return "-" if value_s is None else ms(value_s)


def _gain(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"

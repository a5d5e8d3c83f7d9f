"""Terminal tables of a search result and of a prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autotune.documents.deployment import Deployment
from autotune.documents.plan import Plan, SearchResult, Setting
from autotune.documents.planned_placement import PlannedPlacement
from autotune.documents.prediction import Prediction, PrefillPrediction, ServicePrediction, StepPrediction, Uncertainty
from autotune.documents.problem import DEFAULT_TRIALS
from autotune.predicting.uncertainty import uncertainty
from autotune.report.printing import ms, new_table, paragraph
from search_spaces.schema import Value

if TYPE_CHECKING:
    from autotune.report.page.comparing import Comparison

GB = 1e9
SMALL_SHARE = 0.01
SHOWN_GAIN = 0.0005
SIZES_SHOWN = 8
PLAIN_STATUS = {"measured": "measured", "transferred": "sibling GPU or kernel", "assumed": "assumed", "datasheet": "datasheet"}


def comparison_report(comparison: Comparison) -> RenderableType:
    """Runs side by side."""
    parts: list[RenderableType] = []
    for title, rows in (("Best plans", comparison.figures), ("Settings that differ", comparison.settings)):
        table = new_table(title)
        table.add_column("", style="cyan")
        for i, name in enumerate(comparison.names, start=1):
            table.add_column(f"{i}: {name}", overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        parts.append(Padding(table, (0, 0, 1, 0)))
    return Group(*parts)


def error_bars(bars: Uncertainty) -> str:
    """80 % intervals in one line."""
    rate = bars.tokens_per_s_per_gpu
    name, times = ("TPOT", bars.tpot_s) if bars.tpot_s else ("step", bars.step_s)
    span = f"{name} {times.low * 1e3:,.1f}-{times.high * 1e3:,.1f} ms"
    return f"80 % interval {rate.low:,.0f}-{rate.high:,.0f} tokens/s/GPU, {span}"


def odds_line(plan: Plan) -> str:
    """What the error bars mean for the choice."""
    odds, limit = plan.odds, "TPOT" if isinstance(plan.prediction, Prediction) else "TTFT"
    return (
        f"{error_bars(odds.uncertainty)}; meets the {limit} limit with {odds.latency_probability:.0%}, best of these plans with "
        f"{odds.best_probability:.0%}, expected regret {odds.expected_regret:.1%}"
    )


def headline(prediction: Prediction | PrefillPrediction) -> Text:
    """The numbers people came for."""
    return decode_headline(prediction) if isinstance(prediction, Prediction) else prefill_headline(prediction)


def decode_headline(prediction: Prediction) -> Text:
    """The numbers of a decode pool."""
    text = Text()
    text.append(f"{prediction.tokens_per_s_per_gpu:,.0f} tokens/s/GPU", style="bold green")
    text.append(f"   TPOT {ms(prediction.tpot_s)}   {prediction.tokens_per_s:,.0f} tokens/s on {prediction.gpus} GPUs")
    text.append(f"   {prediction.concurrency:,} sequences")
    return text


def prefill_headline(prediction: PrefillPrediction) -> Text:
    """The numbers of a prefill pool."""
    text = Text()
    text.append(f"{prediction.tokens_per_s_per_gpu:,.0f} prompt tokens/s/GPU", style="bold green")
    text.append(f"   step {ms(prediction.step_s)}   {prediction.tokens_per_s:,.0f} prompt tokens/s on {prediction.gpus} GPUs")
    text.append(f"   a prompt takes {ms(prediction.prompt_s)} when nothing waits")
    return text


def operator_table(prediction: StepPrediction) -> Table:
    """Operators by time; the small ones in one line."""
    table = new_table("Step time by operator")
    for name, justify in (
        ("operator", "left"),
        ("time", "right"),
        ("share", "right"),
        ("x roofline", "right"),
        ("coefficients", "left"),
    ):
        table.add_column(name, justify=justify, style="cyan" if name == "operator" else None)  # type: ignore[arg-type]
    small = [line for line in prediction.operators if abs(line.share) < SMALL_SHARE]
    for line in prediction.operators:
        if abs(line.share) < SMALL_SHARE:
            continue
        ratio = f"{line.over_bound:.2f}" if line.over_bound else "-"
        note = "; ".join(line.outside_box)
        source = PLAIN_STATUS.get(line.status, line.status) + (f" (outside box: {note})" if note else "")
        table.add_row(line.name, ms(line.time_s), f"{line.share:.1%}", ratio, source)
    if small:
        total = sum(line.time_s for line in small)
        table.add_row(f"{len(small)} smaller", ms(total), f"{total / prediction.step_s:.1%}", "-", "")
    table.add_row("step", ms(prediction.step_s), "100.0%", "", f"calibration {prediction.calibration}", style="bold")
    return table


def layer_table(prediction: StepPrediction) -> Table:
    """Step time by kind of layer."""
    table = new_table("Step time by layer kind")
    table.add_column("part", style="cyan")
    table.add_column("time", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in prediction.layer_kinds.items():
        table.add_row(name.replace("_", " "), ms(seconds), f"{seconds / prediction.step_s:.1%}")
    return table


def memory_table(prediction: StepPrediction) -> Table:
    """Memory of one GPU by line."""
    table = new_table("Memory per GPU")
    table.add_column("line", style="cyan")
    table.add_column("GB", justify="right")
    for line in prediction.memory:
        if line.bytes:
            table.add_row(line.name.replace("_", " "), f"{line.bytes / GB:,.1f}")
    over = prediction.memory_total_bytes - prediction.memory_limit_bytes
    verdict = f"exceeds by {over / GB:.1f}" if over > 0 else f"of {prediction.memory_limit_bytes / GB:,.1f}"
    table.add_row("total", f"{prediction.memory_total_bytes / GB:,.1f} {verdict}", style="bold red" if over > 0 else "bold")
    table.add_row("room for KV", f"{prediction.kv_capacity_tokens / 1e6:,.2f} M tokens per DP rank")
    return table


def flags_text(plan: Plan) -> str:
    """What the flag search found, in sentences."""
    flags = plan.flags
    parts = [f"{flags.tuned:,.0f} tokens/s/GPU ({flags.origin})"]
    if flags.defaults:
        violated = f", violating {', '.join(flags.defaults_violate)}" if flags.defaults_violate else ""
        gain = f"gain {flags.tuned / flags.defaults - 1:+.1%}"
        parts.append(f"engine defaults {flags.defaults:,.0f} at {ms(flags.defaults_latency_s)}{violated} ({gain})")
    if flags.trials:
        study = f"{flags.study:,.0f}" if flags.study else "none feasible"
        parts.append(f"Optuna {study} in {flags.trials} trials, {flags.feasible_trials} feasible")
    if flags.random:
        parts.append(f"random search in {flags.trials or DEFAULT_TRIALS} trials {flags.random:,.0f}")
    if flags.exact:
        parts.append(f"exact optimum {flags.exact:,.0f} of {flags.space_size:,} combinations")
    elif flags.trials:
        parts.append(f"{flags.space_size:,} combinations: too many to enumerate")
    return "; ".join(parts)


def measurements_text(result: SearchResult) -> str:
    """Which measurements would make the choice surer."""
    parts = []
    for value in result.measurements:
        what = "recorded expert loads" if value.family == "balance" else f"{value.family} ({', '.join(value.operators)})"
        gain = f", regret -{value.regret_reduction:.2%}" if value.regret_reduction >= SHOWN_GAIN else ""
        parts.append(f"{what}: {value.variance_share:.0%} of the variance{gain}")
    return "; ".join(parts)


def runners_up_table(result: SearchResult) -> Table:
    """Ranked plans."""
    table = new_table("Plans")
    decode = isinstance(result.best.prediction, Prediction)
    sized = ("seq/rank", "tokens/s/GPU", "TPOT") if decode else ("tokens/rank", "prompt tokens/s/GPU", "one prompt")
    columns = ("#", "layout", *sized, "GPUs", "P(best)", "solver")
    for name in columns:
        table.add_column(name, justify="left" if name in ("layout", "solver") else "right")
    for plan in result.plans:
        p = plan.prediction
        proof = f"{plan.solver.status.lower()}, gap {plan.solver.gap:.1%}"
        pool = plan.deployment.pool
        row = (
            str(plan.rank),
            plan.label,
            f"{pool.batch_per_dp_rank if decode else pool.max_batched_tokens:,}",
            f"{p.tokens_per_s_per_gpu:,.0f}",
            ms(p.latency_s),
            str(p.gpus),
            f"{plan.odds.best_probability:.0%}",
            proof,
        )
        table.add_row(*row, style="bold" if plan.rank == 1 else None)
    return table


def alternatives_table(result: SearchResult) -> Table:
    """Why the other kinds of layout lost."""
    table = new_table("Why not")
    table.add_column("kind of layout", style="cyan")
    table.add_column("best of it")
    table.add_column("reason", overflow="fold")
    for other in result.alternatives:
        table.add_row(other.kind, other.label, other.reason)
    return table


def settings_table(settings: tuple[Setting, ...]) -> Table:
    """Flags set otherwise than the engine would, dearest default first."""
    table = new_table("What the engine's defaults would cost, one at a time")
    for name in ("flag", "chosen", "default", "throughput lost"):
        table.add_column(name, style="cyan" if name == "flag" else None, justify="right" if name == "throughput lost" else "left")
    for setting in sorted(settings, key=lambda s: (not s.violates, -s.loss)):
        broken = f"violates {', '.join(setting.violates)}" if setting.violates else ""
        lost = " and ".join(text for text in (f"{max(setting.loss, 0.0):.1%}", broken) if text)
        table.add_row(setting.name, flag_value(setting.chosen), flag_value(setting.default), lost)
    return table


def flag_value(value: Value) -> str:
    """true and false as engines write them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def sizes_table(result: SearchResult) -> Table:
    """Prefill: the best of every instance size, and what sets it apart."""
    table = new_table("Instance sizes")
    for name in ("GPUs", "best layout", "tokens/rank", "prompt tokens/s/GPU", "compute", "communication", "waiting", "memory"):
        table.add_column(name, justify="left" if name == "best layout" else "right")
    shown = sorted(result.sizes, key=lambda size: -size.tokens_per_s_per_gpu)[:SIZES_SHOWN]
    for size in sorted(shown, key=lambda size: size.gpus):
        shares = (size.compute_share, size.communication_share, size.waiting_share)
        row = (f"{size.tokens_per_rank:,}", f"{size.tokens_per_s_per_gpu:,.0f}", *(f"{share:.0%}" for share in shares))
        table.add_row(str(size.gpus), size.label, *row, f"{size.memory_bytes / GB:,.0f} GB")
    return table


def placement_text(placement: PlannedPlacement) -> str:
    """How balanced the plan's experts are, beside EPLB's."""
    return (
        f"{placement.slots} physical experts placed on {placement.gpus} GPUs for the recorded loads: {placement.balanced:.1%} "
        f"balanced in the worst workload (EPLB's placement {placement.eplb_balanced:.1%}), busiest GPU "
        f"{placement.median_gap:.2%} above the lower bound (median layer). The map lies beside the launch scripts."
    )


def rebalancing_table(result: SearchResult) -> Table:
    """What waiting longer between rebalances leaves uneven, against what moving experts costs."""
    table = new_table("Rebalancing experts (best window of every interval)")
    for name in ("interval, steps", "window, steps", "busiest rank / mean", "tok/s/GPU"):
        table.add_column(name, justify="right")
    best = max(result.rebalancing, key=lambda point: point.tokens_per_s_per_gpu)
    for point in result.rebalancing:
        steps = (f"{point.interval_steps:,}", f"{point.window_steps:,}")
        found = (f"{point.max_over_mean:.3f}", f"{point.tokens_per_s_per_gpu:,.0f}")
        table.add_row(*steps, *found, style="bold" if point is best else "")
    return table


def _if(present: object, part: RenderableType) -> list[RenderableType]:
    """A part and an empty line, or nothing."""
    return [part, ""] if present else []


def search_report(result: SearchResult) -> RenderableType:
    """The whole report of a search."""
    from autotune.exporters import feed_requirement

    best = result.best
    chosen = best.deployment.pool.flags
    flags = "  ".join(f"{name}={flag_value(value)}" for name, value in chosen.items())
    statistics = result.statistics
    searched = (
        f"{statistics.layouts} layouts, {statistics.rows:,} rows costed, {statistics.feasible_rows:,} feasible, "
        f"{statistics.rows_after_pruning} left after exact pruning; "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in statistics.seconds.items())
    )
    parts: list[RenderableType] = [
        Text(best.label, style="bold"),
        headline(best.prediction),
        Text(f"bottleneck: {best.prediction.bottleneck}"),
        Text(odds_line(best)),
        "",
        runners_up_table(result),
        "",
        alternatives_table(result),
        "",
        *_if(result.sizes, sizes_table(result)),
        operator_table(best.prediction),
        "",
        layer_table(best.prediction),
        "",
        memory_table(best.prediction),
        "",
        paragraph("Flags", flags),
        Padding(Text(flags_text(best)), (0, 0, 0, 2)),
        "",
        *_if(best.flags.settings, settings_table(best.flags.settings)),
        *([paragraph("Experts", placement_text(best.placement))] if best.placement else []),
        *([rebalancing_table(result)] if result.rebalancing else []),
        *([paragraph("Measuring would tell most", measurements_text(result))] if result.measurements else []),
        paragraph("Searched", searched),
        paragraph("Assumed", "; ".join(result.assumed) or "nothing"),
        paragraph("Feeding it", feed_requirement(best.deployment, best.prediction.tokens_per_s)),
    ]
    if result.notes:
        parts.append(paragraph("Notes", " ".join(result.notes)))
    return Group(*parts)


def prediction_report(deployment: Deployment, prediction: Prediction | PrefillPrediction) -> RenderableType:
    """The report of one prediction."""
    pool = deployment.pool
    title = f"{deployment.model} on {pool.instances} x {pool.layout.label()}, {deployment.hardware}"
    fits = "fits" if prediction.fits else "DOES NOT FIT"
    if isinstance(prediction, Prediction):
        load = f"mean context {prediction.context_tokens:,.0f} tokens"
    else:
        load = f"{prediction.tokens_per_step:,.0f} tokens, {prediction.prompts_per_step:,.2g} prompts per rank and step"
    parts: list[RenderableType] = [
        Text(title, style="bold"),
        headline(prediction),
        Text(f"bottleneck: {prediction.bottleneck}; memory {fits}; {load}"),
        Text(error_bars(uncertainty(prediction))),
        "",
        operator_table(prediction),
        "",
        layer_table(prediction),
        "",
        memory_table(prediction),
    ]
    if prediction.notes:
        parts += ["", paragraph("Notes", "; ".join(prediction.notes))]
    return Group(*parts)


def service_report(deployment: Deployment, prediction: ServicePrediction) -> RenderableType:
    """The report of a replayed service."""
    pools = ", ".join(f"{name} {pool.instances} x {pool.layout.label()}" for name, pool in deployment.pools.items())
    head = Text()
    head.append(f"{prediction.tokens_per_s_per_gpu:,.0f} tokens/s/GPU", style="bold green")
    head.append(
        f"   {prediction.tokens_per_s:,.0f} tokens/s, {prediction.requests_per_s:,.2f} requests/s on {prediction.gpus} GPUs"
    )
    times = new_table("What requests see")
    for name in ("", "mean", "80 % interval of the mean", "P50", "P95", "P99"):
        times.add_column(name, justify="left" if not name else "right", style="cyan" if not name else None)
    bars = prediction.intervals
    for name, value, bar in (("TTFT", prediction.ttft_s, bars.ttft_s), ("TPOT", prediction.tpot_s, bars.tpot_s)):
        times.add_row(
            name, ms(value.mean), f"{ms(bar.low)} - {ms(bar.high)}", *(ms(x) for x in (value.p50, value.p95, value.p99))
        )
    rate = bars.tokens_per_s_per_gpu
    calibration = f"calibration {prediction.calibration}; intervals: where 80 % of measured services lay"
    load = f"{prediction.decode_sequences:,.0f} of {prediction.decode_slots:,} sequences decode at once"
    return Group(
        Text(f"{deployment.model} on {pools}, {deployment.hardware}", style="bold"),
        head,
        Text(f"80 % interval {rate.low:,.0f}-{rate.high:,.0f} tokens/s/GPU", style="dim"),
        Text(f"{load}; prefill busy at least {prediction.prefill_busy:.0%}; {prediction.requests:,} requests replayed"),
        "",
        times,
        "",
        Text("\n".join((calibration, *prediction.notes))),
    )

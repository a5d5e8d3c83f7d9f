"""`autotune calibrate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli import completing

if TYPE_CHECKING:
    from autotune.calibrating.fits import FittedEntry
    from autotune.calibrating.inputs import Inputs
    from autotune.calibrating.timings import TimingTable
    from autotune.calibrating.traces import KernelTimes
    from autotune.documents.deployment import Deployment
    from autotune.documents.tuned import TrialRecord
    from cost_models.calibration import Calibration, Entry
    from cost_models.specs.hardware import HardwareSpec

    Entries = list[tuple[str, str, Entry]]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("calibrate")(calibrate)


def calibrate(
    hw: Annotated[str, typer.Option("--hw", help="Hardware the measurements were taken on.", autocompletion=completing.hardware)],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Timing tables (.csv, .jsonl, .parquet), profiler traces, benchmark results, trials of `autotune tune`."
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="Engine whose kernels were timed.", autocompletion=completing.engines)] = "vllm",
    silicon: Annotated[bool, typer.Option("--silicon", help="Add the public silicon database (extra silicon).")] = False,
    infersim: Annotated[Path | None, typer.Option(help="Add InferSim's bench_data folder (H20, H800).")] = None,
    deployment: Annotated[Path | None, typer.Option(help="What ran, for traces and benchmark results.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps in a trace that does not mark them.")] = None,
    rules: Annotated[Path | None, typer.Option(help="Your kernel-name rules (YAML) instead of the shipped ones.")] = None,
    out: Annotated[Path, typer.Option(help="New calibration document.")] = Path("calibration.yaml"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fit and show what would change; write nothing.")] = False,
) -> None:
    """Fit a new calibration to measurements, on top of the shipped one."""
    import datetime

    from autotune.calibrating.document import new_document, write_document
    from autotune.calibrating.inputs import read_inputs
    from autotune.errors import ProblemError
    from cost_models.catalog import calibration_for, load_hardware, read_yaml, validated

    hardware = load_hardware(hw)
    base = calibration_for(hardware.gpu.name, engine)
    inputs = read_inputs(files or [])
    tables = [*inputs.tables, *_collections(hardware, engine, silicon, infersim)]
    if not tables and not inputs.traces and not inputs.points and not inputs.trials:
        raise ProblemError("give at least one file of measurements, --silicon or --infersim FOLDER")
    entries: Entries = []
    if tables:
        entries += _fit_tables(tables, hardware, base)
    if inputs.traces or inputs.points:
        from autotune.documents.deployment import Deployment

        if deployment is None:
            raise ProblemError("traces and benchmark results need --deployment FILE: what ran (autotune schema deployment)")
        ran = validated(Deployment, read_yaml(deployment), str(deployment))
        entries += _fit_runs(inputs, ran, base, steps, rules)
    if inputs.trials:
        entries += _fit_trials(inputs.trials, base.with_entries(entries), files or [])
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    document = new_document(base.id, entries, name=out.stem, gpu=hardware.gpu.name, engine=engine, date=today)
    _report_changes(document, hw, engine)
    if inputs.trials:
        _report_service(inputs.trials, document)
    if dry_run:
        typer.echo("dry run: nothing written")
        return
    write_document(document, out)
    typer.echo(f"wrote {out}; use it with --calibration {out}")


def _collections(hardware: HardwareSpec, engine: str, silicon: bool, infersim: Path | None) -> list[TimingTable]:
    """Public collections of timings that were asked for."""
    from autotune.calibrating.infersim import read_infersim
    from autotune.calibrating.silicon import read_silicon

    tables = [read_silicon(hardware.gpu.name, engine)] if silicon else []
    return tables + ([read_infersim(infersim, hardware.gpu.name)] if infersim is not None else [])


def _fit_tables(tables: list[TimingTable], hardware: HardwareSpec, base: Calibration) -> Entries:
    from autotune.calibrating.fits import fit_table
    from autotune.calibrating.timings import merge

    table = merge(tables)
    fitted, skipped = fit_table(table, hardware, base)
    _report_fits(table, fitted, skipped)
    return [(item.family, item.variant, item.entry) for item in fitted]


def _fit_runs(inputs: Inputs, ran: Deployment, base: Calibration, steps: int | None, rules: Path | None) -> Entries:
    """Entries from profiler traces and benchmark results of one deployment."""
    entries: Entries = []
    if inputs.traces:
        entries += _rescaled(inputs.traces, ran, base, steps, rules)
    if inputs.points:
        entries.append(_host(inputs, ran, base))
    return entries


def _rescaled(
    traces: Sequence[KernelTimes], ran: Deployment, base: Calibration, steps: int | None, rules: Path | None
) -> Entries:
    from autotune.calibrating.rescaling import rescale, traced_steps
    from autotune.calibrating.traces import load_rules

    known = load_rules(rules)
    traced = [step for trace in traces for step in traced_steps(ran, trace, known, steps)]
    context = f"{ran.model} on {ran.pool.layout.label()}, {ran.hardware}, " + ", ".join(step.label for step in traced)
    results = rescale(traced, base, context[:CONTEXT_KEPT])
    if any(step.measured.apart for step in traced):
        typer.echo("steps of the traces that the deployment explains: " + ", ".join(step.label for step in traced))
    for item in results:
        scaled = ", ".join(f"{family}.{variant}" for family, variant, _ in item.entries) or "nothing to scale"
        times = f"{_ms(item.measured_s)} ms measured, {_ms(item.predicted_s)} ms predicted, x{item.ratio:.2f}"
        typer.echo(f"{item.family:12s} {times}: {scaled}")
    for measured in (step.measured for step in traced):
        if measured.idle_s is not None and not measured.apart:
            typer.echo(f"{'idle':12s} {measured.idle_s * 1e3:9.3f} ms per step without a kernel (host and launch gaps)")
    unknown = max((step.measured.unknown for step in traced), key=len)
    for name, count, share in unknown[:UNKNOWN_SHOWN]:
        typer.echo(f"unknown kernel, {count} launches, {share:.1%} of kernel time: {name[:NAME_SHOWN]}")
    if len(unknown) > UNKNOWN_SHOWN:
        typer.echo(f"... and {len(unknown) - UNKNOWN_SHOWN} more unknown kernels")
    return [entry for item in results for entry in item.entries]


def _ms(seconds: Sequence[float]) -> str:
    return " / ".join(f"{each * 1e3:.3f}" for each in seconds[:STEPS_SHOWN]) + (" / ..." if len(seconds) > STEPS_SHOWN else "")


def _host(inputs: Inputs, ran: Deployment, base: Calibration) -> tuple[str, str, Entry]:
    from autotune.calibrating.benchmarks import HOST, fit_host, host_points

    points = host_points(inputs.points, ran)
    entry, warnings = fit_host(points, base.entry(*HOST), ran.pool.dp)
    for item in points:
        predicted_s = item.gpu_s + item.host_s
        typer.echo(
            f"{item.point.kind}: {item.sequences_per_rank} sequences per rank, step {item.measured_step_s * 1e3:.2f} ms "
            f"measured, {predicted_s * 1e3:.2f} ms predicted, of which host {item.host_s * 1e3:.2f} ms"
        )
    for warning in warnings:
        typer.echo(f"warning: {warning}")
    if inputs.ignored:
        typer.echo(f"left out: {inputs.ignored} objects that are no benchmark results")
    fitted = ", ".join(f"{name} {entry.coefficients[name] * 1e3:.3f} ms" for name in ("step_s", "per_sequence_s"))
    typer.echo(f"host: {fitted}; median error {entry.fit.median_error:.1%} of a step" if entry.fit else f"host: {fitted}")
    return (*HOST, entry)


def _fit_trials(trials: Sequence[TrialRecord], base: Calibration, files: Sequence[Path]) -> Entries:
    """Host, gaps, overlap and queueing from tuned services."""
    from autotune.calibrating.service_trials import fit_service
    from autotune.calibrating.timings import sha256_of

    source = "tuned trials: " + "; ".join(f"{path.name} sha256 {sha256_of(path)}" for path in files if path.suffix == ".jsonl")
    fit = fit_service(trials, base, source)
    typer.echo(
        f"{fit.trials} tuned trials; mean error before -> after" + (" (every second one held out)" if fit.held_out else "")
    )
    for name, was in fit.before.items():
        held = f" ({fit.held_out[name]:.1%})" if name in fit.held_out else ""
        typer.echo(f"  {name:24s} {was:7.1%} -> {fit.after[name]:.1%}{held}")
    for movable, was, now in fit.moved:
        typer.echo(f"  {movable.family}.{movable.name}: {was:.3g} -> {now:.3g}")
    if not fit.moved:
        typer.echo("  no coefficient moved: what is left of the error is the kernels' (autotune measure times them)")
    return list(fit.entries)


def _report_service(trials: Sequence[TrialRecord], document: dict[str, object]) -> None:
    """The best service for what was tuned, with the old and the new document."""
    from autotune.calibrating.document import as_file
    from autotune.calibrating.service_trials import service_change

    with as_file(document) as path:
        change = service_change(trials, path, {})
    if change is not None:
        chosen = change.after if change.before == change.after else f"{change.before} -> {change.after}"
        same = "unchanged" if change.before == change.after else "CHANGED"
        typer.echo(f"service plan {same}: {chosen}, {change.rate_before:,.0f} -> {change.rate_after:,.0f} tokens/s/GPU")


CONTEXT_KEPT = 300
STEPS_SHOWN = 4
UNKNOWN_SHOWN = 8
NAME_SHOWN = 100


def _report_fits(table: TimingTable, fitted: list[FittedEntry], skipped: dict[str, str]) -> None:
    from autotune.report.printing import new_table, show

    view = new_table("Fits")
    for column in ("operator", "variant", "fitted rows", "held out", "median error", "P90", "bias"):
        view.add_column(column, justify="left" if column in ("operator", "variant") else "right")
    for item in fitted:
        fit = item.fit
        errors = (f"{fit.median_error:.1%}", f"{fit.p90_error:.1%}", f"{fit.bias:+.1%}")
        view.add_row(item.family, item.variant, str(fit.points), str(fit.held_out), *errors)
    show(view)
    for name, reason in skipped.items():
        typer.echo(f"not fitted: {name}: {reason}")
    for reason, count in table.dropped.items():
        if count:
            typer.echo(f"left out: {count:,} rows: {reason}")


def _report_changes(document: dict[str, object], hw: str, engine: str) -> None:
    """Predictions of published cases and the plan for the default question, with the old and the new document."""
    from autotune.calibrating.document import changes, plan_change

    for change in changes(document):
        typer.echo(f"{change.case}: {change.before:,.0f} -> {change.after:,.0f} tokens/s/GPU ({change.relative:+.1%})")
    plan = plan_change(document, hw, engine)
    if plan is not None:
        chosen = plan.after if plan.before == plan.after else f"{plan.before} -> {plan.after}"
        same = "unchanged" if plan.before == plan.after else "CHANGED"
        typer.echo(f"default decode plan {same}: {chosen}, {plan.rate_before:,.0f} -> {plan.rate_after:,.0f} tokens/s/GPU")

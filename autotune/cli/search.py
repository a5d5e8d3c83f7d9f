"""`autotune search`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autotune.cli.parsing import duration_s, rates

if TYPE_CHECKING:
    from autotune.problem import Problem
    from autotune.searching import SearchRun


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("search")(search)


def search(
    hw: Annotated[str | None, typer.Option("--hw", help="Catalogue name (autotune hw list) or your own YAML file.")] = None,
    target: Annotated[str | None, typer.Option(help="What to plan: decode, prefill or serve.")] = None,
    model: Annotated[str | None, typer.Option(help="Preset or path to a Hugging Face config.json.")] = None,
    precision: Annotated[str | None, typer.Option(help="Precision recipe; the best one the hardware runs by default.")] = None,
    engine: Annotated[str | None, typer.Option(help="vllm, sglang, trtllm or vllm-ascend.")] = None,
    engine_version: Annotated[str | None, typer.Option(help="Newest supported by default.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Your own calibration document.")] = None,
    isl: Annotated[int | None, typer.Option(help="Mean input tokens.")] = None,
    osl: Annotated[int | None, typer.Option(help="Mean output tokens.")] = None,
    context: Annotated[float | None, typer.Option(help="Mean context while decoding, where measured.")] = None,
    mtp_acceptance: Annotated[str | None, typer.Option(help="Acceptance per draft, e.g. 0.8,0.6: searches MTP.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPU budget; one scale-up domain by default.")] = None,
    objective: Annotated[str | None, typer.Option(help="tokens_per_s_per_gpu, tokens_per_s, tpot or ttft.")] = None,
    tpot: Annotated[str | None, typer.Option(help="Limit on time per output token, e.g. 100ms.")] = None,
    ttft: Annotated[str | None, typer.Option(help="Prefill: limit on one prompt when nothing waits, e.g. 2s.")] = None,
    cached: Annotated[float | None, typer.Option(help="Share of input tokens found in the prefix cache.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Sequences that must decode at once.")] = None,
    throughput: Annotated[
        float | None, typer.Option(help="Tokens/s that must be reached: generated, or of prompts for prefill.")
    ] = None,
    memory_fraction: Annotated[float | None, typer.Option(help="Share of device memory a plan may fill.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Plans with distinct layouts to return.")] = None,
    trials: Annotated[int | None, typer.Option(help="Flag trials for the winning layout.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of CP-SAT and Optuna.")] = None,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL; resumes a study found there.")] = None,
    problem: Annotated[Path | None, typer.Option(help="YAML problem file; options override it.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that receives the run folder.")] = Path("results"),
    save: Annotated[bool, typer.Option(help="Write the run folder.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the report.")] = False,
) -> None:
    """Find the best deployment: layout, flags, prediction and launch scripts."""
    from autotune.records import check_writable, write_run

    options: dict[str, Any] = {
        "hardware": hw,
        "target": target,
        "model": model,
        "precision": precision,
        "engine": engine,
        "engine_version": engine_version,
        "calibration": {"file": str(calibration)} if calibration else None,
        "gpus": gpus,
        "objective": objective,
        "tpot_limit_s": duration_s(tpot) if tpot else None,
        "ttft_limit_s": duration_s(ttft) if ttft else None,
        "min_concurrency": concurrency,
        "min_tokens_per_s": throughput,
        "memory_fraction": memory_fraction,
        "top_k": top_k,
        "trials": trials,
        "seed": seed,
        "storage": storage,
    }
    workload = {
        "isl_tokens": isl,
        "osl_tokens": osl,
        "mean_context_tokens": context,
        "prefix_cache_hit_rate": cached,
        "mtp_acceptance": rates(mtp_acceptance) if mtp_acceptance else None,
    }
    asked = problem_from(options, workload, problem)
    if save:
        check_writable(out)
    run = _run(asked, quiet=json)
    record = write_run(out, asked, run.result, run.trials, sys.argv) if save else None
    if json:
        typer.echo(run.result.model_dump_json(indent=2))
        return
    from autotune.report.tables import search_report, show

    show(search_report(run.result))
    if record:
        typer.echo(f"\nwrote {record.folder}")
        if record.launch_note:
            typer.echo(record.launch_note)


def problem_from(options: dict[str, Any], workload: dict[str, Any], file: Path | None) -> Problem:
    """A problem file with the given options on top; unset ones keep the defaults."""
    from autotune.errors import ProblemError
    from autotune.problem import DEFAULT_LENGTH_TOKENS, Problem
    from cost_models.catalog import read_yaml, validated

    data: Any = read_yaml(file) if file else {}
    if not isinstance(data, dict):
        data = {"": data}
    data = {**data, **{name: value for name, value in options.items() if value is not None}}
    given = {name: value for name, value in workload.items() if value is not None}
    if given:
        base = data.get("workload") or {"isl_tokens": DEFAULT_LENGTH_TOKENS, "osl_tokens": DEFAULT_LENGTH_TOKENS}
        data["workload"] = {**base, **given} if isinstance(base, dict) else base
    if "hardware" not in data:
        raise ProblemError("give the hardware: --hw gb200-nvl72 (see autotune hw list)")
    return validated(Problem, data, str(file) if file else "search options")


def _run(problem: Problem, *, quiet: bool) -> SearchRun:
    """Run with a progress bar on the error stream when someone watches."""
    from autotune.searching import Progress, run_search

    if quiet or not sys.stderr.isatty() or not problem.trials:
        return run_search(problem)
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=problem.trials)
        progress = Progress(on_trial=lambda: bar.advance(task), on_stage=lambda name: bar.update(task, description=name))
        return run_search(problem, progress)

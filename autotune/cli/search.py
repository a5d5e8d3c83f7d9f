"""`autotune search`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autotune.cli import completing
from autotune.cli.parsing import acceptance, duration_s

if TYPE_CHECKING:
    from autotune.documents.candidates import Candidates
    from autotune.documents.plan import SearchResult
    from autotune.documents.problem import Problem
    from autotune.documents.service_plan import ServiceResult
    from autotune.flags.study import TrialRow


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("search")(search)


def search(
    hw: Annotated[
        str | None,
        typer.Option("--hw", help="Catalogue name (autotune hw list) or your own YAML file.", autocompletion=completing.hardware),
    ] = None,
    target: Annotated[str | None, typer.Option(help="What to plan: decode, prefill or serve.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Preset or path to a Hugging Face config.json.", autocompletion=completing.models)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Precision recipe; the best one the hardware runs by default.", autocompletion=completing.precisions),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="vllm, sglang, trtllm or vllm-ascend.", autocompletion=completing.engines)
    ] = None,
    engine_version: Annotated[str | None, typer.Option(help="Newest supported by default.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Your own calibration document.", autocompletion=completing.calibrations)
    ] = None,
    isl: Annotated[int | None, typer.Option(help="Mean input tokens.")] = None,
    osl: Annotated[int | None, typer.Option(help="Mean output tokens.")] = None,
    context: Annotated[float | None, typer.Option(help="Mean context while decoding, where measured.")] = None,
    mtp_acceptance: Annotated[
        str | None, typer.Option(help="Acceptance per draft (0.8,0.6), or the text of a published curve (coding): searches MTP.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="GPU budget; one scale-up domain by default.")] = None,
    objective: Annotated[str | None, typer.Option(help="tokens_per_s_per_gpu, tokens_per_s, tpot or ttft.")] = None,
    confidence: Annotated[float | None, typer.Option(help="Every limit must hold with this probability, e.g. 0.9.")] = None,
    tpot: Annotated[str | None, typer.Option(help="Limit on time per output token, e.g. 100ms.")] = None,
    ttft: Annotated[str | None, typer.Option(help="Prefill: limit on one prompt when nothing waits, e.g. 2s.")] = None,
    ttft_p50: Annotated[str | None, typer.Option(help="Serve: limit on the median time to first token.")] = None,
    ttft_p95: Annotated[str | None, typer.Option(help="Serve: limit on its 95th percentile.")] = None,
    ttft_p99: Annotated[str | None, typer.Option(help="Serve: limit on its 99th percentile; 3 s if none is given.")] = None,
    rate: Annotated[float | None, typer.Option(help="Serve: requests/s to carry; without a load, as many as possible.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Serve: Azure or Mooncake request trace to carry.")] = None,
    prefill_hw: Annotated[
        str | None,
        typer.Option("--prefill-hw", help="Serve: other hardware for the prefill pool.", autocompletion=completing.hardware),
    ] = None,
    prefill_gpus: Annotated[int | None, typer.Option(help="Serve: GPU budget of that hardware.")] = None,
    prefill_precision: Annotated[
        str | None, typer.Option(help="Serve: precision recipe of that hardware.", autocompletion=completing.precisions)
    ] = None,
    gpu_hour_usd: Annotated[float | None, typer.Option(help="Serve: price of a GPU hour; ranks by cost.")] = None,
    prefill_gpu_hour_usd: Annotated[float | None, typer.Option(help="Serve: the same of the prefill hardware.")] = None,
    cached: Annotated[float | None, typer.Option(help="Share of input tokens found in the prefix cache.")] = None,
    expert_load: Annotated[list[Path] | None, typer.Option(help="Recorded expert loads, one file per workload.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Sequences to decode at once; serve: requests in flight.")] = None,
    throughput: Annotated[
        float | None, typer.Option(help="Tokens/s that must be reached: generated, or of prompts for prefill.")
    ] = None,
    drafter: Annotated[
        str | None, typer.Option(help="Published drafter (EAGLE-3, DSpark) or its config.json, with an acceptance.")
    ] = None,
    memory_fraction: Annotated[float | None, typer.Option(help="Share of device memory a plan may fill.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Plans with distinct layouts to return.")] = None,
    trials: Annotated[int | None, typer.Option(help="Also study the best layout's flags with Optuna, so often.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of Optuna, of random search and of CP-SAT.")] = None,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL; resumes a study found there.")] = None,
    problem: Annotated[Path | None, typer.Option(help="YAML problem file; options override it.")] = None,
    out: Annotated[Path, typer.Option(help="Folder that receives the run folder.")] = Path("results"),
    save: Annotated[bool, typer.Option(help="Write the run folder.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the report.")] = False,
) -> None:
    """Find the best deployment: layout, flags, prediction and launch scripts."""
    from autotune.documents.plan import SearchResult
    from autotune.documents.problem import DEFAULT_MODEL
    from autotune.files import check_writable

    serve = target == "serve" or (target is None and _named_in(problem, "target") == "serve")
    served = str(model or _named_in(problem, "model") or DEFAULT_MODEL)
    percentiles = {"p50": ttft_p50, "p95": ttft_p95, "p99": ttft_p99}
    load = {"rate_per_s": rate, "concurrency": concurrency if serve else None, "trace": str(trace) if trace else None}
    options: dict[str, Any] = {
        "hardware": hw,
        "target": target,
        "model": model,
        "precision": precision,
        "engine": engine,
        "engine_version": engine_version,
        "calibration": {"file": str(calibration)} if calibration else None,
        "expert_load": [str(path) for path in expert_load] if expert_load else None,
        "gpus": gpus,
        "objective": objective,
        "confidence": confidence,
        "tpot_limit_s": duration_s(tpot) if tpot else None,
        "ttft_limit_s": duration_s(ttft) if ttft else None,
        **{f"ttft_{name}_limit_s": duration_s(v) if v else None for name, v in percentiles.items()},
        "load": {name: value for name, value in load.items() if value is not None} or None,
        "prefill_hardware": prefill_hw,
        "prefill_gpus": prefill_gpus,
        "prefill_precision": prefill_precision,
        "gpu_hour_usd": gpu_hour_usd,
        "prefill_gpu_hour_usd": prefill_gpu_hour_usd,
        "min_concurrency": None if serve else concurrency,
        "min_tokens_per_s": throughput,
        "drafter": drafter,
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
        "mtp_acceptance": acceptance(mtp_acceptance, served, drafter) if mtp_acceptance else None,
    }
    asked = problem_from(options, workload, problem)
    if save:
        check_writable(out)
    result, rows, candidates = _run_services(asked) if serve else _run(asked, quiet=json, keep=save)
    record = None
    if save:
        from autotune.report.page.folder import save_run

        record = save_run(out, asked, result, rows, candidates, sys.argv)
    if json:
        typer.echo(result.model_dump_json(indent=2))
        return
    from autotune.report.printing import show
    from autotune.report.services import service_search_report
    from autotune.report.tables import search_report

    show(search_report(result) if isinstance(result, SearchResult) else service_search_report(result))
    if record:
        typer.echo(f"\nwrote {record.folder}")
        if record.launch_note:
            typer.echo(record.launch_note)


def problem_from(options: dict[str, Any], workload: dict[str, Any], file: Path | None) -> Problem:
    """A problem file with the given options on top; unset ones keep the defaults."""
    from autotune.documents.problem import DEFAULT_LENGTH_TOKENS, Problem
    from autotune.errors import ProblemError
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


def _named_in(file: Path | None, key: str) -> Any:
    """What a problem file says of a key; none without a file, or where it says nothing."""
    from cost_models.catalog import read_yaml

    data: Any = read_yaml(file) if file else None
    return data.get(key) if isinstance(data, dict) else None


Run = tuple["SearchResult | ServiceResult", dict[int, tuple["TrialRow", ...]], "Candidates | None"]


def _run_services(problem: Problem) -> Run:
    """Plan a service; there are no flag trials to show."""
    from autotune.searching.services.searching import search_services

    return search_services(problem), {}, None


def _run(problem: Problem, *, quiet: bool, keep: bool) -> Run:
    """Run with a progress bar on the error stream when someone watches; keep : whether its candidates are wanted."""
    from autotune.progress import Progress
    from autotune.searching.pools import run_search

    if quiet or not sys.stderr.isatty() or not problem.trials:
        run = run_search(problem)
        return run.result, run.trials, run.candidates if keep else None
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=problem.trials)
        progress = Progress(on_trial=lambda: bar.advance(task), on_stage=lambda name: bar.update(task, description=name))
        run = run_search(problem, progress)
        return run.result, run.trials, run.candidates if keep else None

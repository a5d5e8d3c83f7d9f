"""`autotune tune`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli import completing

if TYPE_CHECKING:
    from autotune.tuning.drivers.base import Driver
    from autotune.tuning.tuner import Budget
    from search_spaces.schema import Value


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("tune")(tune)


def tune(
    plan: Annotated[
        Path,
        typer.Argument(help="Run folder, plan.yaml or deployment file of an aggregated service.", autocompletion=completing.runs),
    ],
    slo: Annotated[
        list[str] | None, typer.Option(help="Limit, e.g. ttft-p99=2s or tpot=50ms; the plan's own where none is given.")
    ] = None,
    budget: Annotated[str, typer.Option(help="Trials (20), or time of this session (90m).")] = "20",
    load: Annotated[str, typer.Option(help="Load generator: vllm, guidellm, aiperf or sglang.")] = "vllm",
    rank: Annotated[int, typer.Option(help="Which plan of a run folder.")] = 1,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="Knob or engine option and its values, instead of the usual ones: max_num_seqs=128,256 or --block-size=16,32."
        ),
    ] = None,
    same_layout: Annotated[bool, typer.Option("--same-layout", help="Keep the layout.")] = False,
    fixed_load: Annotated[bool, typer.Option("--fixed-load", help="Keep the load.")] = False,
    rounds: Annotated[
        int, typer.Option(min=1, help="Requests of a run over those in flight (quarters of a minute at a rate).")
    ] = 4,
    engine_args: Annotated[str, typer.Option(help="Words for every engine command, e.g. '--load-format dummy'.")] = "",
    load_args: Annotated[str, typer.Option(help="Words for every load generator command.")] = "",
    model: Annotated[
        str | None, typer.Option(help="Folder or name that the engine loads instead of the plan's checkpoint.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="What the load generator reads the tokenizer of; what is loaded by default.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Of local servers; a free one by default.")] = None,
    start_limit: Annotated[str, typer.Option(help="For a server to become healthy.")] = "15m",
    warm_up: Annotated[bool, typer.Option("--warm-up/--no-warm-up", help="A load that does not count after every start.")] = True,
    url: Annotated[str | None, typer.Option(help="A service that is up already: only its load is varied.")] = None,
    apply: Annotated[
        str | None, typer.Option(help="Command that starts a server on a cluster, with {folder} and {name}.")
    ] = None,
    delete: Annotated[str | None, typer.Option(help="Command that ends it, with {folder}, {name} and {id}.")] = None,
    forward: Annotated[str, typer.Option(help="Command that makes it reachable on {port}, kept running.")] = "",
    logs: Annotated[str, typer.Option(help="Command that prints its log.")] = "",
    reach: Annotated[str, typer.Option(help="Where a server of --apply is reached.")] = "http://127.0.0.1:{port}",
    format: Annotated[str, typer.Option("--format", help="What --apply is given: lws, sbatch, compose, bash, ...")] = "lws",
    image: Annotated[str | None, typer.Option(help="Container image of the engine for --apply.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the study.")] = Path("tuned"),
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage URL, shared by workers; a file in the folder by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study of the folder or storage.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of the report.")] = False,
) -> None:
    """Search on a live engine, warm-started by the model: start, load, learn, until nothing is worth trying."""
    from autotune.cli.parsing import duration_s, limits_of
    from autotune.cli.watching import tuning_watched
    from autotune.tuning.generators.registry import check_installed, load_generator
    from autotune.tuning.session import TuneQuestion, TuneSession, question_of

    deployment, limits = question_of(plan, rank, limits_of(slo or []))
    question = TuneQuestion(
        deployment=deployment,
        limits=limits,
        knobs=dict(varied(text) for text in vary) if vary else None,
        same_layout=same_layout,
        fixed_load=fixed_load,
        rounds=rounds,
        engine_options=tuple(shlex.split(engine_args)),
        load_options=tuple(shlex.split(load_args)),
    )
    tool = load_generator(load)
    check_installed(tool)
    start_limit_s = duration_s(start_limit)
    driver: Driver
    if url is not None:
        from autotune.tuning.drivers.remote import RemoteDriver

        driver = RemoteDriver(url)
    elif apply is not None:
        driver = cluster_driver(apply, delete, forward, logs, reach, format, image, start_limit_s)
    else:
        from autotune.tuning.drivers.local import LocalDriver

        driver = LocalDriver(model=model, port=port, start_limit_s=start_limit_s)
    with tuning_watched(limits, quiet=json) as watch:
        session = TuneSession(
            question, driver, tool, out, budget_of(budget), storage, resume, watch, tokenizer=tokenizer or model, warm_up=warm_up
        )
        result = session.run()
    if json:
        typer.echo(result.model_dump_json(indent=2))
        return
    from autotune.report.printing import show
    from autotune.report.tuning import tuning_report

    show(tuning_report(result))
    typer.echo(
        f"\nwrote {out}: plan.yaml, deployment.yaml and launch/ of the winner, tune.json, trials.jsonl, every log in trials/"
    )
    typer.echo(f"next: autotune calibrate {out / 'trials.jsonl'} --hw {deployment.hardware} --dry-run")


def budget_of(text: str) -> Budget:
    """'20' trials, or '90m' of time; raises ProblemError for neither."""
    from autotune.cli.parsing import duration_s
    from autotune.errors import ProblemError
    from autotune.tuning.tuner import Budget

    if text.strip().isdigit():
        if int(text) < 1:
            raise ProblemError("--budget 0: one trial at least")
        return Budget(trials=int(text))
    try:
        return Budget(seconds=duration_s(text))
    except ProblemError as error:
        raise ProblemError(f"--budget '{text}' is neither a number of trials (20) nor a time (90m)") from error


def varied(text: str) -> tuple[str, tuple[Value, ...]]:
    """'max_num_seqs=128,256' -> its name and values; raises ProblemError for text without values."""
    from autotune.errors import ProblemError

    name, found, values = text.partition("=")
    words = [word.strip() for word in values.split(",") if word.strip()]
    if not found or not name.strip() or not words:
        raise ProblemError(f"--vary '{text}' is not of the form name=value,value")
    return name.strip(), tuple(_value(word) for word in words)


def _value(word: str) -> Value:
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def cluster_driver(
    apply: str, delete: str | None, forward: str, logs: str, reach: str, format: str, image: str | None, start_limit_s: float
) -> Driver:
    """Commands of the user's own; raises ProblemError without the one that ends what was started."""
    from autotune.errors import ProblemError
    from autotune.exporters.targets.base import TargetOptions
    from autotune.exporters.targets.registry import load_target
    from autotune.tuning.drivers.command import CommandDriver

    if delete is None:
        raise ProblemError("--apply needs --delete: what is started must be ended, by whoever goes on after a crash too")
    load_target(format)
    return CommandDriver(
        apply=apply,
        delete=delete,
        url=reach,
        forward=forward,
        logs=logs,
        target=format,
        options=TargetOptions(image=image),
        start_limit_s=start_limit_s,
    )

"""`autotune check`, `autotune sensitivity` and `autotune verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autotune.cli import completing

if TYPE_CHECKING:
    from autotune.auditing.commands import ReadCommand
    from autotune.auditing.goals import Goals
    from autotune.documents.deployment import Deployment, Load
    from autotune.manifests.judging import GivenToo

File = Annotated[
    Path,
    typer.Argument(help="Deployment file, run folder, script, or manifest that starts an engine (docs/auditing.md lists them)."),
]
Hardware = Annotated[str | None, typer.Option("--hw", help="For a script: what it runs on.", autocompletion=completing.hardware)]
Version = Annotated[str | None, typer.Option(help="For a script: the engine's version; the newest known by default.")]
Prompt = Annotated[int | None, typer.Option(help="For a script: input tokens (those of the file's benchmark, or 2000).", min=1)]
Answer = Annotated[int | None, typer.Option(help="For a script: output tokens (those of the file's benchmark, or 2000).", min=1)]
Service = Annotated[str | None, typer.Option(help="For a file that starts several engines: which of them is meant.")]
Size = Annotated[int | None, typer.Option(help="For a script: sequences (decode) or tokens (prefill) per DP rank.", min=1)]
Acceptance = Annotated[str | None, typer.Option(help="For a script that drafts: acceptance per draft, e.g. 0.8,0.6.")]
TtftP50 = Annotated[str | None, typer.Option(help="Limit on the median TTFT of a service.")]
TtftP95 = Annotated[str | None, typer.Option(help="Limit on the TTFT of 95 % of a service's requests.")]
TtftP99 = Annotated[str | None, typer.Option(help="Limit on the TTFT of 99 % of a service's requests.")]
Rate = Annotated[float | None, typer.Option(help="Requests/s that a service is sent.", min=0)]
Clients = Annotated[int | None, typer.Option(help="Requests kept in flight at a service, instead of a rate.", min=1)]
Model = Annotated[
    str | None,
    typer.Option(
        help="For a script: what it serves (preset, checkpoint, folder or config.json).", autocompletion=completing.models
    ),
]
Precision = Annotated[
    str | None, typer.Option(help="For a script: what its weights are stored in, where its name does not tell.")
]
Variables = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="For a script: a variable that it takes from outside; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@dataclass(frozen=True, slots=True)
class ScriptOptions:
    """What a script does not say."""

    hw: str | None
    engine_version: str | None
    isl: int | None
    osl: int | None
    size: int | None
    mtp_acceptance: str | None
    model: str | None
    precision: str | None
    service: str | None
    variables: tuple[str, ...] = ()
    """NAME=VALUE each."""


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("check")(check)
    app.command("sensitivity")(sensitivity)
    app.command("verify")(verify)


def check(
    deployment: File,
    tpot: Annotated[str | None, typer.Option(help="Limit on the time per output token, e.g. 50ms.")] = None,
    ttft: Annotated[str | None, typer.Option(help="Limit on the time of one prompt (prefill), or on the mean (service).")] = None,
    ttft_p50: TtftP50 = None,
    ttft_p95: TtftP95 = None,
    ttft_p99: TtftP99 = None,
    throughput: Annotated[float | None, typer.Option(help="Tokens/s of all instances.", min=0)] = None,
    concurrency: Annotated[int | None, typer.Option(help="Sequences that must decode at once.", min=1)] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of every sequence that must fit at once.", min=1)] = None,
    rate: Rate = None,
    clients: Clients = None,
    hw: Hardware = None,
    engine_version: Version = None,
    isl: Prompt = None,
    osl: Answer = None,
    size: Size = None,
    mtp_acceptance: Acceptance = None,
    model: Model = None,
    precision: Precision = None,
    service: Service = None,
    variables: Variables = None,
    json: AsJson = False,
) -> None:
    """Judge a plan: does it start, fit, meet its goals, what bounds it, which smallest changes help.

    Exit 0: it works. 2: it does not work. 3: it cannot be said, because an option is not modelled that the answer rests on.
    """
    from autotune.auditing.checking import check as judge
    from autotune.auditing.verdict import EXIT_CODES

    limits = {"tpot_s": tpot, "ttft_s": ttft, "ttft_p50_s": ttft_p50, "ttft_p95_s": ttft_p95, "ttft_p99_s": ttft_p99}
    goals = read_goals(limits, tokens_per_s=throughput, concurrency=concurrency, context_tokens=context)
    script = ScriptOptions(hw, engine_version, isl, osl, size, mtp_acceptance, model, precision, service, tuple(variables or ()))
    plan = read_plan(deployment, script, read_load(rate, clients))
    check_asked(goals, plan.deployment)
    verdict = judge(plan.deployment, goals, plan)
    if json:
        typer.echo(verdict.model_dump_json(indent=2))
    else:
        from autotune.report.auditing import verdict_report
        from autotune.report.printing import show

        show(verdict_report(verdict))
    if code := EXIT_CODES[verdict.answer]:
        raise typer.Exit(code)


def sensitivity(
    deployment: File,
    throughput: Annotated[float | None, typer.Option(help="Goal: tokens/s of all instances.", min=0)] = None,
    tpot: Annotated[str | None, typer.Option(help="Goal: time per output token, e.g. 50ms.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Tornado plot to write (.png, extra plots).")] = None,
    hw: Hardware = None,
    engine_version: Version = None,
    isl: Prompt = None,
    osl: Answer = None,
    size: Size = None,
    mtp_acceptance: Acceptance = None,
    model: Model = None,
    precision: Precision = None,
    service: Service = None,
    json: AsJson = False,
) -> None:
    """How much throughput moves with bandwidths, FLOPS, imbalance and load, and what a goal would take."""
    from autotune.auditing.sensitivity import sensitivity as vary
    from autotune.cli.parsing import duration_s

    found = vary(
        _warn(
            read_plan(deployment, ScriptOptions(hw, engine_version, isl, osl, size, mtp_acceptance, model, precision, service))
        ).deployment,
        throughput,
        duration_s(tpot) if tpot else None,
    )
    if plot is not None:
        from autotune.auditing.plots import tornado

        tornado(found, plot)
    if json:
        typer.echo(found.model_dump_json(indent=2))
        return
    from autotune.report.auditing import sensitivity_report
    from autotune.report.printing import show

    show(sensitivity_report(found))
    if plot is not None:
        typer.echo(f"wrote {plot}")


def verify(
    results: Annotated[list[Path], typer.Argument(help="Results of vllm bench serve or latency, or SGLang bench_serving.")],
    deployment: Annotated[Path, typer.Option(help="What ran: a deployment file, a run folder, or the script that started it.")],
    tpot: Annotated[str | None, typer.Option(help="Limit that the run had to meet, e.g. 50ms.")] = None,
    ttft_p50: TtftP50 = None,
    ttft_p95: TtftP95 = None,
    ttft_p99: TtftP99 = None,
    throughput: Annotated[float | None, typer.Option(help="Tokens/s that the run had to reach.", min=0)] = None,
    rate: Rate = None,
    clients: Clients = None,
    hw: Hardware = None,
    engine_version: Version = None,
    isl: Prompt = None,
    osl: Answer = None,
    size: Size = None,
    mtp_acceptance: Acceptance = None,
    model: Model = None,
    precision: Precision = None,
    service: Service = None,
    variables: Variables = None,
    json: AsJson = False,
) -> None:
    """Compare a measured run with its prediction. Exit 2: outside the error bars, or over a limit."""
    from autotune.auditing.verifying import verify as compare

    script = ScriptOptions(hw, engine_version, isl, osl, size, mtp_acceptance, model, precision, service, tuple(variables or ()))
    plan = _warn(read_plan(deployment, script, read_load(rate, clients))).deployment
    limits = {"tpot_s": tpot, "ttft_p50_s": ttft_p50, "ttft_p95_s": ttft_p95, "ttft_p99_s": ttft_p99}
    goals = read_goals(limits, tokens_per_s=throughput)
    check_asked(goals, plan)
    points = compare(results, plan, goals)
    if json:
        import json as documents

        typer.echo(documents.dumps([point.model_dump(mode="json") for point in points], indent=2))
    else:
        from autotune.report.auditing import verification_report
        from autotune.report.printing import show

        show(verification_report(points))
    if not all(point.passed for point in points):
        raise typer.Exit(2)


def read_goals(limits: dict[str, str | None], **counted: float | None) -> Goals:
    """Goals from durations as they are typed."""
    from autotune.auditing.goals import Goals
    from autotune.cli.parsing import duration_s
    from cost_models.catalog import validated

    return validated(Goals, {**counted, **{name: duration_s(limit) for name, limit in limits.items() if limit}}, "goals")


def read_load(rate: float | None, clients: int | None) -> Load | None:
    """What a service is sent, where it is said here."""
    from autotune.documents.deployment import Load
    from autotune.errors import ProblemError
    from cost_models.catalog import validated

    if rate and clients:
        raise ProblemError("give either --rate (open loop) or --clients (closed loop), not both")
    return validated(Load, {"rate_per_s": rate, "concurrency": clients}, "--rate or --clients") if rate or clients else None


def check_asked(goals: Goals, deployment: Deployment) -> None:
    """Goals that the deployment's phase does not have would be passed over in silence."""
    from autotune.auditing.goals import GOALS_OF
    from autotune.errors import ProblemError

    given = goals.model_dump(exclude_none=True)
    if foreign := sorted(set(given) - set(GOALS_OF[deployment.phase])):
        raise ProblemError(
            f"{', '.join(foreign)} cannot be judged of phase {deployment.phase}, only {', '.join(GOALS_OF[deployment.phase])}; "
            "a script that both prefills and decodes is judged as a service with --rate or --clients"
        )


def read_plan(file: Path, script: ScriptOptions, load: Load | None = None) -> ReadCommand:
    """A deployment file, the best plan of a run folder, or what a script or manifest starts."""
    from autotune.auditing.commands import ReadCommand
    from autotune.errors import ProblemError
    from autotune.manifests.judging import read_manifest
    from autotune.manifests.registry import read_any

    manifest = read_any(file, script.hw, dict(_named_value(text) for text in script.variables))
    if manifest is None:
        if script.model or script.precision or script.service or script.variables:
            raise ProblemError(
                f"{file} says its model and precision itself: --model, --precision, --service and --set are for scripts"
            )
        deployment = _document(file)
        if load is not None and deployment.phase != "serve":
            raise ProblemError(f"{file} is no service (phase {deployment.phase}): --rate and --clients do not apply")
        return ReadCommand(deployment.model_copy(update={"load": load}) if load else deployment)
    found = read_manifest(manifest, given_too(script, load), file)
    if found.ignored:
        typer.echo(f"without effect on the verdict: {', '.join(found.ignored)}", err=True)
    return found


def given_too(script: ScriptOptions, load: Load | None) -> GivenToo:
    """What is said beside a file."""
    from autotune.cli.parsing import rates
    from autotune.manifests.judging import GivenToo

    return GivenToo(
        hardware=script.hw,
        version=script.engine_version,
        isl_tokens=script.isl,
        osl_tokens=script.osl,
        size=script.size,
        mtp_acceptance=rates(script.mtp_acceptance) if script.mtp_acceptance else (),
        load=load,
        model=script.model,
        precision=script.precision,
        service=script.service,
    )


def _named_value(text: str) -> tuple[str, str]:
    """NAME=VALUE; raises ProblemError for other text."""
    from autotune.errors import ProblemError

    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ProblemError(f"--set takes NAME=VALUE, '{text[:60]}' was given")
    return name, value


def _warn(found: ReadCommand) -> ReadCommand:
    """Say what is not modelled where there is no verdict to say it in."""
    for option in found.unmodelled:
        typer.echo(f"not modelled: {option.line()}", err=True)
    return found


def _document(file: Path) -> Deployment:
    """A deployment file, or the deployment of a run's best plan."""
    from autotune.documents.deployment import Deployment
    from autotune.documents.results import is_plan, load_plans
    from cost_models.catalog import read_yaml, validated
    from cost_models.reading import is_folder

    if is_folder(file) or is_plan(data := read_yaml(file)):
        return load_plans(file).plans[0].deployment
    return validated(Deployment, data, str(file))

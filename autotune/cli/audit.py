"""`autotune check`, `autotune sensitivity` and `autotune verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from autotune.deployment import Deployment

File = Annotated[Path, typer.Argument(help="Deployment file (.yaml), or a script or command line that starts vLLM or SGLang.")]
Hardware = Annotated[str | None, typer.Option("--hw", help="For a script: what it runs on.")]
Prompt = Annotated[int, typer.Option(help="For a script: input tokens.", min=1)]
Answer = Annotated[int, typer.Option(help="For a script: output tokens.", min=1)]
Size = Annotated[int | None, typer.Option(help="For a script: sequences (decode) or tokens (prefill) per DP rank.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("check")(check)
    app.command("sensitivity")(sensitivity)
    app.command("verify")(verify)


def check(
    deployment: File,
    tpot: Annotated[str | None, typer.Option(help="Limit on the time per output token, e.g. 50ms.")] = None,
    ttft: Annotated[str | None, typer.Option(help="Limit on the time of one prompt when nothing waits (prefill).")] = None,
    throughput: Annotated[float | None, typer.Option(help="Tokens/s of all instances.", min=0)] = None,
    concurrency: Annotated[int | None, typer.Option(help="Sequences that must decode at once.", min=1)] = None,
    context: Annotated[int | None, typer.Option(help="Tokens of every sequence that must fit at once.", min=1)] = None,
    hw: Hardware = None,
    isl: Prompt = 2000,
    osl: Answer = 2000,
    size: Size = None,
    json: AsJson = False,
) -> None:
    """Judge a plan: does it fit and meet its goals, what bounds it, which smallest changes help. Exit 2: it does not work."""
    from autotune.auditing.checking import check as judge
    from autotune.auditing.goals import Goals
    from autotune.cli.parsing import duration_s

    goals = Goals(
        tpot_s=duration_s(tpot) if tpot else None,
        ttft_s=duration_s(ttft) if ttft else None,
        tokens_per_s=throughput,
        concurrency=concurrency,
        context_tokens=context,
    )
    verdict = judge(_read(deployment, hw, isl, osl, size), goals)
    if json:
        typer.echo(verdict.model_dump_json(indent=2))
    else:
        from autotune.report.auditing import verdict_report
        from autotune.report.tables import show

        show(verdict_report(verdict))
    if not verdict.works:
        raise typer.Exit(2)


def sensitivity(
    deployment: File,
    throughput: Annotated[float | None, typer.Option(help="Goal: tokens/s of all instances.", min=0)] = None,
    tpot: Annotated[str | None, typer.Option(help="Goal: time per output token, e.g. 50ms.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Tornado plot to write (.png, extra plots).")] = None,
    hw: Hardware = None,
    isl: Prompt = 2000,
    osl: Answer = 2000,
    size: Size = None,
    json: AsJson = False,
) -> None:
    """How much throughput moves with bandwidths, FLOPS, imbalance and load, and what a goal would take."""
    from autotune.auditing.sensitivity import sensitivity as vary
    from autotune.cli.parsing import duration_s

    found = vary(_read(deployment, hw, isl, osl, size), throughput, duration_s(tpot) if tpot else None)
    if plot is not None:
        from autotune.auditing.plots import tornado

        tornado(found, plot)
    if json:
        typer.echo(found.model_dump_json(indent=2))
        return
    from autotune.report.auditing import sensitivity_report
    from autotune.report.tables import show

    show(sensitivity_report(found))
    if plot is not None:
        typer.echo(f"wrote {plot}")


def verify(
    results: Annotated[list[Path], typer.Argument(help="Results of vllm bench serve or latency, or SGLang bench_serving.")],
    deployment: Annotated[Path, typer.Option(help="What ran: a deployment file, or the script that started it.")],
    tpot: Annotated[str | None, typer.Option(help="Limit that the run had to meet, e.g. 50ms.")] = None,
    hw: Hardware = None,
    isl: Prompt = 2000,
    osl: Answer = 2000,
    size: Size = None,
    json: AsJson = False,
) -> None:
    """Compare a measured run with its prediction. Exit 2: outside the error bars, or over the limit."""
    from autotune.auditing.verifying import verify as compare
    from autotune.cli.parsing import duration_s

    points = compare(results, _read(deployment, hw, isl, osl, size), duration_s(tpot) if tpot else None)
    if json:
        import json as documents

        typer.echo(documents.dumps([point.model_dump(mode="json") for point in points], indent=2))
    else:
        from autotune.report.auditing import verification_report
        from autotune.report.tables import show

        show(verification_report(points))
    if any(not point.inside or point.within_limit is False for point in points):
        raise typer.Exit(2)


def _read(file: Path, hw: str | None, isl: int, osl: int, size: int | None) -> Deployment:
    """A deployment file, or what a script starts."""
    from autotune.deployment import Deployment
    from autotune.errors import ProblemError
    from cost_models.catalog import read_yaml, validated

    if file.suffix in (".yaml", ".yml", ".json"):
        return validated(Deployment, read_yaml(file), str(file))
    from autotune.auditing.commands import read_command

    if not file.is_file():
        raise ProblemError(f"{file}: no such file")
    if hw is None:
        raise ProblemError(f"{file} does not say what it runs on: give --hw (autotune hw list)")
    found = read_command(file.read_text(encoding="utf-8"), hardware=hw, isl_tokens=isl, osl_tokens=osl, size=size)
    if found.ignored:
        typer.echo(f"not modelled: {', '.join(found.ignored)}", err=True)
    return found.deployment

"""`autotune report`, `compare` and `explain`: run folders read back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autotune.cli import completing
from autotune.cli.opening import opened_in_browser

Open = Annotated[bool, typer.Option("--open", help="Open it in the browser.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("report")(report)
    app.command("compare")(compare)
    app.command("explain")(explain)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of `autotune search`.", autocompletion=completing.runs)],
    out: Annotated[Path | None, typer.Option(help="File of the page; report.html in the run folder by default.")] = None,
    sensitivity: Annotated[bool, typer.Option(help="Add what the throughput hangs on (half a second).")] = True,
    show: Open = False,
) -> None:
    """Write the page of a run (again), self-contained; several runs become one comparison."""
    from autotune.errors import ProblemError
    from autotune.files import write_whole
    from autotune.report.page.comparing import render_comparison
    from autotune.report.page.folder import PAGE, read_page, with_sensitivity
    from autotune.report.page.page import render_page

    if len(runs) > 1 and out is None:
        raise ProblemError("several runs make one page: say where with --out compare.html")
    pages = [read_page(run) for run in runs]
    file = out or runs[0] / PAGE
    one = with_sensitivity(pages[0]) if sensitivity and len(pages) == 1 else pages[0]
    write_whole(file, render_page(one) if len(pages) == 1 else render_comparison(pages))
    typer.echo(f"wrote {file}")
    if show:
        opened_in_browser(file.resolve().as_uri())


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders to hold beside each other.", autocompletion=completing.runs)],
    out: Annotated[Path | None, typer.Option(help="Write a page as well.")] = None,
    show: Open = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Hold the best plans of several runs side by side: figures, and the settings in which they differ."""
    from autotune.errors import ProblemError
    from autotune.files import write_whole
    from autotune.report.page.comparing import compare_runs, render_comparison
    from autotune.report.page.folder import read_page
    from autotune.report.printing import show as printed
    from autotune.report.tables import comparison_report

    if len(runs) < 2:
        raise ProblemError("compare takes two run folders or more")
    pages = [read_page(run) for run in runs]
    comparison = compare_runs(pages)
    if json:
        typer.echo(comparison.model_dump_json(indent=2))
    else:
        printed(comparison_report(comparison))
    if out is None:
        if show:
            raise ProblemError("--open needs a page: say where with --out compare.html")
        return
    write_whole(out, render_comparison(pages))
    typer.echo(f"wrote {out}", err=json)
    if show:
        opened_in_browser(out.resolve().as_uri())


def explain(
    run: Annotated[Path, typer.Argument(help="Run folder of `autotune search`.", autocompletion=completing.runs)],
    why: Annotated[
        str,
        typer.Option(help="Layout, e.g. ep72, tp8 or 'dp48 ep48'; of a service also (dis)aggregated."),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Why a layout or kind of service was chosen or not, from what the search kept: what it loses and where."""
    from autotune.report.asking_services import explain_run
    from autotune.report.page.folder import read_page

    answer = explain_run(read_page(run), why)
    typer.echo(answer.model_dump_json(indent=2) if json else answer.text)

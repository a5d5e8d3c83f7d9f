"""`autotune ui`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from autotune.cli.opening import checked_browser, opened_in_browser


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("ui")(ui)


def ui(
    out: Annotated[Path, typer.Option(help="Folder of the run folders that it writes and reads.")] = Path("results"),
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 8765,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Serve a form, live searches, history, comparisons and exports to this machine's browser (extra ui), until Ctrl-C."""
    from autotune.errors import ProblemError
    from autotune.files import check_writable

    if not all(importlib.util.find_spec(library) for library in ("starlette", "uvicorn")):
        raise ProblemError("autotune ui needs the extra: pip install 'moe-autotune[ui]'")
    from autotune.ui.app import ADDRESS, listening, new_token, serve_pages

    check_writable(out)
    if show:
        checked_browser()
    place, token = listening(port), new_token()
    link = f"http://{ADDRESS}:{place.getsockname()[1]}/{token}/"
    typer.echo(f"{link}\nrun folders in {out}; the link works on this machine until Ctrl-C")
    if show:
        opened_in_browser(link)
    serve_pages(out, place, token)

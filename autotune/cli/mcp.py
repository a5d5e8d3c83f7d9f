"""`autotune mcp`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("mcp")(mcp)


def mcp(out: Annotated[Path, typer.Option(help="Folder of the run folders that it writes and reads.")] = Path("results")) -> None:
    """Serve search, check, predict, place, explain, export and validate to an assistant (Model Context Protocol, stdio)."""
    from autotune.assistant.server import serve
    from autotune.files import check_writable

    check_writable(out)
    serve(out)

"""How reports look in a terminal."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


def new_table(title: str) -> Table:
    """An empty table in the style of all reports."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        min_width=len(title),  # it is not broken by columns that are narrower
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )


def ms(seconds: float) -> str:
    """Milliseconds below a second, seconds above."""
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def paragraph(title: str, text: str) -> RenderableType:
    """A title and a text below it, indented."""
    return Group(Text(title, style="bold"), Padding(Text(text), (0, 0, 0, 2)))


def show(renderable: RenderableType) -> None:
    """Print to standard output, wide enough for tables when it is not a terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(renderable)

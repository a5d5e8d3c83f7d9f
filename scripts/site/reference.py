"""What mkdocs calls while it builds the site: pages made from the code, and links to files outside docs/.

A link to a file of the repository that is no page becomes its name, once the file was found; a missing one stops the build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)]*)?\)")


def on_config(config: Any) -> Any:
    """List the pages of a folder where the navigation names one."""
    docs = Path(config["docs_dir"])
    for entry in config["nav"]:
        for title, where in entry.items():
            if isinstance(where, str) and where.endswith("/"):
                entry[title] = [f"{where}{page.name}" for page in sorted((docs / where).glob("*.md"))]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages made from the code."""
    pages = {"commands": commands, "python": python, "schemas": schemas}
    for name, page in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turn links that leave docs/ into names; raises PluginError where nothing is there."""
    docs = Path(config["docs_dir"]).resolve()
    here = (docs / page.file.src_uri).parent

    def shown(link: re.Match[str]) -> str:
        target = (here / link[2]).resolve()
        if target.is_relative_to(docs):
            return link[0]
        if not target.exists():
            raise PluginError(f"{page.file.src_uri}: nothing at {link[2]}")
        path = f"`{target.relative_to(ROOT.resolve())}`"
        return path if link[1].strip("`") in path else f"{link[1]} ({path})"

    return LINK.sub(shown, markdown)


def commands() -> str:
    """Every command with its options, from the application itself."""
    import typer
    from typer.cli import get_docs_for_click

    from autotune.cli.main import app

    command = typer.main.get_command(app)
    text: str = get_docs_for_click(obj=command, ctx=typer.Context(command), name="autotune")
    return text


def python() -> str:
    """The public names, from their docstrings."""
    import autotune

    lines = ["# Python", "", "Worked examples: [from Python](../api.md).", ""]
    lines += [f"::: {module}.{name}\n" for name, module in sorted(autotune._PUBLIC.items())]
    return "\n".join(lines)


def schemas() -> str:
    """Every published document with its version."""
    from autotune.cli.published import ENTRIES

    rows = []
    for entry in ENTRIES:
        where = f"`autotune {entry.command} --json`" if entry.command else "file"
        rows.append(f"| [{entry.name}](../schemas/{entry.file_name}) | {entry.version} | {where} |")
    head = ["# Schemas", "", "`autotune schema NAME` prints one. A published file never changes.", ""]
    return "\n".join([*head, "| document | version | where |", "|---|---:|---|", *rows, ""])

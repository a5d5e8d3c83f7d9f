"""The `autotune` command."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from autotune.cli import audit, calibrate, catalog, export, measure, place, predict, schema, search, sweep, validate
from cost_models.errors import AutotuneError


def _application() -> typer.Typer:
    return typer.Typer(
        name="autotune",
        help="Find the parallel layout and engine flags for LLM inference: predicted, explained, launchable.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


app = _application()
search.register(app)
sweep.register(app)
predict.register(app)
export.register(app)
place.register(app)
validate.register(app)
audit.register(app)
measure.register(app)
calibrate.register(app)
schema.register(app)
app.add_typer(catalog.group("hw", "Hardware catalogue."), name="hw")
app.add_typer(catalog.group("model", "Model presets."), name="model")
app.add_typer(catalog.group("engine", "Engines and their knobs."), name="engine")


# Typer bundles its own Click since 0.29: reach the base of its usage errors through a public name.
USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def main() -> None:
    """Run a command; every foreseeable failure is one message and a non-zero exit."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for some reads what every installed package declares
    try:
        code = _narrowed(sys.argv[1:2])(standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except USAGE_ERROR as error:
        _fail(error.format_message(), 1)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except AutotuneError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _narrowed(first: list[str]) -> typer.Typer:
    """The application with the one command that is run, where it is one of its own: Typer builds every option of all others."""
    wanted = [command for command in app.registered_commands if [command.name] == first]
    if not wanted:
        return app
    narrowed = _application()
    narrowed.callback()(lambda: None)  # keeps a lone command a subcommand
    narrowed.registered_commands = wanted
    return narrowed


def _fail(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)

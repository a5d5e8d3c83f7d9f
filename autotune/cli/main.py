"""The `autotune` command."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import math
import os
import sys
import warnings
from typing import Any

import typer

from autotune.cli import (
    audit,
    calibrate,
    catalog,
    export,
    fleet,
    mcp,
    measure,
    place,
    predict,
    recipe,
    report,
    schema,
    search,
    sweep,
    tune,
    ui,
    validate,
)
from autotune.errors import ProblemError
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
tune.register(app)
fleet.register(app)
predict.register(app)
export.register(app)
report.register(app)
mcp.register(app)
ui.register(app)
place.register(app)
validate.register(app)
audit.register(app)
measure.register(app)
calibrate.register(app)
schema.register(app)
app.add_typer(recipe.recipe_group(), name="recipe")
app.add_typer(catalog.group("hw", "Hardware catalogue."), name="hw")
app.add_typer(catalog.group("model", "Model presets."), name="model")
app.add_typer(catalog.group("engine", "Engines and their knobs."), name="engine")


# Typer bundles its own Click since 0.29: reach the base of its usage errors through a public name.
USAGE_ERROR: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


LONGEST_MESSAGE = 2500
"""Characters."""
MOST_WHOLE = 2**31 - 1
"""Of a whole number in an option: seeds and sizes of solvers are 32-bit."""
YOUNG_OBJECTS = 200_000
"""Made before Python looks for garbage in cycles: a command makes most of its objects once and keeps them to its end."""
CALCULATES = ("search", "sweep", "fleet", "predict", "check", "place", "verify", "sensitivity", "validate")
"""Commands that all load numpy and multiply no large matrices."""
TRACEBACK = "AUTOTUNE_TRACEBACK"
"""Environment variable that shows where a fault of autotune's own lies."""


def main() -> None:
    """Run a command; every failure is one message and a non-zero exit."""
    _collect_seldom()
    if sys.argv[1:2] and sys.argv[1] in CALCULATES and "--help" not in sys.argv:
        _load_numpy_with_one_thread()
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # looking for some reads what every installed package declares
    if not sys.warnoptions:  # warnings of libraries are for who develops, not for who plans
        warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names and text that are not UTF-8
    try:
        code = _run()
        sys.stdout.flush()
    except typer.Exit as stop:
        code = _flushed(stop.exit_code)
    except USAGE_ERROR as error:
        code = _failed(error.format_message(), 1)
    except (typer.Abort, KeyboardInterrupt):
        code = _failed("interrupted", 130)
    except AutotuneError as error:
        code = _failed(str(error), error.exit_code)
    except BrokenPipeError:
        code = _closed()
    except (OSError, MemoryError) as error:  # of the machine, not of autotune: a full disk, no rights, no memory
        code = _failed(_described(error), 1)
    except Exception as error:  # the last line of defence: whatever it is, people get a message
        if os.environ.get(TRACEBACK):
            raise
        code = _failed(_described(error), 1)
    sys.exit(code if isinstance(code, int) else 0)


def _collect_seldom() -> None:
    """Looking for garbage is a sixth of a short command: through what it imports, and once more through all of it at the end."""
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


def _load_numpy_with_one_thread() -> None:
    """Load numpy first: a command multiplies no large matrices."""
    if "numpy" not in sys.modules:
        from autotune.threads import one_blas_thread

        with one_blas_thread():
            importlib.import_module("numpy")


def _narrowed(first: list[str]) -> typer.Typer:
    """The application with the one command, or group of commands, that is run: Typer builds every option of all others."""
    commands = [command for command in app.registered_commands if [command.name] == first]
    groups = [group for group in app.registered_groups if [group.name] == first]
    if not commands and not groups:
        return app
    narrowed = _application()
    narrowed.callback()(lambda: None)  # keeps a lone command a subcommand
    narrowed.registered_commands, narrowed.registered_groups = commands, groups
    return narrowed


def _first_word() -> list[str]:
    """The command that is typed: in a shell that asks how to complete it, once the word after it has begun."""
    if "_AUTOTUNE_COMPLETE" not in os.environ:
        return sys.argv[1:2]
    words = os.environ.get("COMP_WORDS", os.environ.get("_TYPER_COMPLETE_ARGS", "")).split()
    return words[1:2] if len(words) > 2 or os.environ.get("COMP_WORDS", "").endswith(" ") else []


def _run() -> object:
    command = typer.main.get_command(_narrowed(_first_word()))
    _bound(command)
    return command.main(standalone_mode=False)


def _bound(command: Any) -> None:
    """Let no option of any command take a number that is not finite or beyond MOST_WHOLE."""
    for parameter in command.params:
        parameter.process_value = functools.partial(_checked, parameter, parameter.process_value)
    for inner in getattr(command, "commands", {}).values():
        _bound(inner)


def _checked(parameter: Any, process: Any, context: Any, value: Any) -> Any:
    found = process(context, value)
    for number in found if isinstance(found, list | tuple) else (found,):
        if isinstance(number, float) and not math.isfinite(number):
            raise ProblemError(f"{parameter.opts[0]} {number:g} is not a finite number")
        if isinstance(number, int) and abs(number) > MOST_WHOLE:
            raise ProblemError(f"{parameter.opts[0]} {str(value)[:40]} is beyond {MOST_WHOLE:,}")
    return found


def _described(error: Exception) -> str:
    """What an exception that no code below expected says to people."""
    if isinstance(error, OSError):
        return f"{error.filename or 'cannot write the output'}: {error.strerror or error}"
    if isinstance(error, MemoryError):
        return "out of memory: give the command more, or a smaller input"
    if type(error).__name__ == "ValidationError" and hasattr(error, "error_count"):
        from cost_models.catalog import describe

        return describe(error)  # type: ignore[arg-type]  # pydantic's, imported only here
    what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return f"a fault of autotune's own, please report it ({what}); {TRACEBACK}=1 shows where"


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _closed()
    except OSError as error:
        return _failed(f"cannot write the output: {error.strerror or error}", 1)
    return code


def _closed() -> int:
    """Nobody reads the output any more: say nothing, and let the interpreter not try again when it ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _failed(message: str, code: int) -> int:
    """Print what went wrong, whatever state the output is in, without what would steer a terminal."""
    try:
        sys.stdout.flush()
    except OSError:
        _closed()
    cut = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]} ... ({len(message):,} characters)"
    shown = "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    with contextlib.suppress(OSError):
        print(f"error: {shown}", file=sys.stderr)
    return code

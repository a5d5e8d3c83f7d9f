"""Opening pages in the user's browser."""

from __future__ import annotations

from autotune.errors import ProblemError

WAY_OUT = "leave --open out and open it yourself"


def checked_browser() -> None:
    """Raise ProblemError where there is no browser to open."""
    import webbrowser

    try:
        webbrowser.get()
    except webbrowser.Error as error:
        raise ProblemError(f"no browser was found here: {WAY_OUT}") from error


def opened_in_browser(address: str) -> None:
    """Open an address; raises ProblemError where no browser takes it."""
    import webbrowser

    checked_browser()
    if not webbrowser.open(address):
        raise ProblemError(f"no browser opened {address}: {WAY_OUT}")

"""Errors that people can cause and can fix: each names the thing, the numbers and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutotuneError(Exception):
    """Base of every error a user can cause; printed without a traceback, exit code 1."""

    exit_code = 1


class CatalogError(AutotuneError):
    """An unknown name, or a document that does not follow its schema."""


class InputError(CatalogError):
    """A file or a value that cannot be read as what it is meant to be."""


class UnsupportedModelError(AutotuneError):
    """A model architecture or feature that the cost models do not describe."""


class MissingFactError(AutotuneError):
    """A datasheet fact or coefficient that is not known; it is not guessed."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One message for an unknown name: near matches first, otherwise everything known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"unknown {kind} '{name}'. Did you mean {' or '.join(near)}? Known: {', '.join(known)}"
    return f"unknown {kind} '{name}'. Known: {', '.join(known)}"

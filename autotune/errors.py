"""Errors shown to people without a traceback. Exit 1: fix the input. Exit 2: no plan exists."""

from __future__ import annotations

from cost_models.errors import AutotuneError


class ProblemError(AutotuneError):
    """A problem or deployment that contradicts itself or asks for something absurd."""


class StartsNothing(ProblemError):
    """A file that starts no engine that is known here: nothing in it is wrong."""


class OutputError(AutotuneError):
    """An output folder or storage that cannot be used."""


class ExportError(AutotuneError):
    """A plan that an engine cannot be told to run."""


class NoFeasiblePlan(AutotuneError):
    """No layout satisfies the problem; the message says which limits clash and by how much."""

    exit_code = 2

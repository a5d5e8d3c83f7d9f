"""The targets that a launch is rendered to: a new one is one module and one line here."""

from __future__ import annotations

from importlib import import_module

from autotune.errors import ProblemError
from autotune.exporters.targets.base import Target

MODULES = {
    "bash": "bash",
    "sbatch": "sbatch",
    "compose": "compose",
    "lws": "leader_worker",
    "llmd": "llmd",
    "dynamo": "dynamo",
    "srt-slurm": "srt_slurm",
    "kserve": "kserve",
}
"""Name -> module of this package that holds its TARGET."""


def load_target(name: str) -> Target:
    """A target by name; raises ProblemError that lists those known."""
    if name not in MODULES:
        raise ProblemError(f"no target {name!r}; known: {', '.join(MODULES)}")
    target: Target = import_module(f"autotune.exporters.targets.{MODULES[name]}").TARGET
    return target

"""A sweep in slices, one for each job of an array."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import ProblemError

SBATCH = """#!/bin/bash
#SBATCH --job-name=autotune-sweep
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --output={out}/slurm-%A_%a.log
#SBATCH --requeue
# Each job solves every {jobs}th problem; one that is killed and started again goes on where it was.
# Afterwards, on any machine that sees the folder, this collects the table:
#   {collect}
{command} --slice "${{SLURM_ARRAY_TASK_ID}}/{jobs}" --workers 1
"""


@dataclass(frozen=True, slots=True)
class Slice:
    """Every `of`th problem, from number `index` (from 0) on."""

    index: int = 0
    of: int = 1

    @classmethod
    def parsed(cls, text: str) -> Slice:
        """'3/16'; raises ProblemError for anything else."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not match or int(match[1]) >= int(match[2]):
            raise ProblemError(f"slice '{text}': write number/jobs with numbers from 0, such as 0/16 to 15/16")
        return cls(int(match[1]), int(match[2]))

    @property
    def suffix(self) -> str:
        """Of the names of its files."""
        return f".{self.index}-of-{self.of}" if self.of > 1 else ""

    def has(self, number: int) -> bool:
        """Whether the entry with that number (from 1) is in it."""
        return (number - 1) % self.of == self.index


def sbatch(scenarios: Path, out: Path, jobs: int) -> str:
    """A Slurm job array that solves a scenario file in `jobs` slices; raises ProblemError for none."""
    if jobs < 1:
        raise ProblemError(f"--slurm {jobs}: at least 1 job")
    command = f"autotune sweep {shlex.quote(str(scenarios.resolve()))} --out {shlex.quote(str(out.resolve()))}"
    return SBATCH.format(last=jobs - 1, jobs=jobs, out=shlex.quote(str(out.resolve())), command=command, collect=command)

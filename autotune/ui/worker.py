"""One search in a process of its own: the problem on standard input, what happens as lines of JSON on standard output."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

LONGEST_MESSAGE = 2500
"""Characters of a message: a line of events must be read whole."""


def work(runs: Path) -> None:
    """Search what standard input asks, write its run folder, say so."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no event

    def say(**event: Any) -> None:
        print(json.dumps(event), file=events, flush=True)

    say(**_searched(runs, json.load(sys.stdin), say))


def _searched(runs: Path, problem: dict[str, Any], say: Any) -> dict[str, Any]:
    from autotune.assistant.tools import Workbench, search
    from autotune.progress import Progress
    from cost_models.errors import AutotuneError

    progress = Progress(
        on_trial=lambda: say(trial=1),
        on_stage=lambda stage: say(stage=stage),
        on_found=lambda label, rate: say(found=f"{label}: {rate:,.0f} tokens/s/GPU"),
    )
    try:
        answer = search(Workbench(runs), problem, progress)
    except AutotuneError as error:
        return {"fault": str(error)[:LONGEST_MESSAGE]}
    except Exception as error:  # whatever it is, people get a message
        what = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_MESSAGE]
        return {"fault": f"a fault of autotune's own, please report it ({what})"}
    return {"run": answer["run"]}


if __name__ == "__main__":
    work(Path(sys.argv[1]))

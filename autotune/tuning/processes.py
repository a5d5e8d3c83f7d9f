"""Commands that end with whoever started them: the tuner's side of `keeper`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autotune.tuning.keeper import GRACE_S, end_group, group_lives, started_at

TAIL_BYTES = 200_000
RECORD_ENDING = ".process.json"


@dataclass(frozen=True, slots=True)
class KeptProcess:
    """A command under a keeper; stop it, or drop the last reference to its pipe, and its whole group ends."""

    keeper: subprocess.Popen[bytes]
    record: Path
    log: Path

    def exit_code(self) -> int | None:
        """Of the command; none while it runs."""
        return self.keeper.poll()

    def wait(self, limit_s: float) -> int | None:
        """Its exit code; none where it runs longer."""
        try:
            return self.keeper.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """End it, and wait until nothing of it is left."""
        assert self.keeper.stdin is not None
        with contextlib.suppress(OSError):
            self.keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.keeper.wait(2 * GRACE_S + 5)
        if self.keeper.poll() is None:
            self.keeper.kill()
            end_recorded(self.record)


def start_kept(command: Sequence[str], record: Path, log: Path, environment: Mapping[str, str] | None = None) -> KeptProcess:
    """Start a command under a keeper of its own session, so that a Ctrl-C of the tuner's terminal reaches the tuner alone."""
    record.parent.mkdir(parents=True, exist_ok=True)
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(path for path in (root, os.environ.get("PYTHONPATH", "")) if path)
    keeper = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "autotune.tuning.keeper", str(record), str(log), "--", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        start_new_session=True,
    )
    return KeptProcess(keeper, record, log)


def end_recorded(record: Path) -> bool:
    """End what a record says still runs, left by a tuner whose keeper was killed too; whether anything was."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        group = int(found["group"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if "exit_code" in found or not group_lives(group) or started_at(group) != found.get("started"):
        return False
    end_group(group)
    return True


def tail(log: Path, lines: int = 400) -> list[str]:
    """The last lines of a log; none where there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(log.stat().st_size - TAIL_BYTES, 0))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []

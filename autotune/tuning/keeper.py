"""`python -m autotune.tuning.keeper RECORD LOG -- COMMAND`: runs a command in a process group of its own, for as long as somebody
holds its standard input open.

Whoever starts it keeps the other end of that pipe. However they end, by kill -9 too, the pipe closes and the whole group is
ended: no server outlives the tuner that started it. RECORD says which group runs, and how it ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

POLL_S = 0.1
GRACE_S = 20.0
"""Between asking a group to end and ending it."""


def keep(record: Path, log: Path, command: list[str]) -> int:
    """Run until the command ends or the pipe closes; the command's exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with log.open("ab") as file:
        process = subprocess.Popen(  # noqa: S603  (the tuner's own command)
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        write_record(record, {"group": process.pid, "started": started_at(process.pid), "command": command})
        while process.poll() is None:
            readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
            if readable and not os.read(sys.stdin.fileno(), 1):
                break
    finally:
        end_group(process.pid, process)
        write_record(record, {"group": process.pid, "command": command, "exit_code": process.returncode})
    return process.returncode


def end_group(group: int, process: subprocess.Popen[bytes] | None = None, grace_s: float = GRACE_S) -> None:
    """Ask every process of a group to end, then make it; returns when none is left."""
    for sent, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, grace_s)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, sent)
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            if process is not None:
                process.poll()  # a leader that ended is in the group until it is waited for
            if not group_lives(group):
                return
            time.sleep(POLL_S / 2)


def group_lives(group: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _only_zombies(group)


def _only_zombies(group: int) -> bool:
    """Whether what is left of a group has ended and waits for a parent that does not look; systems without /proc cannot say."""
    states = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                states.append(fields[0])
    return bool(states) and all(state == "Z" for state in states)


def started_at(pid: int) -> int | None:
    """When a process started, in ticks since boot: a number taken by another process has another; none without /proc."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def write_record(path: Path, found: dict[str, object]) -> None:
    """Replace a record whole."""
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(json.dumps(found), encoding="utf-8")
    scratch.replace(path)


if __name__ == "__main__":
    sys.exit(keep(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[sys.argv.index("--") + 1 :]))

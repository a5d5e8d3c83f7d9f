"""Servers on a cluster: the plan as one target's files, started, reached and deleted by commands of the user's own.

Commands are split into words first and filled in afterwards, so that nothing in a name is read by a shell: {folder} is where the
files lie, {name} the trial, {id} the last line that apply printed, {port} a free port of this machine.
"""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from autotune.exporters.targets.base import TargetOptions
from autotune.exporters.targets.registry import load_target
from autotune.tuning.drivers.base import ToStart, tuned_launch, wait_healthy
from autotune.tuning.keeper import write_record
from autotune.tuning.outcomes import TrialFailed, TuningError
from autotune.tuning.processes import RECORD_ENDING, KeptProcess, end_recorded, start_kept, tail
from autotune.tuning.reasons import reason_in

APPLY_LIMIT_S = 300.0
APPLIED = "applied.json"


@dataclass
class CommandDriver:
    """apply, forward (kept running), wait for health, delete."""

    apply: str
    delete: str
    url: str
    """Where the service is reached, with {port}, {id} and {name}."""
    forward: str = ""
    logs: str = ""
    target: str = "lws"
    options: TargetOptions = field(default_factory=TargetOptions)
    start_limit_s: float = 3600.0
    load_only: bool = False
    values: dict[str, str] = field(default_factory=dict)
    forwarding: KeptProcess | None = None
    folder: Path | None = None

    def start(self, server: ToStart) -> str:
        """Raises TuningError where apply fails, TrialFailed where the service does not come up."""
        files = server.folder / "launch"
        files.mkdir(parents=True, exist_ok=True)
        for script in load_target(self.target).render(tuned_launch(server), self.options):
            (files / script.name).write_text(script.text, encoding="utf-8")
            (files / script.name).chmod(0o755 if script.executable else 0o644)
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = str(one.getsockname()[1])
        self.folder = server.folder
        self.values = {"folder": str(files), "name": server.folder.name, "port": port, "id": ""}
        write_record(server.folder / APPLIED, {"values": self.values, "delete": self.delete})
        done = _run(self.apply, self.values)
        (server.folder / "apply.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        if done.returncode:
            self.stop()
            raise TuningError(
                f"`{self.apply}` failed with exit code {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}"
            )
        printed = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        self.values["id"] = printed[-1] if printed else ""
        write_record(server.folder / APPLIED, {"values": self.values, "delete": self.delete})
        url = self.url.format(**self.values)
        try:
            if self.forward:
                record, log = server.folder / f"forward{RECORD_ENDING}", server.folder / "forward.log"
                self.forwarding = start_kept(_words(self.forward, self.values), record, log)
            wait_healthy(url, self.start_limit_s, lambda: None)
        except TrialFailed as failure:
            reason, said = self._logged()
            self.stop()
            raise TrialFailed(reason if reason != "crashed" else failure.reason, f"{failure.detail}; {said}") from failure
        except BaseException:
            self.stop()
            raise
        return url

    def _logged(self) -> tuple[str, str]:
        """What the service's own log says, where a command shows it."""
        if not self.logs or self.folder is None:
            return "crashed", "no --logs command was given"
        done = _run(self.logs, self.values)
        log = self.folder / "server.log"
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        return reason_in(tail(log))

    def failure(self) -> TrialFailed | None:
        reason, said = self._logged()
        if reason == "crashed":
            return None  # nothing says that it ended: the load's own result decides
        return TrialFailed(reason, said, under_load=True)

    def stop(self) -> None:
        if self.forwarding is not None:
            self.forwarding.stop()
        self.forwarding = None
        if self.folder is not None:
            _delete(self.folder)
        self.folder = None

    def clean(self, folder: Path) -> bool:
        left = [end_recorded(record) for record in folder.glob(f"*{RECORD_ENDING}")]
        return any([*left, _delete(folder)])


def _delete(folder: Path) -> bool:
    """Run the delete command of what was applied and not deleted; whether there was anything. Raises TuningError."""
    record = folder / APPLIED
    if not record.exists():
        return False
    found = json.loads(record.read_text(encoding="utf-8"))
    done = _run(found["delete"], found["values"])
    if done.returncode:
        raise TuningError(
            f"`{found['delete']}` failed, the service of {folder} may still run: {(done.stderr or done.stdout).strip()[-300:]}"
        )
    record.rename(record.with_name("deleted.json"))
    return True


def _words(template: str, values: dict[str, str]) -> list[str]:
    try:
        return [word.format(**values) for word in shlex.split(template)]
    except (KeyError, IndexError, ValueError) as error:
        raise TuningError(f"`{template}`: {error}; known are {', '.join('{' + name + '}' for name in values)}") from error


def _run(template: str, values: dict[str, str]) -> subprocess.CompletedProcess[str]:
    words = _words(template, values)
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=APPLY_LIMIT_S, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise TuningError(f"`{' '.join(words)}` cannot be run: {error}") from error

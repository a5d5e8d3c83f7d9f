"""Finished trials in an Optuna storage: several processes may share one, and each may be killed at any moment.

A study is sampled in memory; what its storage receives are finished trials, each in one transaction that first counts those that
are there. So nobody makes more than the trials that are left, no trial is half there, and nothing waits for a process that
died. SQLite, the storage of most, is written to directly: Optuna's own writer takes a statement and a query for each value, which
costs several times what sampling does. The tables are those of Optuna's schema, checked before the first write.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from autotune.errors import OutputError

if TYPE_CHECKING:
    import optuna

COLUMNS = {
    "trials": {"trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"},
    "trial_params": {"trial_id", "param_name", "param_value", "distribution_json"},
    "trial_values": {"trial_id", "objective", "value", "value_type"},
    "trial_user_attributes": {"trial_id", "key", "value_json"},
    "trial_system_attributes": {"trial_id", "key", "value_json"},
}
"""What is written of Optuna's tables (schema version 12)."""
GRPC = "grpc://"
PROXY_WAIT_S = 5.0
"""For a gRPC proxy to answer."""
SWITCH_WAIT_S = 0.2
"""For the file to be free for a change of its journal."""
CREDENTIALS = re.compile(r"://[^/@\s]*@")
WAIT_S = 60.0
"""For other processes that write to the same file."""


class Store(Protocol):
    """Where finished trials go."""

    def add(self, trial: optuna.trial.FrozenTrial, most: int) -> int | None:
        """Keep a finished trial, unless `most` are kept already; returns its number, or None."""

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All finished trials that are kept, in order."""

    def close(self) -> None:
        """Let go of the storage."""


def open_store(url: str, study_name: str) -> Store:
    """The store of a study, made where there is none; raises what its driver raises."""
    import optuna

    path = sqlite_file(url)
    with alone(path.parent) if path else contextlib.nullcontext():  # two processes must not both make the tables
        study = optuna.create_study(storage=opened_storage(url), study_name=study_name, load_if_exists=True, direction="maximize")
    store = OptunaStore(study)
    return SqliteStore(path, store) if path and has_known_tables(path) else store


def opened_storage(url: str) -> str | optuna.storages.BaseStorage:
    """What Optuna opens: a URL of its own, or grpc://host:port, a proxy that many workers share one database through."""
    if not url.startswith(GRPC):
        return url
    import optuna

    host, _, port = url.removeprefix(GRPC).rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("a proxy is grpc://host:port")
    proxy = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    proxy.wait_server_ready(timeout=PROXY_WAIT_S)
    return proxy


def unusable_storage(url: str, error: Exception) -> OutputError:
    """Whatever a driver raised, as one message without the URL's password."""
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return OutputError(
        f"storage {without_password(url)} cannot be used: {without_password(reason)}. Check the URL, its driver and its locks"
    )


def sqlite_file(url: str) -> Path | None:
    """The file of a plain SQLite URL; none for other storages."""
    if not url.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    return None if parsed.query or not parsed.database or parsed.database.startswith((":", "file:")) else Path(parsed.database)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time, by a lock on the folder; systems without such locks go without."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def without_password(url: str) -> str:
    """A storage URL without who opens it; other text as it is."""
    return CREDENTIALS.sub("://", url)


def has_known_tables(path: Path) -> bool:
    """Whether a file's tables have the columns that are written."""
    with contextlib.closing(sqlite3.connect(path, timeout=WAIT_S)) as connection:
        found = {name: {row[1] for row in connection.execute(f"PRAGMA table_info({name})")} for name in COLUMNS}
    return all(columns <= found[name] for name, columns in COLUMNS.items())


class OptunaStore:
    """Any storage, through Optuna: between counting and keeping another process may keep one too."""

    def __init__(self, study: optuna.Study) -> None:
        self.study = study

    def add(self, trial: optuna.trial.FrozenTrial, most: int) -> int | None:
        before = len(self.trials())
        if before >= most:
            return None
        self.study.add_trial(trial)
        return before

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def close(self) -> None:
        storage = self.study._storage
        if hasattr(storage, "close"):  # a proxy
            storage.close()
            return
        storage.remove_session()
        engine = getattr(getattr(storage, "_backend", storage), "engine", None)
        if engine is not None:  # the last connection to close folds SQLite's write-ahead log into the file
            engine.dispose()


class SqliteStore:
    """A SQLite file of Optuna's, written to in one transaction per trial; read through Optuna."""

    def __init__(self, path: Path, reader: OptunaStore) -> None:
        self.reader = reader
        self.study_id = reader.study._study_id
        self.connection = sqlite3.connect(path, timeout=SWITCH_WAIT_S, isolation_level=None)
        with contextlib.suppress(sqlite3.OperationalError):  # in use, or no shared memory: as it was
            self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=NORMAL")
        self.connection.execute(f"PRAGMA busy_timeout={WAIT_S * 1e3:.0f}")

    def add(self, trial: optuna.trial.FrozenTrial, most: int) -> int | None:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            number = self._insert(trial, most)
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        return number

    def _insert(self, trial: optuna.trial.FrozenTrial, most: int) -> int | None:
        states = "SELECT count(*), sum(state IN ('COMPLETE', 'PRUNED', 'FAIL')) FROM trials WHERE study_id = ?"
        number, finished = self.connection.execute(states, (self.study_id,)).fetchone()
        if (finished or 0) >= most:
            return None
        times = tuple(_utc(time) for time in (trial.datetime_start, trial.datetime_complete))
        insert = "INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete) VALUES (?, ?, 'COMPLETE', ?, ?)"
        trial_id = self.connection.execute(insert, (number, self.study_id, *times)).lastrowid
        self._insert_all("trial_values", ("objective", "value", "value_type"), trial_id, [(0, trial.value, "FINITE")])
        self._insert_all("trial_params", ("param_name", "param_value", "distribution_json"), trial_id, _params(trial))
        for table, attributes in (("trial_user_attributes", trial.user_attrs), ("trial_system_attributes", trial.system_attrs)):
            self._insert_all(table, ("key", "value_json"), trial_id, [(k, json.dumps(v)) for k, v in attributes.items()])
        return int(finished or 0)

    def _insert_all(self, table: str, columns: tuple[str, ...], trial_id: int | None, rows: list[tuple[object, ...]]) -> None:
        marks = ", ".join("?" for _ in range(len(columns) + 1))
        statement = f"INSERT INTO {table} (trial_id, {', '.join(columns)}) VALUES ({marks})"  # noqa: S608  (names of COLUMNS)
        self.connection.executemany(statement, [(trial_id, *row) for row in rows])

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.reader.trials()

    def close(self) -> None:
        self.reader.close()
        self.connection.close()


def _params(trial: optuna.trial.FrozenTrial) -> list[tuple[object, ...]]:
    from optuna.distributions import distribution_to_json

    kinds = trial.distributions
    return [
        (name, kinds[name].to_internal_repr(value), distribution_to_json(kinds[name])) for name, value in trial.params.items()
    ]


def _utc(time: object) -> str | None:
    """A local time as Optuna keeps it: without a zone, in UTC."""
    import datetime

    if not isinstance(time, datetime.datetime):
        return None
    return time.astimezone(datetime.UTC).replace(tzinfo=None).strftime("%Y-%m-%d %H:%M:%S.%f")

"""Trials in a storage: what Optuna reads back is what was sampled, and processes share what is left."""

from __future__ import annotations

import sqlite3
import threading

import optuna
import pytest

from autotune.documents.problem import Problem
from autotune.errors import OutputError
from autotune.flags import study
from autotune.flags.decode import DecodeFlagEvaluator
from autotune.flags.space import flag_space
from autotune.flags.storing import SqliteStore, open_store, sqlite_file, without_password
from autotune.layouts.table import largest_fitting_size
from autotune.resolving import resolve_problem
from cost_models.dispatch import BACKENDS
from cost_models.rows import Rows

KINDS = {
    "a": optuna.distributions.CategoricalDistribution([1, 2.5, "x", True]),
    "b": optuna.distributions.CategoricalDistribution([0]),
}


def evaluator_of() -> DecodeFlagEvaluator:
    resolved = resolve_problem(Problem(hardware="gb200-nvl72", gpus=8))
    row = Rows.of(dp=8, ep=8, batch=256, backend=BACKENDS.index("deepep_low_latency"), eplb=1, eplb_interval_steps=3000)
    return DecodeFlagEvaluator(resolved, row, flag_space(resolved, row, int(largest_fitting_size(resolved, row)[0])), 1)


def finished(params: dict, value: float) -> optuna.trial.FrozenTrial:
    made = optuna.create_study(direction="maximize")
    trial = made.ask(KINDS)
    trial.set_constraint("c", -1.5)
    trial.set_user_attr("origin", "analytic")
    frozen = made.tell(trial, value)
    frozen.params = params
    return frozen


@pytest.mark.slow
def test_what_is_written_is_what_optuna_would_have_written(tmp_path):
    """The same trial through Optuna's own writer: everything but the identity is equal."""
    trial = finished({"a": "x", "b": 0}, 7.25)
    ours = open_store(f"sqlite:///{tmp_path}/a.db", "s")
    assert isinstance(ours, SqliteStore)
    assert ours.add(trial, 9) == 0
    theirs = optuna.create_study(storage=f"sqlite:///{tmp_path}/b.db", direction="maximize")
    theirs.add_trial(trial)
    one, other = ours.trials()[0], theirs.trials[0]
    for name in ("number", "state", "values", "params", "distributions", "user_attrs", "system_attrs", "constraints"):
        assert getattr(one, name) == getattr(other, name)
    assert abs((one.datetime_complete - other.datetime_complete).total_seconds()) < 1e-3
    ours.close()
    assert sorted(p.name for p in tmp_path.glob("a.db*")) == ["a.db"]  # the log is folded in when the last one leaves


@pytest.mark.slow
def test_no_more_than_asked_for_whoever_comes(tmp_path):
    """Eight threads with connections of their own keep 20 trials and lose none: 0..19, each once."""
    url = f"sqlite:///{tmp_path}/a.db"
    open_store(url, "s").close()
    kept: list[int] = []

    def work() -> None:
        store = open_store(url, "s")
        while (number := store.add(finished({"a": 1, "b": 0}, 1.0), 20)) is not None:
            kept.append(number)
        store.close()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kept) == list(range(20))
    assert [t.number for t in optuna.load_study(study_name="s", storage=url).trials] == list(range(20))


def test_a_trial_that_fails_half_way_is_not_there(tmp_path, monkeypatch):
    store = open_store(f"sqlite:///{tmp_path}/a.db", "s")
    monkeypatch.setattr("autotune.flags.storing._params", lambda _: [("a", object(), "{}")])
    with pytest.raises(sqlite3.Error):
        store.add(finished({"a": 1, "b": 0}, 1.0), 9)
    assert store.trials() == []
    monkeypatch.undo()
    assert store.add(finished({"a": 1, "b": 0}, 1.0), 9) == 0
    store.close()


def test_tables_of_another_shape_are_left_to_optuna(tmp_path):
    url = f"sqlite:///{tmp_path}/a.db"
    open_store(url, "s").close()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("ALTER TABLE trial_values RENAME COLUMN value_type TO kind")
    assert not isinstance(open_store(url, "s"), SqliteStore)


def test_urls_of_files_and_others():
    assert str(sqlite_file("sqlite:///a b.db")) == "a b.db"
    for url in ("sqlite://", "sqlite:///:memory:", "sqlite:///file:a?mode=ro&uri=true", "mysql://u:p@h/d", "redis://h"):
        assert sqlite_file(url) is None
    assert without_password("mysql://user:secret@host/db") == "mysql://host/db"


@pytest.mark.slow
def test_a_study_in_a_file_is_the_study_in_memory(tmp_path):
    """The same seed samples the same trials wherever they are kept, and a second run finds them done."""
    scores = study.Scores(evaluator_of(), enumerate_all=True)
    run = {"trials": 12, "seed": 3, "study_name": "s", "on_trial": None}
    memory = study.run_study(scores, storage=None, **run)
    url = f"sqlite:///{tmp_path}/a.db"
    kept = study.run_study(scores, storage=url, **run)
    assert [row.params for row in kept] == [row.params for row in memory]
    assert [row.origin for row in kept[:2]] == ["analytic", "defaults"]
    asked: list[int] = []
    again = study.run_study(scores, storage=url, **{**run, "on_trial": lambda: asked.append(1)})
    assert again == kept
    assert not asked
    assert len(study.run_study(scores, storage=url, **{**run, "trials": 15})) == 15


@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/at/all.db", "sqlite:///{folder}", "nonsense://x", "mysql://user:secret@127.0.0.1:1/d"]
)
def test_a_storage_that_cannot_be_used_is_one_message(tmp_path, url):
    scores = study.Scores(evaluator_of(), enumerate_all=True)
    with pytest.raises(OutputError, match="cannot be used") as stop:
        study.run_study(scores, trials=2, seed=0, storage=url.format(folder=tmp_path), study_name="s", on_trial=None)
    assert "secret" not in str(stop.value)

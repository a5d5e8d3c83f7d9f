"""Trials in any Optuna storage: every change of state is kept at once, and what a killed tuner began is gone on with.

A trial is asked for, claimed by a worker, gets its runs one by one, and is told. A worker that dies leaves a running trial
behind; the next one that looks and finds its process gone takes it over with the runs that it has.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.documents.tuned import RATE, MeasuredLoad, Quantities, TunedTrial
from autotune.errors import OutputError
from autotune.flags.storing import opened_storage, unusable_storage, without_password
from autotune.tuning.advising import Proposal, Tried
from autotune.tuning.keeper import started_at
from autotune.tuning.outcomes import TrialFailed
from autotune.tuning.space import TuneCandidate, TuneSpace

if TYPE_CHECKING:
    import optuna

QUESTION, ORIGIN, PREDICTED, WORKER, REASON, DETAIL = "question", "origin", "predicted", "worker", "reason", "detail"
RUN = "run:"
UNCLAIMED_S = 10.0
"""After which a running trial that no worker claimed is taken over: its worker died between two writes."""


@contextmanager
def journal_errors(url: str) -> Iterator[None]:
    """Whatever a storage driver raises as one message."""
    try:
        yield
    except (OutputError, TrialFailed, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        raise unusable_storage(url, error) from error


def journal_storage(url: str) -> Any:
    """What Optuna opens: as other storages, or a journal file (a path without a scheme)."""
    if "://" in url:
        return opened_storage(url)
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    return optuna.storages.JournalStorage(JournalFileBackend(url, lock_obj=JournalFileOpenLock(url)))


class _Chosen:
    """An Optuna sampler that gives what the adviser chose."""

    def __init__(self) -> None:
        self.params: Mapping[str, Any] = {}

    def sampler(self) -> optuna.samplers.BaseSampler:
        import optuna

        chosen = self

        class Advised(optuna.samplers.BaseSampler):
            """Parameters come from `chosen`."""

            def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:  # noqa: ARG002
                return {}

            def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:  # noqa: ARG002
                return {}

            def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:  # noqa: ARG002
                return chosen.params[param_name]

        return Advised()


@dataclass(frozen=True, slots=True)
class Claim:
    """A trial that this worker measures."""

    trial: optuna.trial.Trial
    candidate: TuneCandidate
    origin: str
    runs: tuple[MeasuredLoad, ...]
    """Made by a worker that died."""

    @property
    def number(self) -> int:
        return self.trial.number


class TuneJournal:
    """One study; opened by every worker that shares its storage."""

    def __init__(self, url: str, space: TuneSpace, question: str, *, resume: bool, name: str = "autotune-tune") -> None:
        """question : what is asked, as one line; raises OutputError for a study of another question, one that is there already
        though `resume` is not asked for, and storages that cannot be used."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.url, self.space, self.chosen = url, space, _Chosen()
        if "://" not in url:
            Path(url).parent.mkdir(parents=True, exist_ok=True)
        with journal_errors(url):
            self.study = optuna.create_study(
                storage=journal_storage(url),
                study_name=name,
                load_if_exists=True,
                direction="maximize",
                sampler=self.chosen.sampler(),
            )
            known = self.study.user_attrs.get(QUESTION)
            if known is None:
                self.study.set_user_attr(QUESTION, question)
        if known is not None and known != question:
            raise OutputError(
                f"{without_password(url)} holds a study of another question ({known[:200]}); choose another --storage or --out"
            )
        if known is not None and not resume and self.study.get_trials(deepcopy=False):
            raise OutputError(
                f"{without_password(url)} holds trials already: go on with --resume, or choose another --out or --storage"
            )
        self.distributions: dict[str, optuna.distributions.BaseDistribution] = {
            name: optuna.distributions.CategoricalDistribution(values) for name, values in space.choices().items()
        }

    def frozen(self) -> list[optuna.trial.FrozenTrial]:
        """All trials, in order."""
        with journal_errors(self.url):
            return [t for t in self.study.get_trials(deepcopy=False) if t.state.name != "WAITING"]

    def enqueue(self, proposals: list[Proposal], guesses: Mapping[TuneCandidate, Quantities]) -> None:
        """What is tried first, once per study."""
        with journal_errors(self.url):
            if self.study.get_trials(deepcopy=False):
                return
            for proposal in proposals:
                attributes = {ORIGIN: proposal.origin, PREDICTED: guesses.get(proposal.candidate, {})}
                self.study.enqueue_trial(proposal.candidate.params(), user_attrs=attributes, skip_if_exists=True)

    @property
    def waiting(self) -> bool:
        """Whether anything that was enqueued has not been begun."""
        with journal_errors(self.url):
            return any(t.state.name == "WAITING" for t in self.study.get_trials(deepcopy=False))

    def claim(self, proposal: Proposal | None, predicted: Quantities) -> Claim:
        """Begin what was enqueued, or else a proposal."""
        with journal_errors(self.url):
            if proposal is not None:
                self.chosen.params = proposal.candidate.params()
            trial = self.study.ask(self.distributions)
            trial.set_user_attr(WORKER, own_identity())
            if ORIGIN not in trial.user_attrs and proposal is not None:
                trial.set_user_attr(ORIGIN, proposal.origin)
                trial.set_user_attr(PREDICTED, predicted)
            return self._claim_of(trial)

    def left_behind(self) -> Claim | None:
        """A running trial whose worker is gone, taken over; none where there is none."""
        import optuna

        for frozen in self.frozen():
            if frozen.state.name == "RUNNING" and _abandoned(frozen):
                with journal_errors(self.url):
                    trial = optuna.trial.Trial(self.study, frozen._trial_id)
                    for name, distribution in self.distributions.items():  # of one that died before it had all of them
                        trial._suggest(name, distribution) if name in frozen.params else None
                    if set(frozen.params) != set(self.distributions):
                        self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                        continue
                    trial.set_user_attr(WORKER, own_identity())
                    return self._claim_of(trial)
        return None

    def _claim_of(self, trial: optuna.trial.Trial) -> Claim:
        attributes = trial.user_attrs
        return Claim(trial, self.space.of_params(trial.params), str(attributes.get(ORIGIN, "")), tuple(_runs(attributes)))

    def add_run(self, claim: Claim, number: int, run: MeasuredLoad) -> None:
        """Keep a run as soon as it was made."""
        with journal_errors(self.url):
            claim.trial.set_user_attr(f"{RUN}{number}", run.model_dump(mode="json"))

    def tell_measured(self, claim: Claim, mean: Quantities, limits: Mapping[str, float]) -> None:
        """A trial that counts: its rate, and each limit as a named constraint."""
        with journal_errors(self.url):
            for name, limit in limits.items():
                if name in mean:
                    claim.trial.set_constraint(name, mean[name] / limit - 1)
            self.study.tell(claim.trial, mean[RATE])

    def tell_failed(self, claim: Claim, failure: TrialFailed) -> None:
        """A trial that failed, with its reason."""
        import optuna

        with journal_errors(self.url):
            claim.trial.set_user_attr(REASON, failure.name)
            claim.trial.set_user_attr(DETAIL, failure.detail)
            self.study.tell(claim.trial, state=optuna.trial.TrialState.FAIL)

    def history(self) -> list[Tried]:
        """As the adviser reads it; trials of other workers that run are in it without a result."""
        found = []
        for trial in self.frozen():
            if set(trial.params) == set(self.distributions):
                candidate = self.space.of_params(trial.params)
                gpus = self.space.layouts[candidate.layout].layout.gpus
                runs = tuple(run.quantities(gpus) for run in _runs(trial.user_attrs))
                state = {"COMPLETE": "measured", "RUNNING": "running"}.get(trial.state.name, "failed")
                reason, origin = (str(trial.user_attrs.get(key, "")) for key in (REASON, ORIGIN))
                found.append(Tried(candidate, state, runs, reason, origin))  # type: ignore[arg-type]
        return found

    def documents(self, limits: Mapping[str, float]) -> tuple[TunedTrial, ...]:
        """As people and files have them."""
        found = []
        for trial, tried in zip(
            (t for t in self.frozen() if set(t.params) == set(self.distributions)), self.history(), strict=True
        ):
            mean = tried.mean
            found.append(
                TunedTrial(
                    number=trial.number,
                    origin=tried.origin,
                    layout=tried.candidate.layout,
                    level=tried.candidate.level,
                    settings=dict(tried.candidate.settings),
                    state=tried.state,
                    reason=tried.reason,
                    detail=str(trial.user_attrs.get(DETAIL, "")),
                    predicted=trial.user_attrs.get(PREDICTED, {}),
                    measured=mean,
                    loads=tuple(_runs(trial.user_attrs)),
                    constraints={name: mean[name] / limit - 1 for name, limit in limits.items() if name in mean},
                    deployment=self.space.one_instance(tried.candidate),
                )
            )
        return tuple(found)


def _runs(attributes: Mapping[str, Any]) -> list[MeasuredLoad]:
    """Runs of a trial, in the order they were made."""
    keys = sorted((key for key in attributes if key.startswith(RUN)), key=lambda key: int(key.removeprefix(RUN)))
    return [MeasuredLoad.model_validate(attributes[key]) for key in keys]


def own_identity() -> str:
    """Of this process: host, number and when it started."""
    return json.dumps([socket.gethostname(), os.getpid(), started_at(os.getpid())])


def _abandoned(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether the worker of a running trial is gone. Of a worker on another host nobody here can say."""
    said = trial.user_attrs.get(WORKER)
    if said is None:
        begun = trial.datetime_start
        return begun is not None and (datetime.datetime.now() - begun).total_seconds() > UNCLAIMED_S
    host, pid, started = json.loads(said)
    if host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return bool(started is not None and started_at(pid) != started)

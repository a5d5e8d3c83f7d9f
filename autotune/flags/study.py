"""An Optuna study over a flag space, with the references that say how good its answer is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autotune.documents.plan import Setting
from autotune.documents.problem import DEFAULT_TRIALS
from autotune.errors import OutputError
from autotune.flags.evaluate import Evaluation, FlagEvaluator
from autotune.flags.space import FlagSpace, Params
from autotune.flags.storing import Store, open_store, unusable_storage
from search_spaces.schema import Value

if TYPE_CHECKING:
    import optuna

ENUMERABLE = 400_000
"""Spaces with up to so many distinct combinations are solved exactly."""
IN_MEMORY = "memory"
STARTUP_TRIALS = 40
"""Random trials before TPE models the space; with fewer it settles on a local best more often."""
OTHERS_TRIALS = 8
"""Trials of other processes from which this one samples from theirs too."""
TIE = 1e-4
"""Relative difference in score below which two settings count as equal."""


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial, for trials.csv."""

    number: int
    origin: str
    params: Params
    score: float
    tokens_per_s_per_gpu: float
    latency_s: float
    size: int
    """Sequences (decode) or tokens (prefill) per DP rank and step."""
    violated: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FlagResult:
    """Best flags found, and what they are compared with; scores are tokens/s/GPU."""

    params: Params
    origin: str
    """study, exact, analytic or defaults."""
    size: int
    """Sequences (decode) or tokens (prefill) per DP rank that really run."""
    tokens_per_s_per_gpu: float
    defaults: float
    """With the engine's defaults, which may violate constraints."""
    defaults_latency_s: float
    defaults_violate: tuple[str, ...]
    study: float | None
    random: float | None
    exact: float | None
    """None: the space is too large to enumerate."""
    space_size: int
    trials: tuple[TrialRow, ...]
    feasible_trials: int
    settings: tuple[Setting, ...]
    """Flags set otherwise than the engine would."""


class Scores:
    """Looks combinations up in the enumerated grid, or prices them where there is none."""

    def __init__(self, evaluator: FlagEvaluator, *, enumerate_all: bool) -> None:
        self.evaluator = evaluator
        self.space = evaluator.space
        self.priced: dict[tuple[Value, ...], tuple[Evaluation, int]] = {}
        self.grid = self.space.grid() if enumerate_all and self.space.distinct <= ENUMERABLE else None
        self.all = evaluator.evaluate(self.grid.columns) if self.grid else None

    def of(self, params: Params) -> tuple[Evaluation, int]:
        """An evaluation and the position of the combination in it."""
        if self.grid and self.all:
            return self.all, int(self.grid.positions(self.space.columns([params]))[0])
        self.price([params])
        return self.priced[self._key(params)]

    def price(self, combinations: Iterable[Params]) -> None:
        """Price those not known yet, in one call."""
        if self.grid:
            return
        new = {self._key(params): params for params in combinations if self._key(params) not in self.priced}
        if not new:
            return
        evaluation = self.evaluator.evaluate(self.space.columns(list(new.values())))
        self.priced |= {key: (evaluation, at) for at, key in enumerate(new)}

    def exact(self) -> tuple[Params, float] | None:
        """The best feasible combination of all and its tokens/s/GPU; None where not all were priced, or none is feasible."""
        best = self.all.best() if self.all else None
        if best is None or self.grid is None or self.all is None:
            return None
        return self.grid.params_at(best), float(self.all.tokens_per_s_per_gpu[best])

    def _key(self, params: Params) -> tuple[Value, ...]:
        return tuple(params[name] for name in self.space.values)


def tune_flags(
    evaluator: FlagEvaluator,
    *,
    trials: int | None,
    seed: int,
    storage: str | None = None,
    study_name: str = "autotune",
    on_trial: Callable[[], None] | None = None,
) -> FlagResult:
    """The best flags of one layout, and what they are compared with.

    trials : None enumerates the space, and lets Optuna search it only where it is too large or a storage is given; a number
    asks for a study of that many trials beside the exact optimum, whose first trials are the engine's defaults and the
    analytic best; 0 compares those two alone, and enumerates only when neither is feasible. The result is the best
    feasible of all. Raises OutputError for a storage that cannot be used.
    """
    space = evaluator.space
    asked = _trials(space, trials, storage)
    scores = Scores(evaluator, enumerate_all=trials != 0)
    scores.price([space.analytic, space.defaults, *(params for _, params in _put_back(space, space.analytic))])
    if trials == 0 and not any(_is_feasible(scores, params) for params in (space.analytic, space.defaults)):
        scores = Scores(evaluator, enumerate_all=True)
    rows = run_study(scores, trials=asked, seed=seed, storage=storage, study_name=study_name, on_trial=on_trial)
    study_best = _best(rows)
    exact = scores.exact()
    candidates: list[tuple[str, Params]] = [("analytic", space.analytic), ("defaults", space.defaults)]
    if study_best is not None:
        candidates.insert(0, ("study", study_best.params))
    if exact:
        candidates.insert(0, ("exact", exact[0]))
    origin, params = _winner(scores, candidates)
    evaluation, at = scores.of(params)
    defaults, defaults_at = scores.of(space.defaults)
    return FlagResult(
        params=params,
        origin=origin,
        size=int(evaluation.size[at]),
        tokens_per_s_per_gpu=float(evaluation.tokens_per_s_per_gpu[at]),
        defaults=float(defaults.tokens_per_s_per_gpu[defaults_at]),
        defaults_latency_s=float(defaults.latency_s[defaults_at]),
        defaults_violate=violations(defaults, defaults_at),
        study=study_best.tokens_per_s_per_gpu if study_best else None,
        random=random_search(scores, asked or (0 if trials == 0 else DEFAULT_TRIALS), seed),
        exact=exact[1] if exact else None,
        space_size=space.size,
        trials=tuple(rows),
        feasible_trials=sum(not row.violated for row in rows),
        settings=tuple(default_costs(scores, params)),
    )


def _trials(space: FlagSpace, trials: int | None, storage: str | None) -> int:
    """How many trials Optuna makes: those asked for, else none where the space is enumerated."""
    if trials is not None:
        return trials
    return DEFAULT_TRIALS if storage is not None or space.distinct > ENUMERABLE else 0


def _is_feasible(scores: Scores, params: Params) -> bool:
    evaluation, at = scores.of(params)
    return bool(evaluation.feasible[at])


def default_costs(scores: Scores, params: Params) -> Iterator[Setting]:
    """Each flag put back to the engine's default, one at a time."""
    evaluation, at = scores.of(params)
    changes = list(_put_back(scores.space, params))
    scores.price(changed for _, changed in changes)
    for name, combination in changes:
        changed, where = scores.of(combination)
        loss = (evaluation.score[at] - changed.score[where]) / abs(evaluation.score[at])
        default = scores.space.defaults[name]
        yield Setting(name=name, chosen=params[name], default=default, loss=float(loss), violates=violations(changed, where))


def _put_back(space: FlagSpace, params: Params) -> Iterator[tuple[str, Params]]:
    """Each flag that is set otherwise than by default, and the combination with it at its default."""
    for name, default in space.defaults.items():
        if params[name] != default:
            yield name, {**params, name: default}


def violations(evaluation: Evaluation, at: int) -> tuple[str, ...]:
    """Names of the constraints that a combination violates."""
    return tuple(name for name, values in evaluation.constraints.items() if values[at] > 1e-9)


def _winner(scores: Scores, candidates: list[tuple[str, Params]]) -> tuple[str, Params]:
    """Best feasible candidate; among those within TIE of each other the plainest wins: analytic, then the study."""
    top = max((float(e.score[at]) for e, at in (scores.of(p) for _, p in candidates) if e.feasible[at]), default=0.0)

    def key(candidate: tuple[str, Params]) -> tuple[bool, float, int]:
        evaluation, at = scores.of(candidate[1])
        plain = {"analytic": 2, "study": 1}.get(candidate[0], 0)
        score = float(evaluation.score[at])
        return bool(evaluation.feasible[at]), top if abs(score - top) <= TIE * abs(top) else score, plain

    return max(candidates, key=key)


def _best(rows: list[TrialRow]) -> TrialRow | None:
    allowed = [row for row in rows if not row.violated]
    return max(allowed, key=lambda row: row.score, default=None)


def random_search(scores: Scores, trials: int, seed: int) -> float | None:
    """Best of as many uniformly random combinations; None when none is feasible."""
    if not trials:
        return None
    rng = np.random.default_rng(seed)
    columns = {name: rng.integers(len(values), size=trials) for name, values in scores.space.values.items()}
    if scores.grid and scores.all:
        evaluation, tried = scores.all, scores.grid.positions(columns)
    else:
        evaluation, tried = scores.evaluator.evaluate(columns), np.arange(trials)
    allowed = tried[evaluation.feasible[tried]]
    if not len(allowed):
        return None
    return float(evaluation.tokens_per_s_per_gpu[allowed[np.argmax(evaluation.score[allowed])]])


def run_study(
    scores: Scores, *, trials: int, seed: int, storage: str | None, study_name: str, on_trial: Callable[[], None] | None
) -> list[TrialRow]:
    """Ask, evaluate, tell; a study found in the storage is continued up to `trials`, by all processes that share it together."""
    if not trials or not scores.space.searched:
        return []
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = scores.space
    if storage is None or storage == IN_MEMORY:
        return _in_memory(_new_study(seed, trials), space, scores, trials, on_trial)
    with _storage_errors(storage):
        store = open_store(storage, study_name)
        kept = store.trials()
    try:
        if any(set(trial.params) != set(space.searched) or not _known(trial.params, space) for trial in kept):
            raise OutputError(
                f"study '{study_name}' in {storage} was made for another flag space; choose another storage or remove it"
            )
        return _shared(_new_study(seed + len(kept), trials), store, kept, scores, trials, storage, on_trial)
    finally:
        with _storage_errors(storage):
            store.close()


def _in_memory(
    study: optuna.Study, space: FlagSpace, scores: Scores, trials: int, on_trial: Callable[[], None] | None
) -> list[TrialRow]:
    _enqueue(study, space)
    rows: list[TrialRow] = []
    while len(rows) < trials:
        rows.append(_row_of(_trial(study, scores), scores))
        if on_trial:
            on_trial()
    return rows


def _shared(
    study: optuna.Study,
    store: Store,
    kept: list[optuna.trial.FrozenTrial],
    scores: Scores,
    trials: int,
    storage: str,
    on_trial: Callable[[], None] | None,
) -> list[TrialRow]:
    """Trials sampled here and kept there, until there are enough; those of other processes join what is sampled from."""
    study.add_trials(kept)
    if not kept:
        _enqueue(study, scores.space)
    known = len(kept)
    while known < trials:
        trial = _trial(study, scores)
        with _storage_errors(storage):
            number = store.add(trial, trials)
            if number is None:
                break
            if number - known >= OTHERS_TRIALS:
                study = _rejoined(study, store)
                number = len(study.trials) - 1
        known = number + 1
        if on_trial:
            on_trial()
    with _storage_errors(storage):
        return [_row_of(trial, scores) for trial in store.trials()[:trials]]


def _rejoined(study: optuna.Study, store: Store) -> optuna.Study:
    """A study of all trials that are kept, whose sampler goes its own way: with one seed all processes would try the same."""
    import optuna

    study.sampler.reseed_rng()
    joined = optuna.create_study(direction="maximize", sampler=study.sampler)
    joined.add_trials(store.trials())
    return joined


def _trial(study: optuna.Study, scores: Scores) -> optuna.trial.FrozenTrial:
    """One more trial, finished."""
    import optuna

    searched = scores.space.searched
    trial = study.ask({name: optuna.distributions.CategoricalDistribution(values) for name, values in searched.items()})
    evaluation, at = scores.of(scores.space.complete(trial.params))
    for name, values in evaluation.constraints.items():
        trial.set_constraint(name, float(values[at]))
    return study.tell(trial, float(evaluation.score[at]))


def _new_study(seed: int, trials: int) -> optuna.Study:
    import optuna

    startup = min(STARTUP_TRIALS, max(trials // 3, 1))
    sampler = optuna.samplers.TPESampler(seed=seed % 2**32, multivariate=True, n_startup_trials=startup)
    return optuna.create_study(direction="maximize", sampler=sampler)


def _enqueue(study: optuna.Study, space: FlagSpace) -> None:
    """The analytic point and the engine's defaults come first."""
    for origin, params in (("analytic", space.analytic), ("defaults", space.defaults)):
        asked = {name: params[name] for name in space.searched}
        study.enqueue_trial(asked, user_attrs={"origin": origin}, skip_if_exists=True)


@contextmanager
def _storage_errors(storage: str | None) -> Iterator[None]:
    """Turn whatever a storage driver raises into one message; in memory nothing is caught."""
    try:
        yield
    except Exception as error:  # any driver may sit behind the URL: sqlalchemy, redis, grpc, journal files
        if storage in (None, IN_MEMORY):
            raise
        raise unusable_storage(storage or "", error) from error


def _known(params: Params, space: FlagSpace) -> bool:
    return all(value in space.values[name] for name, value in params.items())


def _row_of(trial: optuna.trial.FrozenTrial, scores: Scores) -> TrialRow:
    params = scores.space.complete(trial.params)
    evaluation, at = scores.of(params)
    return _trial_row(trial.number, trial.user_attrs.get("origin", "tpe"), params, evaluation, at)


def _trial_row(number: int, origin: str, params: Params, evaluation: Evaluation, at: int) -> TrialRow:
    return TrialRow(
        number=number,
        origin=origin,
        params=params,
        score=float(evaluation.score[at]),
        tokens_per_s_per_gpu=float(evaluation.tokens_per_s_per_gpu[at]),
        latency_s=float(evaluation.latency_s[at]),
        size=int(evaluation.size[at]),
        violated=violations(evaluation, at),
    )

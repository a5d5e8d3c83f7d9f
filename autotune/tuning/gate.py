"""What a run must be before it counts: tokens came, requests were completed, lengths are as asked, the service kept up."""

from __future__ import annotations

from autotune.documents.deployment import Load
from autotune.documents.tuned import MeasuredLoad
from autotune.tuning.outcomes import TrialFailed
from cost_models.specs.workload import Workload

COMPLETED = 0.99
"""Share of the requests that must be completed."""
ANSWER_OFF, PROMPT_OFF = 0.05, 0.15
"""How far mean lengths may be off: answers are forced to their length, prompts are tokenised again and get special tokens."""
SATURATED = 1.25
"""Asked over achieved rate from which a queue grew through the run; a run's tail takes up to a fifth of it."""


def check_run(run: MeasuredLoad, load: Load, workload: Workload) -> None:
    """Raise TrialFailed, by the name of the rule, for a run that does not count."""
    if run.completed < COMPLETED * run.requests:
        lost = run.requests - run.completed
        raise TrialFailed("requests_failed", f"{lost:,} of {run.requests:,} requests were not completed", under_load=True)
    if run.tokens_per_s <= 0 or run.osl_tokens <= 0:
        raise TrialFailed("no_tokens", "no token came back", under_load=True)
    share = (1 + load.shortest) / 2
    for what, seen, asked, off in (
        ("answers", run.osl_tokens, workload.osl_tokens * share, ANSWER_OFF),
        ("prompts", run.isl_tokens, workload.isl_tokens * share, PROMPT_OFF),
    ):
        if seen and abs(seen / asked - 1) > max(off, 2 / asked):
            raise TrialFailed(
                "other_lengths", f"{what} have {seen:,.0f} tokens on average, {asked:,.0f} were asked for", under_load=True
            )
    achieved = run.completed / run.duration_s
    if load.rate_per_s and load.rate_per_s / achieved > SATURATED:
        said = f"{achieved:,.2f} requests/s were answered, {load.rate_per_s:,.2f} were sent"
        raise TrialFailed("over_saturated", said, under_load=True)

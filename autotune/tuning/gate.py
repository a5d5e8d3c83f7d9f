"""What a run must be before it counts: tokens came, requests were completed, lengths are as asked.

Whether a service kept up with its rate is a limit (`LAG_LIMIT`), not a matter of counting: runs over it are learned from.
"""

from __future__ import annotations

from autotune.documents.deployment import Load
from autotune.documents.tuned import MeasuredLoad
from autotune.tuning.outcomes import TrialFailed
from cost_models.specs.workload import Workload

COMPLETED = 0.99
"""Share of the requests that must be completed."""
ANSWER_OFF, PROMPT_OFF = 0.05, 0.15
"""How far mean lengths may be off: answers are forced to their length, prompts are tokenised again and get special tokens."""


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

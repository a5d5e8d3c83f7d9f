"""Questions about a choice, answered from what the search weighed."""

from __future__ import annotations

import re

import numpy as np

from autotune.documents.candidates import Candidates
from autotune.documents.plan import Plan
from autotune.errors import ProblemError
from autotune.report.page.page import RunPage
from autotune.report.page.tradeoff import WORDS
from cost_models.specs.base import Spec

SIZE = re.compile(r"(tp|dcp|dp|ep|pp)(\d+)", re.IGNORECASE)
DIFFERENCES_SHOWN = 3


class Explanation(Spec):
    """What the search found for a layout, beside its best plan."""

    asked: str
    layout: str
    """The best layout that fits the question."""
    feasible: bool
    tokens_per_s_per_gpu: float
    latency_s: float
    relative: float
    """Throughput over that of the best candidate, less one."""
    differences_s: dict[str, float]
    """GPU seconds per token that it spends more than the best candidate, by group of operators; they sum to the
    difference of 1 / (tokens/s/GPU)."""
    breaks: tuple[str, ...]
    """Limits that its least bad size breaks, where none is feasible."""
    text: str


def explain_layout(page: RunPage, asked: str) -> Explanation:
    """Answer `--why ep72` from the candidates of a run.

    Raises ProblemError where the question names no layout, none fits, or the run kept no candidates.
    """
    candidates = page.candidates
    best = page.result.best
    if candidates is None or not isinstance(best, Plan):
        raise ProblemError("this run kept no candidates: runs of older versions do not; search the pool again")
    wanted = {name.upper(): int(size) for name, size in SIZE.findall(asked)}
    if not wanted or SIZE.sub("", asked).strip(" ,+"):
        raise ProblemError(f"cannot read {asked!r} as a layout; write sizes like ep72, tp8 or 'dp48 ep48'")
    fitting = [i for i, name in enumerate(candidates.layouts) if fits_sizes(name, wanted)]
    if not fitting:
        raise ProblemError(f"no layout with {asked} was among those weighed: {', '.join(sorted(candidates.layouts)[:12])}, ...")
    return _answer(candidates, np.isin(candidates.layout, fitting), asked)


def fits_sizes(layout: str, wanted: dict[str, int]) -> bool:
    """Whether a layout's label has the sizes asked for; a letter that it does not name is 1."""
    sizes = {name.upper(): int(size) for name, size in SIZE.findall(layout.partition("(")[0])}
    return all(sizes.get(name, 1) == size for name, size in wanted.items())


def _answer(candidates: Candidates, mine: np.ndarray, asked: str) -> Explanation:
    rate = np.array(candidates.tokens_per_s_per_gpu)
    ok = np.array([not text for text in candidates.violates], dtype=bool)
    chosen = int(np.flatnonzero(ok)[np.argmax(rate[ok])])
    usable = np.flatnonzero(mine & ok)
    i = int(usable[np.argmax(rate[usable])]) if len(usable) else _least_bad(candidates, mine)
    relative = rate[i] / rate[chosen] - 1
    mine_s, best_s = gpu_time_per_token_s(candidates, i), gpu_time_per_token_s(candidates, chosen)
    groups = {name: mine_s.get(name, 0.0) - best_s.get(name, 0.0) for name in dict.fromkeys((*mine_s, *best_s))}
    breaks = tuple(WORDS.get(word, word) for word in candidates.violates[i].split())
    return Explanation(
        asked=asked,
        layout=candidates.layouts[candidates.layout[i]],
        feasible=not breaks,
        tokens_per_s_per_gpu=rate[i],
        latency_s=candidates.latency_s[i],
        relative=relative,
        differences_s=groups,
        breaks=breaks,
        text=_text(candidates, i, chosen, relative, groups, breaks),
    )


def gpu_time_per_token_s(candidates: Candidates, i: int) -> dict[str, float]:
    """GPU seconds that one token takes in each group of operators; the groups sum to 1 / (tokens/s/GPU)."""
    step_s = sum(column[i] for column in candidates.operators.values())
    tokens_per_gpu = candidates.tokens_per_s_per_gpu[i] * step_s
    groups: dict[str, float] = {}
    for name, column in candidates.operators.items():
        group = candidates.group_of(name)
        groups[group] = groups.get(group, 0.0) + column[i] / tokens_per_gpu
    return groups


def _least_bad(candidates: Candidates, mine: np.ndarray) -> int:
    """The candidate that breaks the fewest limits, then the fastest."""
    broken = np.array([len(text.split()) for text in candidates.violates])
    rows = np.flatnonzero(mine)
    order = np.lexsort((-np.array(candidates.tokens_per_s_per_gpu)[rows], broken[rows]))
    return int(rows[order[0]])


def _text(candidates: Candidates, i: int, chosen: int, relative: float, groups: dict[str, float], breaks: tuple[str, ...]) -> str:
    name, best = candidates.layouts[candidates.layout[i]], candidates.layouts[candidates.layout[chosen]]
    unit = "sequences" if candidates.phase == "decode" else "tokens"
    what = f"{name} with {candidates.size[i]:,} {unit} per DP rank: {candidates.tokens_per_s_per_gpu[i]:,.0f} tokens/s/GPU"
    if i == chosen:
        return f"{what}. It is the best that was weighed."
    if breaks:
        return f"{what}, but no size of it is feasible; this one breaks: {', '.join(breaks)}. The best is {best}."
    ordered = sorted(groups.items(), key=lambda item: -abs(item[1]))[:DIFFERENCES_SHOWN]
    parts = "; ".join(f"{group} {seconds * 1e6:+,.1f} us" for group, seconds in ordered)
    size = (
        ""
        if candidates.size[i] == candidates.size[chosen]
        else f" It holds {candidates.size[i]:,} {unit} per DP rank, {best} holds {candidates.size[chosen]:,}."
    )
    return f"{what}, {relative:+.1%} against {best}. GPU time per token beside {best}: {parts}.{size}"

"""The chart of all candidates: tokens/s/GPU against tokens/s per user (or time of a prompt), every one with its breakdown."""

from __future__ import annotations

from typing import Any

import numpy as np

from autotune.documents.candidates import Candidates
from autotune.documents.plan import SearchResult
from autotune.report.page.charts import HIDDEN, SHOWN, Chart
from cost_models.arrays import Floats

GB = 1e9
WORDS = {
    "gpu_budget": "GPU budget",
    "gpu_memory": "memory",
    "latency_limit": "latency limit",
    "concurrency": "concurrency asked for",
    "throughput": "throughput asked for",
}


def speeds(candidates: Candidates) -> Floats:
    """What a user sees, larger is better: tokens/s of one sequence (decode), prompts/s of one prompt alone (prefill)."""
    return 1 / np.array(candidates.latency_s)


def frontier(candidates: Candidates) -> list[int]:
    """Positions of feasible candidates that no other beats in both throughput and speed per user, fastest user first."""
    rate, speed = np.array(candidates.tokens_per_s_per_gpu), speeds(candidates)
    feasible = np.array([not text for text in candidates.violates], dtype=bool)
    found, best = [], -np.inf
    for i in np.lexsort((-rate, -speed)).tolist():
        if feasible[i] and rate[i] > best:
            best = rate[i]
            found.append(i)
    return found


def grouped(candidates: Candidates) -> dict[str, list[int]]:
    """Per mille of each candidate's step by group of operators; what overlap hides is negative."""
    columns = {name: np.array(values) for name, values in candidates.operators.items()}
    total = sum(columns.values())
    sums: dict[str, Floats] = {name: np.zeros(len(candidates)) for name in (*SHOWN, HIDDEN)}
    for name, values in columns.items():
        group = HIDDEN if name == "overlap" else candidates.group_of(name)
        sums[group] = sums[group] + values
    return {name: np.round(1000 * values / total).astype(int).tolist() for name, values in sums.items() if np.any(values)}


def data_of(candidates: Candidates) -> dict[str, Any]:
    """Columns as the page's script reads them; numbers shortened."""
    texts = list(dict.fromkeys(candidates.variant))
    reasons = list(dict.fromkeys(candidates.violates))
    step_s = np.sum([np.array(v) for v in candidates.operators.values()], axis=0)
    return {
        "phase": candidates.phase,
        "layouts": candidates.layouts,
        "layout": candidates.layout,
        "size": candidates.size,
        "gpus": candidates.gpus,
        "variants": texts,
        "variant": [texts.index(text) for text in candidates.variant],
        "latency_ms": [round(v * 1e3, 2) for v in candidates.latency_s],
        "step_ms": [round(float(v) * 1e3, 2) for v in step_s],
        "rate": [round(v, 1) for v in candidates.tokens_per_s_per_gpu],
        "memory_gb": [round(v / GB, 1) for v in candidates.memory_bytes],
        "memory_limit_gb": round(candidates.memory_limit_bytes / GB, 1),
        "latency_limit_ms": candidates.latency_limit_s * 1e3,
        "chance": [round(v * 100) for v in candidates.chance],
        "reasons": [", ".join(WORDS.get(word, word) for word in text.split()) for text in reasons],
        "violates": [reasons.index(text) for text in candidates.violates],
        "groups": grouped(candidates),
        "frontier": frontier(candidates),
    }


def tradeoff(result: SearchResult, candidates: Candidates) -> Chart:
    """The chart's frame; the points are drawn by the script from `data_of`."""
    best = frontier(candidates)
    infeasible = sum(bool(text) for text in candidates.violates)
    decode = candidates.phase == "decode"
    rows = tuple(
        (
            candidates.layouts[candidates.layout[i]],
            f"{candidates.size[i]:,}",
            f"{candidates.tokens_per_s_per_gpu[i]:,.0f}",
            f"{candidates.latency_s[i] * 1e3:,.1f} ms",
            f"{1 / candidates.latency_s[i]:,.1f}" if decode else f"{candidates.latency_s[i]:,.2f} s",
            f"{candidates.memory_bytes[i] / GB:,.1f} GB",
            f"{candidates.chance[i]:.0%}",
        )
        for i in best
    )
    return Chart(
        id="candidates",
        title="Throughput against speed per user",
        says=(
            f"{len(candidates):,} of {result.statistics.rows:,} costed candidates (best variant of each layout and step size), "
            f"{len(candidates) - infeasible:,} feasible, {len(best)} on the frontier. Choose one to see where its step goes."
        ),
        option={},
        columns=(
            "layout",
            "sequences per DP rank" if decode else "tokens per DP rank",
            "tokens/s/GPU",
            "TPOT" if decode else "prompt",
            "tokens/s per user" if decode else "time of a prompt",
            "memory",
            "meets the limit",
        ),
        rows=rows,
        height_px=420,
    )

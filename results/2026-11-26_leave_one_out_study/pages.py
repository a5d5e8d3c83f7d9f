"""What the published cases look like when nothing printed on their own page is in the calibration.

Each page's entries are replaced by those of another page, engine or GPU; the cases of that page are predicted again (study.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from autotune.predicting.step import predict_decode, predict_prefill, resolve
from autotune.validating.cases import published
from cost_models.calibration import Calibration, Entry
from cost_models.catalog import load_calibration


def entry(document: str, family: str, variant: str = "default", **changes: float) -> Entry:
    found = load_calibration(document).entry(family, variant)
    return found.model_copy(update={"coefficients": {**found.coefficients, **changes}})


def replacements() -> dict[str, dict[tuple[str, str], Entry]]:
    """Page -> (family, variant) -> what stands in for the page's own entry."""
    hopper_efficiency = {"memory_efficiency": 0.84}
    return {
        "vllm.ai/blog/2026-02-03-dsr1-gb200-part1": {
            ("host", "default"): entry("gb200-sglang", "host"),
            ("dispatch", "allgather_reducescatter.dispatch"): entry("gb200-sglang", "dispatch", "allgather_reducescatter.dispatch"),
            ("dispatch", "allgather_reducescatter.combine"): entry("gb200-sglang", "dispatch", "allgather_reducescatter.combine"),
            ("elementwise", "prefill"): entry("h800-deepseek", "elementwise", "prefill", memory_efficiency=0.77),
            ("offload", "default"): entry("h200-vllm", "offload"),
        },
        "lmsys.org/blog/2025-05-05-large-scale-ep": {
            ("host", "default"): entry("h800-deepseek", "host"),
            ("elementwise", "prefill"): entry("gb200-vllm", "elementwise", "prefill", **hopper_efficiency),
            ("overlap", "deepep_low_latency"): entry("h800-deepseek", "overlap", "deepep_low_latency"),
            ("overlap", "deepep_normal"): entry("h800-deepseek", "overlap", "deepep_normal", communication_slowdown=1.0),
            # TensorRT-LLM's wide-EP blogs: (max - mean) / mean of 0.11 at EP32 and EP36 with EPLB, which drift of 0.13 leaves
            ("balance", "dynamics"): entry("h200-vllm", "balance", "dynamics", drift_sigma=0.13),
        },
        "lmsys.org/blog/2025-06-16-gb200-part-1": {("host", "default"): entry("gb200-vllm", "host")},
        "lmsys.org/blog/2025-09-25-gb200-part-2": {
            ("host", "default"): entry("gb200-vllm", "host"),
            ("overlap", "deepep_low_latency"): entry("gb200-sglang", "overlap", "deepep_low_latency", single_batch_hidden=0.3),
        },
        "github.com/deepseek-ai/profile-data": {
            ("host", "default"): entry("h200-sglang", "host"),
            ("elementwise", "default"): entry("h200-sglang", "elementwise"),
            ("elementwise", "prefill"): entry("h200-sglang", "elementwise", "prefill"),
            ("overlap", "deepep_low_latency"): entry("h200-sglang", "overlap", "deepep_low_latency"),
            ("overlap", "deepep_normal"): entry("h200-sglang", "overlap", "deepep_normal", communication_slowdown=1.0),
        },
    }


def without(calibration: Calibration, page: dict[tuple[str, str], Entry]) -> Calibration:
    families = {family: dict(variants) for family, variants in calibration.families.items()}
    for (family, variant), stand_in in page.items():
        families[family][variant] = stand_in
    return calibration.model_copy(update={"families": families})


def errors() -> Iterator[tuple[str, str, float, float]]:
    """(page, case, error as shipped, error without the page) of every case whose page set something."""
    pages = replacements()
    for case in (case for file in published() for case in file.cases):
        page = next((name for name in pages if name in case.source), None)
        if page is None:
            continue
        resolved = resolve(case.deployment)
        run = predict_prefill if case.deployment.phase == "prefill" else predict_decode
        left = dataclasses.replace(resolved.machine, calibration=without(resolved.machine.calibration, pages[page]))
        measured = case.measured.tokens_per_s_per_gpu
        own, other = (run(r).tokens_per_s_per_gpu / measured - 1 for r in (resolved, dataclasses.replace(resolved, machine=left)))
        yield page, case.id, own, other

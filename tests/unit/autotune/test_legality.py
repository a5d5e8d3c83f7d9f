"""Search, check and the exporters ask one table: what one refuses the others refuse, and what search offers all take."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from autotune.auditing.checking import check
from autotune.auditing.conflicts import audit
from autotune.auditing.goals import Goals
from autotune.documents.deployment import Deployment
from autotune.documents.problem import Problem
from autotune.errors import ExportError, ProblemError
from autotune.exporters import export
from autotune.layouts.enumerate import layout_rows, rule_subject
from autotune.layouts.table import build_table, largest_fitting_size
from autotune.predicting.legality import pool_findings, subject_of
from autotune.resolving import resolve_problem
from autotune.searching.services.sides import pools_of
from cost_models.dispatch import BACKENDS
from cost_models.memory import decode_memory
from search_spaces.rules import RULES, legal

GRID = [
    ("vllm", "deepseek-r1", "fp8-block", "hgx-h200"),
    ("vllm", "qwen3-235b-a22b", "fp8-block", "hgx-h200"),
    ("vllm", "gpt-oss-120b", "mxfp4", "gb200-nvl72"),
    ("sglang", "deepseek-r1", "nvfp4", "gb200-nvl72"),
    ("sglang", "qwen3-235b-a22b", "fp8-block", "hgx-h200"),
]
SHAPES = [(1, 8, 8), (2, 4, 8), (8, 1, 1), (8, 1, 8), (16, 1, 1)]


def deployment(engine, model, precision, hardware, role, **pool) -> Deployment:
    load = {"rate_per_s": 1.0} if role == "serve" else None
    return Deployment.model_validate({
        "hardware": hardware, "model": model, "precision": precision, "engine": {"name": engine}, "phase": role, "load": load,
        "workload": {"isl_tokens": 1000, "osl_tokens": 1000}, "pools": {role: pool},
    })  # fmt: skip


def pools(engine: str, role: str):
    """Pools of a grid, legal and not: shapes, backends, offload, rebalancing."""
    for (tp, dp, ep), backend, offload, eplb in itertools.product(SHAPES, BACKENDS, (False, True), ("none", "eplb")):
        if (dp == 1) != (backend == "none") or (offload and role != "prefill"):
            continue
        sized = {"max_batched_tokens": 4096} if role == "prefill" else {"batch_per_dp_rank": 64, "max_batched_tokens": 4096}
        yield {
            "tp": tp, "dp": dp, "ep": ep, "all2all_backend": backend, "expert_balance": {"kind": eplb}, **sized,
            "offload": {"group_size": 2} if offload else None,
            "cuda_graph": role == "decode" and backend != "deepep_normal",
            "flags": {"enable_eplb": eplb == "eplb"},
        }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "model", "precision", "hardware"), GRID)
def test_what_one_refuses_the_others_refuse(engine, model, precision, hardware):
    """check's conflicts, the search's filter and the exporters' refusals are the same rules on some 150 pools."""
    seen: set[str] = set()
    for role in ("prefill", "decode", "serve"):
        for pool in pools(engine, role):
            plan = deployment(engine, model, precision, hardware, role, **pool)
            subject = subject_of(plan, role)
            found = pool_findings(subject)
            stopped = {finding.rule for finding in found if finding.stops}
            reported = audit(plan).conflicts
            assert {rule for rule in stopped if any(f"[{rule}:" in line for line in reported)} == stopped
            assert bool(legal(RULES, subject)[0]) == (not found)
            if stopped:
                with pytest.raises(ExportError, match="|".join(rf"\[{rule}:" for rule in stopped)):
                    export(plan)
            elif (kind := f"{role} {subject.choice() and subject.choice().value}") not in seen:  # one of each is enough
                assert export(plan)
                seen.add(kind)
            seen |= {finding.rule for finding in found}
    assert len(seen & {rule.name for rule in RULES}) >= 3


@pytest.mark.parametrize("target", ["decode", "prefill", "serve"])
@pytest.mark.parametrize(("engine", "model", "precision", "hardware"), GRID)
def test_a_search_offers_legal_rows_only(engine, model, precision, hardware, target):
    problem = Problem(hardware=hardware, model=model, engine=engine, precision=precision, target=target, gpus=32)
    resolved = resolve_problem(problem)
    rows = layout_rows(resolved)
    assert len(rows)
    assert legal(RULES, rule_subject(resolved, rows)).all()
    if target != "serve":
        table = build_table(resolved)
        fine = legal(RULES, rule_subject(resolved, table.rows))
        assert fine.all(), np.flatnonzero(~fine)


def test_a_search_keeps_what_is_legal():
    """Pure TP of gpt-oss-120b in MXFP4, which its publisher's recipes use: 2,880 / 2 is no multiple of 128 and needs none."""
    resolved = resolve_problem(Problem(hardware="hgx-h100", model="gpt-oss-120b", gpus=8))
    rows = layout_rows(resolved)
    for tp in (1, 2, 4, 8):
        assert ((rows.tp == tp) & (rows.dp == 1) & (rows.ep == 1) & (rows.pp == 1)).any(), tp
    assert not (rows.eplb > 0).any()  # vLLM does not rebalance it


def test_offload_comes_without_rebalancing():
    rows = layout_rows(resolve_problem(Problem(hardware="gb200-nvl72", target="prefill", gpus=8)))
    offloads = rows.offload_group_size > 0
    assert offloads.any()
    assert not (rows.eplb[offloads] > 0).any()
    assert (rows.eplb[~offloads & (rows.dp > 1) & (rows.ep > 1)] > 0).all()


def test_prefill_budgets_are_whole_pages():
    for engine in ("vllm", "sglang"):
        table = build_table(resolve_problem(Problem(hardware="gb200-nvl72", target="prefill", engine=engine, gpus=8)))
        assert not (table.rows.batched_tokens % 64).any()


def test_plans_leave_memory_to_what_grows_after_profiling():
    """0.92 of device memory with DeepEP, 0.95 with others, unless a margin was asked for."""
    for asked, most in (({}, {True: 0.92, False: 0.95}), ({"memory_fraction": 0.9}, {True: 0.9, False: 0.9})):
        resolved = resolve_problem(Problem(hardware="gb200-nvl72", gpus=8, **asked))
        rows = layout_rows(resolved)
        rows = rows.replace(batch=largest_fitting_size(resolved, rows))
        used = decode_memory(resolved.machine, rows, resolved.problem.workload).total_bytes
        used = used / resolved.hardware.gpu.hbm_visible_bytes.value
        deepep = np.isin(rows.backend, [BACKENDS.index("deepep_low_latency"), BACKENDS.index("deepep_normal")])
        for kind, share in most.items():
            assert used[(deepep == kind) & (rows.batch > 1)].max() <= share + 1e-9


def test_pools_that_cannot_exchange_caches_are_no_service():
    pair = {"hardware": "gb200-nvl72", "prefill_hardware": "hgx-h200", "gpus": 16, "prefill_gpus": 16}
    problem = Problem(**pair, target="serve", model="deepseek-r1")
    with pytest.raises(ProblemError, match="pair_of_one_checkpoint"):
        pools_of(resolve_problem(problem))


def test_what_our_exporter_cannot_write_is_no_refusal_of_the_engine():
    """R1 W8A8 on two nodes, TP8 PP2: a user's own script runs it (vllm-ascend#1127); we write no pipelines for the plugin."""
    plan = deployment("vllm-ascend", "deepseek-r1", "int8", "ascend-910b2", "serve", tp=8, pp=2, batch_per_dp_rank=8)
    verdict = check(plan, Goals())
    assert not verdict.conflicts
    assert any("no launch script can be written" in remark for remark in verdict.remarks)
    with pytest.raises(ExportError, match="not written for vLLM-Ascend"):
        export(plan)

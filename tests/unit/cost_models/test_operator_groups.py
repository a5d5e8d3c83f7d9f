"""Every operator belongs to one group, whatever the model."""

from __future__ import annotations

import pytest

from cost_models.catalog import load_model, load_recipe, model_names
from cost_models.dispatch import BACKENDS
from cost_models.operator_groups import GROUPS, operator_groups
from cost_models.prefill import prefill_step
from cost_models.rows import Rows
from cost_models.specs.workload import Workload
from cost_models.step import decode_step
from tests.conftest import machine_of

PROMPT = Workload(isl_tokens=4_000, osl_tokens=100)


@pytest.mark.parametrize("name", model_names())
def test_every_operator_of_both_phases_has_a_group(name):
    machine = machine_of(model=name, recipe="bf16")
    rows = [Rows.of(tp=4, pp=2, batch=4)]
    if machine.model.moe:
        rows.append(Rows.of(dp=8, ep=8, batch=64, backend=BACKENDS.index("deepep_low_latency")))
    known = operator_groups(machine.model, machine.recipe)
    assert set(known.values()) <= set(GROUPS)
    for row in rows:
        ran = {*decode_step(machine, row, 4_000.0).operators, *prefill_step(machine, row, PROMPT).operators}
        assert ran <= set(known)


@pytest.mark.parametrize(
    ("model", "cores"),
    [
        ("deepseek-v3", {"absorb", "attention"}),
        ("deepseek-v3.2", {"absorb", "indexer", "sparse_attention"}),
        ("minimax-m3", {"attention", "block_attention", "indexer"}),
        ("gemma-4-31b", {"attention", "window_attention"}),
        ("kimi-linear-48b-a3b", {"absorb", "attention", "kda_scan", "kda_update", "short_convolution"}),
    ],
)
def test_attention_is_what_its_kinds_run_beside_their_matrices(model, cores):
    """A window's, a selection's and a recurrence's kernels are attention, not small kernels."""
    groups = operator_groups(load_model(model), load_recipe("bf16"))
    assert {name for name, group in groups.items() if group == "attention"} == cores
    assert groups["o_proj" if "o_proj" in groups else "kda_out"] == "projections and dense layers"

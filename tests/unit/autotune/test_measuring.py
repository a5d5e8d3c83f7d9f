"""Measuring, as far as it needs no GPU: what is timed, in which order, and that nothing measured is ever lost."""

import json
import math

import pytest
from typer.testing import CliRunner

from autotune.calibrating.operators import OPERATORS
from autotune.calibrating.timings import read_timings
from autotune.cli.main import app
from autotune.cli.measure import gpu_name
from autotune.documents.problem import Problem
from autotune.documents.results import dump_yaml
from autotune.errors import ProblemError
from autotune.measuring.choosing import most_telling
from autotune.measuring.shapes import FIRST, LINKS, MACHINE, KernelShape, ShapeGrid, kernel_shapes, only_shapes
from autotune.measuring.table import MeasuredTable
from autotune.searching.pools import search
from cost_models.catalog import load_model

V3 = load_model("deepseek-v3")
RUN = {"time_utc": "2026-11-22T00:00:00+00:00"}
GEMM = KernelShape("dense_gemm_kernel", "bf16", {"m": 64, "n": 7168, "k": 2048})
ATTENTION = KernelShape("mla_decode", "bf16", {"sequences": 8, "context_tokens": 1024, "heads": 128})


def test_every_matrix_of_the_model_is_timed_as_tensor_parallelism_cuts_it():
    found = kernel_shapes(V3, 1, ShapeGrid(tensor_parallel=(1, 4)))
    sizes = {(s.columns["n"], s.columns["k"]) for s in found if s.operator == "dense_gemm_kernel" and s.dtype == "bf16"}
    assert {(7168, 128 * 128), (7168, 128 * 128 // 4)} <= sizes  # o_proj is row-parallel
    assert {(128 * 192, 1536), (128 * 192 // 4, 1536)} <= sizes  # q_b is column-parallel
    assert {s.columns["heads"] for s in found if s.operator == "mla_decode"} == {128, 32}
    assert len({s.key for s in found}) == len(found)


def test_links_only_up_to_the_gpus_present_and_first():
    assert not [s for s in kernel_shapes(V3, 1, ShapeGrid()) if s.operator in LINKS]
    found = kernel_shapes(V3, 4, ShapeGrid())
    assert {s.columns["ranks"] for s in found if s.operator in LINKS} == {2, 4}
    positions = [s.operator in FIRST for s in found]
    assert positions == sorted(positions, reverse=True)


def test_columns_are_what_calibration_reads():
    for shape in kernel_shapes(V3, 2, ShapeGrid()):
        if shape.operator in OPERATORS:
            asked = {c for c in OPERATORS[shape.operator].columns if c != "active_experts"}
            assert asked <= set(shape.columns), shape.label()


def test_unknown_operators_are_named():
    with pytest.raises(ProblemError, match=r"nothing to time under flash_mla here; known: .*mla_decode"):
        only_shapes(kernel_shapes(V3, 1, ShapeGrid()), ["flash_mla"])


def test_a_table_resumes_and_calibration_reads_it(tmp_path):
    path = tmp_path / "timings.csv"
    table = MeasuredTable.opened(path, "H200", RUN)
    table.add(GEMM, 7.5e-6, kernel="torch.matmul (cuBLAS)", spread=0.01, error=2e-3)
    table.fail(ATTENTION, "out of memory, by a lot")
    again = MeasuredTable.opened(path, "H200", RUN)
    assert again.has(GEMM)
    assert not again.has(ATTENTION)  # what failed is tried again
    again.add(ATTENTION, 1.9e-5, kernel="a, b", spread=0.0, error=0.0)
    assert len(MeasuredTable.opened(path, "H200", RUN).rows) == 2
    read = read_timings(path)
    assert dict(zip(read.rows.operator, read.rows.latency_s, strict=True)) == {"dense_gemm_kernel": 7.5e-6, "mla_decode": 1.9e-5}
    assert len(json.loads(path.with_suffix(".json").read_text())["runs"]) == 2


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.write_text(p.read_text()[:-20]), "line 2 is not whole"),
        (lambda p: p.write_text("a,b\n1,2\n"), "columns operator, dtype, gpu"),
        (lambda p: p.with_suffix(".json").unlink(), "is missing or broken"),
        (lambda p: p.with_suffix(".json").write_text('{"format": "other"}'), "was not written by autotune measure"),
    ],
)
def test_foreign_and_half_written_tables_are_refused_and_left_alone(tmp_path, spoil, message):
    path = tmp_path / "timings.csv"
    MeasuredTable.opened(path, "H200", RUN).add(GEMM, 7.5e-6, kernel="k", spread=0.0, error=0.0)
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(ProblemError, match=message):
        MeasuredTable.opened(path, "H200", RUN)
    assert path.read_bytes() == before


def test_a_table_of_another_gpu_is_refused(tmp_path):
    MeasuredTable.opened(tmp_path / "t.csv", "H200", RUN).add(GEMM, 7.5e-6, kernel="k", spread=0.0, error=0.0)
    with pytest.raises(ProblemError, match="holds measurements of H200, this is H100"):
        MeasuredTable.opened(tmp_path / "t.csv", "H100", RUN)


@pytest.mark.parametrize(
    ("device", "name"), [("NVIDIA H200", "H200"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA GB200", "GB200")]
)
def test_devices_are_found_in_the_catalogue(device, name):
    assert gpu_name(None, device) == name
    with pytest.raises(ProblemError, match="name a hardware file with --hw"):
        gpu_name(None, "NVIDIA A100-SXM4-80GB")


def test_a_plan_asks_for_its_own_shapes_most_telling_family_first(tmp_path):
    result = search(Problem(hardware="hgx-h200", gpus=16, trials=0))
    (tmp_path / "plan.yaml").write_text(dump_yaml(result.model_dump(mode="json")))
    everything = kernel_shapes(V3, 8, ShapeGrid(expert_parallel=(8, 16)))
    found = most_telling(tmp_path / "plan.yaml", everything)
    assert len(found) < len(everything) / 3
    batch = result.best.deployment.pool.batch_per_dp_rank
    for shape in found:
        if "m" in shape.columns:
            assert abs(math.log(shape.columns["m"] / batch)) <= math.log(2) + 1e-9
    families = [
        "dispatch" if shape.operator in LINKS else shape.operator.split("_")[0]
        for shape in found
        if shape.operator not in MACHINE
    ]
    assert found[0].operator in MACHINE
    assert families[0] in {m.family.split(".")[0].split("_")[0] for m in result.measurements}


def test_dry_run_lists_shapes_without_a_gpu_and_measuring_without_one_says_so():
    listed = CliRunner().invoke(app, ["measure", "--dry-run", "--operators", "mla_decode", "--tp", "8"])
    assert listed.exit_code == 0
    assert "mla_decode bf16 sequences=1 context_tokens=1024 heads=16" in listed.output
    refused = CliRunner().invoke(app, ["measure"])
    assert refused.exit_code != 0
    assert "torch" in str(refused.exception) or "no GPU" in str(refused.exception)

"""Recipes: collections become deployments, one bad file by name; a recipe beside our plan, and what each difference is worth."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from autotune.auditing.checking import outcome
from autotune.auditing.commands import ReadCommand
from autotune.auditing.goals import Goals
from autotune.documents.deployment import Deployment, Load, Pool
from autotune.documents.problem import Problem
from autotune.errors import ProblemError
from autotune.manifests.judging import GivenToo, read_manifest
from autotune.manifests.registry import read_any
from autotune.recipes.collecting import ImportedRecipes, import_recipes, write_imported
from autotune.recipes.comparing import compare_recipe, problem_of_pools
from autotune.recipes.differing import ASPECTS, NOT_PRICED, steps_between
from cost_models.catalog import read_yaml, validated

FIXTURES = Path(__file__).parents[2] / "fixtures"
FILES, SCRIPTS = FIXTURES / "manifests", FIXTURES / "recipes"
H200 = GivenToo(hardware="hgx-h200")
RECIPE = {
    "hardware": "hgx-h200", "model": "qwen3-235b-a22b", "precision": "fp8-block", "engine": {"name": "vllm"},
    "workload": {"isl_tokens": 1000, "osl_tokens": 500}, "pools": {"decode": {"tp": 4, "ep": 4, "batch_per_dp_rank": 32}},
}  # fmt: skip


def recipe(**changes) -> Deployment:
    return Deployment.model_validate({**RECIPE, **changes})


@pytest.fixture(scope="module")
def collection() -> ImportedRecipes:
    return import_recipes([FILES / "dynamo", FILES / "srt_slurm", FILES / "vllm_recipe"], H200)


@pytest.mark.slow
def test_a_collection_becomes_deployments_and_bad_files_are_named(collection):
    """Of ten DynamoGraphDeployments and ten srt-slurm recipes five do not say enough; the other files are read all the same."""
    assert {unread.source for unread in collection.unread} >= {
        "alpha_dynamo_image.yaml", "beta_configmap_missing.yaml", "beta_unknown_version.yaml", "v1_image_alias.yaml",
        "v2_unknown_role.yaml",
    }  # fmt: skip
    sources = {one.source for one in collection.deployments}
    assert {"alpha_sglang_pair.yaml", "v2_pair.yaml", "v1_fp4_wide.yaml", "entry.yaml"} <= sources
    assert all(not unread.message.startswith(unread.source) for unread in collection.unread)


@pytest.mark.slow
def test_each_load_of_a_benchmark_is_a_deployment_and_hardware_is_the_files_own(collection):
    """A pair whose benchmark keeps 128 and 256 in flight, on the GB200 that it names; H200 is for the others."""
    pair = {one.name: one.deployment for one in collection.deployments if one.source == "v1_gb200_pair.yaml"}
    assert {name: made.load for name, made in pair.items()} == {
        "v1_gb200_pair-c128": Load(concurrency=128), "v1_gb200_pair-c256": Load(concurrency=256),
    }  # fmt: skip
    assert {made.hardware for made in pair.values()} == {"gb200-nvl72"}


def test_strategies_and_variants_of_an_entry_are_deployments_of_their_own(collection):
    names = [one.service for one in collection.deployments if one.source == "entry.yaml"]
    strategies = ("single_node_tp", "multi_node_tp_pp")  # single_node_tep is the same command here
    assert names == [f"{strategy}/{variant}" for strategy in strategies for variant in ("default", "nvfp4")]


def test_written_files_are_the_deployments_and_say_where_they_are_from(collection, tmp_path):
    write_imported(tmp_path / "out", collection)
    files = {path.stem: path for path in (tmp_path / "out").iterdir()}
    assert set(files) == {one.name for one in collection.deployments}
    for one in collection.deployments:
        assert validated(Deployment, read_yaml(files[one.name]), one.name) == one.deployment
        assert files[one.name].read_text().startswith(f"# Imported by `autotune recipe import` from {one.source}")
    few = collection.model_copy(update={"deployments": collection.deployments[:1]})
    (tmp_path / "out" / "mine.yaml").write_text("hardware: mine\n")
    write_imported(tmp_path / "out", few)  # what an earlier import wrote goes, what is somebody's stays
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {collection.deployments[0].name, "mine"}


def test_what_is_not_modelled_is_said_in_the_file(tmp_path):
    (tmp_path / "serve.sh").write_text(
        "vllm serve deepseek-ai/DeepSeek-R1-0528 --tensor-parallel-size 8 --prefill-context-parallel-size 2\n"
    )
    found = import_recipes([tmp_path], H200)
    (one,) = found.deployments
    assert one.unmodelled
    write_imported(tmp_path / "out", found)
    assert f"# not in this document, not modelled: {one.unmodelled[0]}" in (tmp_path / "out" / "serve.yaml").read_text()


def test_files_that_start_no_engine_are_passed_over_in_folders_and_refused_by_name(tmp_path):
    (tmp_path / "service.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n")
    (tmp_path / "setup.sh").write_text("pip install vllm\n")
    (tmp_path / "notes.yaml").write_text("hello: 1\n")
    (tmp_path / "chart.yaml").write_text("kind: Pod\nspec: {{ .Values.spec }}\n")
    walked = import_recipes([tmp_path], H200)
    assert {one.source for one in walked.passed_over} == {"service.yaml", "setup.sh", "notes.yaml"}
    assert ["a template that was not rendered" in one.message for one in walked.unread] == [True]
    named = import_recipes([tmp_path / "service.yaml"], H200)
    assert [one.source for one in named.unread] == ["service.yaml"]
    with pytest.raises(ProblemError, match="no such file or folder"):
        import_recipes([tmp_path / "none"], H200)


def test_a_shape_that_no_reader_expects_costs_one_file(tmp_path, monkeypatch):
    """Strangers' files hold what nobody thought of: a fault of a reader is said of its file, and the others are read."""
    from autotune.recipes import collecting

    real = collecting.read_any

    def faulty(path, hardware):
        return {}["no such key"] if path.name == "odd.yaml" else real(path, hardware)

    monkeypatch.setattr(collecting, "read_any", faulty)
    (tmp_path / "odd.yaml").write_text("a: 1\n")
    (tmp_path / "good.sh").write_text("vllm serve Qwen/Qwen3-235B-A22B-FP8 --tensor-parallel-size 4\n")
    found = import_recipes([tmp_path], H200)
    assert [one.source for one in found.deployments] == ["good.sh"]
    assert "has a shape that its reader does not expect" in found.unread[0].message


def test_names_of_files_are_plain_and_differ(tmp_path):
    line = "vllm serve Qwen/Qwen3-235B-A22B-FP8 --tensor-parallel-size 4\n"
    for name in ("a b.sh", "a?b.sh", "A-B.sh"):
        (tmp_path / name).write_text(line)
    names = [one.name for one in import_recipes([tmp_path], H200).deployments]
    assert len({name.lower() for name in names}) == 3
    assert all(set(name) <= set("aAbB-123.") for name in names)


def test_every_field_of_a_pool_is_one_difference():
    """A field that nobody compares would be a difference that is not said."""
    held = [name for aspect in ASPECTS for name in aspect.fields]
    assert sorted([*held, *NOT_PRICED]) == sorted(Pool.model_fields)


def test_all_differences_made_one_after_the_other_are_our_plan():
    ours = recipe(pools={"decode": {"dp": 4, "ep": 4, "batch_per_dp_rank": 64, "all2all_backend": "deepep_low_latency",
                                    "overlap": "two_batch", "memory_fraction": 0.9}})  # fmt: skip
    made = recipe()
    for step in steps_between(recipe(), ours):
        made = step.edit.apply(made)
    assert made.pool.model_copy(update={"batch_per_dp_rank": 64}) == ours.pool
    # the layout alone keeps 32 sequences in all: 8 on each of four ranks
    (layout,) = (step for step in steps_between(recipe(), ours) if step.edit.label == "layout")
    assert layout.edit.apply(recipe()).pool.batch_per_dp_rank == 8
    assert (layout.before, layout.after) == ("1 x TP4 EP4", "1 x DP4 EP4")


def test_pools_of_other_roles_are_one_difference():
    load = {"phase": "serve", "load": {"concurrency": 8}}
    alone = recipe(**load, pools={"serve": {"tp": 4, "ep": 4}})
    pair = recipe(**load, pools={"prefill": {"tp": 4, "ep": 4, "max_batched_tokens": 4096}, "decode": {"tp": 4, "ep": 4}})
    (step,) = steps_between(alone, pair)
    assert (step.edit.label, step.edit.apply(alone)) == ("kind of service", pair)


def test_the_problem_is_the_recipe_s_own():
    asked = problem_of_pools(recipe(), {"tpot_limit_s": 0.02})
    assert asked == Problem(
        hardware="hgx-h200", model="qwen3-235b-a22b", target="decode", precision="fp8-block", engine="vllm", gpus=4,
        workload=recipe().workload, tpot_limit_s=0.02,
    )  # fmt: skip


def test_a_pair_without_a_load_is_asked_for_one():
    pools = {"prefill": {"tp": 4, "max_batched_tokens": 4096}, "decode": {"tp": 4, "batch_per_dp_rank": 8}}
    with pytest.raises(ProblemError, match="say its load with --rate or --clients"):
        compare_recipe("pair", ReadCommand(recipe(pools=pools)), Goals())


@pytest.mark.slow
def test_a_recipe_beside_our_plan():
    """Ours is no slower for a user, and each worth is the price of the recipe with that difference alone."""
    read = read_manifest(read_any(FILES / "kubernetes" / "anchors_and_list.yaml"), H200, "recipe")
    found = compare_recipe("anchors", read, Goals())
    assert found.same_speed
    assert found.ours is not None
    assert found.ours.latency_s <= found.recipe.latency_s * (1 + 1e-6)
    assert found.gain == pytest.approx(found.ours.tokens_per_s_per_gpu / found.recipe.tokens_per_s_per_gpu - 1)
    steps = steps_between(read.deployment, found.deployment)
    assert [worth.what for worth in found.differences] == [step.edit.label for step in steps]
    for worth, step in zip(found.differences, steps, strict=True):
        if worth.gain is not None and not worth.note:
            alone = outcome(step.edit.apply(read.deployment), Goals(), aggregated=True).tokens_per_s_per_gpu
            assert worth.gain == pytest.approx(alone / found.recipe.tokens_per_s_per_gpu - 1)
    assert any("both are judged as they decode" in line for line in found.remarks)
    assert {"--tensor-parallel-size", "--kv-transfer-config"} & {option.option for option in found.options}


def test_limits_that_are_asked_for_hold_both_sides():
    found = compare_recipe("asked", ReadCommand(recipe()), Goals(tpot_s=0.1))
    assert not found.same_speed
    assert found.problem["tpot_limit_s"] == 0.1
    assert [goal.name for goal in found.recipe.goals] == ["tpot_s"]
    assert found.ours.goals[0].met


def test_no_plan_within_the_limits_is_said():
    found = compare_recipe("too fast", ReadCommand(recipe()), Goals(tpot_s=1e-4))
    assert found.ours is None
    assert "no feasible plan" in found.no_plan


def test_gains_that_do_not_make_the_whole_do_not_add_up():
    """1.1 x 1.2 = 1.32 is not 1.5, and is 1.33 within two hundredths."""
    from autotune.recipes.comparing import ADDS_UP, Worth, _together

    worths = tuple(Worth(what="a", recipe="", ours="", gain=gain, latency_s=None, ttft_p99_s=None) for gain in (0.1, 0.2))
    assert _together(worths) == pytest.approx(0.32)
    assert abs(1.32 / 1.5 - 1) > ADDS_UP > abs(1.32 / 1.33 - 1)


@pytest.mark.slow
def test_a_service_is_compared_under_the_load_of_its_benchmark(monkeypatch, capsys):
    from autotune.cli.main import main

    files = [str(FILES / "srt_slurm" / name) for name in ("v1_h200_aggregated.yaml", "v2_unknown_role.yaml")]
    monkeypatch.setattr(sys, "argv", ["autotune", "recipe", "compare", *files, "--ttft-p99", "5s", "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert stop.value.code == 1
    assert "v2_unknown_role.yaml: roles.encoder is none of" in printed.err
    (one,) = found["compared"]
    assert one["problem"]["load"] == {"concurrency": 64, "shortest": 1.0, "warmed_up": True}
    assert one["ours"]["tokens_per_s_per_gpu"] >= one["recipe"]["tokens_per_s_per_gpu"] * 0.98

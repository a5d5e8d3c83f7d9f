"""Files that start engines come back as the deployments that they are: ten of Kubernetes, of Dynamo and of srt-slurm, and others.

The files are of our own making, with the structure of public ones (kubernetes-sigs/lws, llm-d/llm-d, ai-dynamo/dynamo,
kserve/kserve, NVIDIA/srt-slurm, vllm-project/recipes).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autotune.auditing.checking import answer_of, check, outcome
from autotune.auditing.goals import Goals
from autotune.documents.deployment import Load
from autotune.errors import ProblemError
from autotune.manifests.judging import GivenToo, read_manifest
from autotune.manifests.kustomize import rendered
from autotune.manifests.registry import READERS, read_file
from autotune.manifests.scripts import read_script
from autotune.manifests.source import documents_in
from cost_models.errors import AutotuneError

FILES = Path(__file__).parents[2] / "fixtures" / "manifests"


def read(name, **asked):
    path = FILES / name
    manifest = read_script(path.read_text()) if path.suffix == ".sh" else read_file(path, asked.get("hardware"))
    return read_manifest(manifest, GivenToo(**asked), name)


def written(tmp_path, text, name="file.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


# (tp, dp, ep, pp, instances, sequences per attention-DP rank) by pool; where a command only limits sequences, the file says fewer
READ = {
    "kubernetes/deployment_vllm_tp8.yaml": ("hgx-h200", "0.19", "fp8-block", {"decode": (8, 1, 1, 1, 3, 64)}),
    "kubernetes/statefulset_vllm_ep.yaml": ("hgx-h200", "0.19", "fp8-block", {"decode": (1, 8, 8, 1, 1, None)}),
    "kubernetes/lws_decode_dp16.yaml": ("hgx-h200", "0.19", "fp8-block", {"decode": (1, 16, 16, 1, 1, 128)}),
    "kubernetes/lws_sglang_leader.yaml": ("hgx-h200", "0.5.16", "fp8-block", {"decode": (1, 16, 1, 1, 1, 1024 // 16)}),
    "kubernetes/disaggregatedset_pair.yaml": (
        "hgx-h200", "0.19", "fp8-block", {"prefill": (1, 16, 16, 1, 2, 0), "decode": (1, 16, 16, 1, 1, 256)},
    ),
    "kubernetes/two_lws_by_label.yaml": (
        "hgx-h200", "0.19", "fp8-block", {"prefill": (1, 16, 16, 1, 1, 0), "decode": (1, 16, 16, 1, 1, 256)},
    ),
    "kubernetes/anchors_and_list.yaml": ("hgx-h200", "0.19", "fp8-block", {"decode": (4, 1, 4, 1, 2, None)}),
    "dynamo/alpha_sglang_pair.yaml": (
        "hgx-h200", "0.5.23", "fp8-block", {"prefill": (8, 1, 1, 1, 2, 0), "decode": (1, 16, 16, 1, 1, 2048 // 16)},
    ),
    "dynamo/alpha_vllm_pair.yaml": (
        "hgx-h200", "0.33", "fp8-block", {"prefill": (1, 16, 16, 1, 1, 0), "decode": (1, 16, 16, 1, 1, 256)},
    ),
    "dynamo/alpha_aggregated.yaml": ("hgx-h200", "0.33", "fp8-block", {"decode": (8, 1, 1, 1, 4, 64)}),
    "dynamo/beta_sglang_configmap.yaml": (
        "hgx-h200", "0.5.23", "fp8-block", {"prefill": (8, 1, 1, 1, 1, 0), "decode": (8, 1, 1, 1, 1, None)},
    ),
    "dynamo/beta_vllm_replicas.yaml": ("hgx-h200", "0.33", "fp8-block", {"decode": (4, 1, 4, 1, 6, None)}),
    "dynamo/beta_gb200_decode_dep8.yaml": ("gb200-nvl72", "0.33", "fp8-block", {"decode": (1, 8, 8, 1, 1, 256)}),
    "srt_slurm/v1_gb200_pair.yaml": (
        "gb200-nvl72", "0.5.16", "fp8-block", {"prefill": (8, 1, 1, 1, 1, 0), "decode": (8, 1, 1, 1, 2, 512)},
    ),
    "srt_slurm/v1_h200_aggregated.yaml": ("hgx-h200", "0.5.16", "fp8-block", {"serve": (8, 1, 1, 1, 1, 128)}),
    "srt_slurm/v1_fp4_wide.yaml": (
        "gb200-nvl72", "0.5.16", "nvfp4", {"prefill": (4, 1, 1, 1, 1, 0), "decode": (1, 32, 32, 1, 1, 8192 // 32)},
    ),
    "srt_slurm/v1_workers_share_a_node.yaml": (
        "hgx-b200", "0.5.16", "fp8-block", {"prefill": (8, 1, 1, 1, 1, 0), "decode": (4, 1, 1, 1, 2, 64)},
    ),
    "srt_slurm/v1_vllm_aggregated.yaml": ("hgx-h200", "0.19", "fp8-block", {"decode": (8, 1, 1, 1, 1, 64)}),
    "srt_slurm/v2_pair.yaml": (
        "hgx-h200", "0.5.16", "fp8-block",
        {"prefill": (8, 1, 1, 1, 1, 0), "decode": (1, 16, 16, 1, 1, 63)},  # of 1024 // 16 what fits
    ),
    "srt_slurm/v2_vllm_gpus.yaml": ("hgx-b200", "0.19", "nvfp4", {"decode": (4, 1, 1, 1, 2, 64)}),
    "kserve/dp_ep.yaml": ("hgx-h200", "0.19", "fp8-block", {"decode": (1, 16, 16, 1, 2, 64)}),
    "kserve/pair.yaml": ("hgx-h200", "0.19", "fp8-block", {"prefill": (4, 1, 1, 1, 1, 0), "decode": (4, 1, 1, 1, 2, 64)}),
    "modelservice/values.yaml": ("hgx-h200", "0.19", "fp8-block", {"prefill": (4, 1, 1, 1, 1, 0), "decode": (4, 1, 1, 1, 2, 64)}),
    "compose/two_services.yaml": ("hgx-h200", "0.19", "fp8-block", {"decode": (4, 1, 4, 1, 1, None)}),
    "sbatch/two_nodes.sh": ("hgx-h200", "0.5.23", "fp8-block", {"decode": (16, 1, 1, 1, 1, 64)}),
}  # fmt: skip
ASKED = {name: {"hardware": "hgx-h200"} for name in READ if name.startswith(("dynamo/alpha", "modelservice", "compose"))}


@pytest.mark.parametrize("name", READ)
def test_a_file_is_the_deployment_that_it_starts(name):
    found = read(name, **ASKED.get(name, {})).deployment
    hardware, version, precision, pools = READ[name]
    assert (found.hardware, found.engine.version, found.precision) == (hardware, version, precision)
    layouts = {role: (p.tp, p.dp, p.ep, p.pp, p.instances, p.batch_per_dp_rank) for role, p in found.pools.items()}
    expected = {role: (*said[:5], layouts[role][5] if said[5] is None else said[5]) for role, said in pools.items()}
    assert layouts == expected


REFUSED = {
    "dynamo/alpha_dynamo_image.yaml": "does not say which version of the engine it holds: give --engine-version",
    "dynamo/beta_configmap_missing.yaml": "/etc/engine/worker.yaml is not in a ConfigMap of the file",
    "dynamo/beta_unknown_version.yaml": "nvidia.com/v2 is not known here; known: nvidia.com/v1alpha1, nvidia.com/v1beta1",
    "srt_slurm/v1_image_alias.yaml": "the image dynamo-sglang of aggregated does not say which version",
    "srt_slurm/v1_variants.yaml": "a base with 2 sections of changes .zip_override_stp, override_mtp.: write one out",
    "srt_slurm/v1_unknown_model.yaml": "unknown model 'example/Unheard-Of-900B-FP8'",
    "srt_slurm/v2_unknown_role.yaml": "roles.encoder is none of prefill, decode",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_does_not_say_enough_is_refused_in_words(name):
    with pytest.raises(AutotuneError, match=REFUSED[name]):
        read(name, hardware="hgx-h200")


def test_a_cache_of_one_step_is_enough_for_a_prefill_pool():
    """--max-total-tokens 8192 with chunks of 8192: what is handed over leaves room for the next, as a public recipe runs."""
    found = read("srt_slurm/v1_small_prefill_cache.yaml")
    verdict = check(found.deployment, Goals(), found)
    assert (verdict.answer, verdict.conflicts) == ("works", ())
    assert found.deployment.precision.recipe == "nvfp4"


def test_options_of_dynamo_s_worker_are_not_the_engine_s(tmp_path):
    """A public recipe of Kimi-K3 tells Dynamo's worker how to read tool calls among vLLM's own options."""
    text = (FILES / "srt_slurm/v1_vllm_aggregated.yaml").read_text()
    told = written(
        tmp_path, text.replace("      max-num-seqs: 64", "      max-num-seqs: 64\n      dyn-tool-call-parser: kimi_k3")
    )
    found = read_manifest(read_file(told, None), GivenToo(), told)
    assert found.deployment == read("srt_slurm/v1_vllm_aggregated.yaml").deployment


CONFLICTS = {
    "kubernetes/lws_too_small.yaml": "the command needs 32 GPUs, the file gives an instance 16 (2 x 8 GPUs)",
    "dynamo/beta_too_many_per_node.yaml": "8 GPUs of one node, gb200-nvl72 has 4",
    "srt_slurm/v1_too_few_nodes.yaml": "the command needs 16 GPUs, the file gives an instance 8 (1 x 8 GPUs)",
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_commands_that_need_other_gpus_than_the_file_gives_do_not_work(name):
    found = read(name)
    assert any(CONFLICTS[name] in line for line in found.conflicts)


WORKS = (
    "kubernetes/anchors_and_list", "kubernetes/deployment_vllm_tp8", "kubernetes/disaggregatedset_pair",
    "kubernetes/lws_decode_dp16", "kubernetes/lws_sglang_leader", "kubernetes/statefulset_vllm_ep", "kubernetes/two_lws_by_label",
    "dynamo/alpha_aggregated", "dynamo/alpha_sglang_pair", "dynamo/alpha_vllm_pair", "dynamo/beta_gb200_decode_dep8",
    "dynamo/beta_sglang_configmap", "dynamo/beta_vllm_replicas", "srt_slurm/v1_gb200_pair", "srt_slurm/v1_h200_aggregated",
    "srt_slurm/v1_small_prefill_cache", "srt_slurm/v1_vllm_aggregated", "srt_slurm/v1_workers_share_a_node", "srt_slurm/v2_pair",
    "srt_slurm/v2_vllm_gpus",
)  # fmt: skip
WORKS_NOT = (
    "kubernetes/lws_too_small", "kubernetes/pod_sglang_env_reference", "kubernetes/qwen_fp8_tp8", "dynamo/beta_too_many_per_node",
    "srt_slurm/v1_fp4_wide", "srt_slurm/v1_too_few_nodes",
)  # fmt: skip
"""Each says why in a test of its own below or above; v1_fp4_wide names no expert kernels for NVFP4 behind DeepEP."""


def test_every_file_of_the_three_families_has_a_verdict_of_its_own():
    """Ten or more of Kubernetes (vLLM, SGLang, llm-d), of Dynamo and of srt-slurm: works, works not, or refused."""
    said = sorted([*(f"{name}.yaml" for name in (*WORKS, *WORKS_NOT)), *REFUSED])
    there = {folder: sorted(path.name for path in (FILES / folder).iterdir()) for folder in ("kubernetes", "dynamo", "srt_slurm")}
    assert said == sorted(f"{folder}/{name}" for folder, names in there.items() for name in names)
    assert all(len(names) >= 10 for names in there.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WORKS, *WORKS_NOT])
def test_a_file_gets_its_verdict(name):
    asked = {"hardware": "hgx-h200"} if name.startswith("dynamo/alpha") else {}
    found = read(f"{name}.yaml", **asked)
    plan = outcome(found.deployment, Goals(), tried=True, aggregated=found.aggregated, written=found.written)
    answer = "does not work" if found.conflicts else answer_of(plan, found.unmodelled)
    assert answer == ("works" if name in WORKS else "does not work"), (found.conflicts, plan.conflicts, plan.missing)


@pytest.mark.slow
def test_a_file_is_judged_by_its_engines_rules():
    """Experts of width 1,536 over 8 ranks are 192 wide, no multiple of the 128 of an FP8 block: vLLM does not start."""
    found = read("kubernetes/qwen_fp8_tp8.yaml")
    verdict = check(found.deployment, Goals(), found)
    assert verdict.answer == "does not work"
    assert any("128" in line for line in verdict.conflicts)


@pytest.mark.slow
def test_weights_that_do_not_fit_are_said_of_a_pod():
    """671 GB of FP8 weights over 8 x 80 GB."""
    found = read("kubernetes/pod_sglang_env_reference.yaml")
    verdict = check(found.deployment, Goals(), found)
    assert found.deployment.pool.tp == 8
    assert verdict.answer == "does not work"
    assert not verdict.fits


@pytest.mark.slow
def test_both_pools_of_a_pair_must_fit():
    found = read("dynamo/alpha_sglang_pair.yaml", hardware="hgx-h200")
    verdict = check(found.deployment, Goals(), found)
    assert {memory.phase for memory in verdict.memory} == {"prefill", "decode"}
    assert verdict.gpus == 2 * 8 + 16


def test_a_pair_under_a_load_is_a_service():
    found = read("dynamo/beta_sglang_configmap.yaml", load=Load(concurrency=32)).deployment
    assert found.phase == "serve"
    assert set(found.pools) == {"prefill", "decode"}


def test_a_benchmark_in_the_file_gives_lengths_and_load():
    """isl 1,024, osl 1,024 and 64 in flight, which is one load; a sweep of several is named, not chosen from."""
    alone, sweep = read("srt_slurm/v1_h200_aggregated.yaml"), read("srt_slurm/v1_gb200_pair.yaml")
    assert (alone.deployment.workload.isl_tokens, alone.deployment.load) == (1024, Load(concurrency=64))
    assert sweep.deployment.load is None
    assert any("128, 256 requests in flight" in line for line in sweep.remarks)


def test_what_the_user_says_goes_before_the_file():
    found = read("kubernetes/deployment_vllm_tp8.yaml", hardware="hgx-b200", isl_tokens=100)
    assert (found.deployment.hardware, found.deployment.workload.isl_tokens) == ("hgx-b200", 100)
    assert any("for hgx-h200, judged on hgx-b200" in line for line in found.remarks)


def test_a_recipe_entry_is_read_for_a_machine_strategy_and_variant():
    """--enable-expert-parallel of the model and of the strategy is one switch; multi_node_tp_pp is tp 8 on each of two nodes."""
    base = read("vllm_recipe/entry.yaml", hardware="hgx-h200", service="single_node_tep/default")
    spread = read("vllm_recipe/entry.yaml", hardware="hgx-h200", service="multi_node_tp_pp/default")
    assert (base.deployment.pool.tp, base.deployment.pool.ep, base.deployment.pool.batch_per_dp_rank) == (8, 8, 64)
    assert (spread.deployment.pool.tp, spread.deployment.pool.pp) == (8, 2)
    assert any("pd_cluster" in line for line in base.remarks)
    assert base.deployment.pool.instances == 1
    with pytest.raises(ProblemError, match="say which with --service"):
        read("vllm_recipe/entry.yaml", hardware="hgx-h200")
    with pytest.raises(ProblemError, match="give --hw"):
        read("vllm_recipe/entry.yaml")


def test_an_entry_says_what_is_different_on_a_machine():
    """Later words win: 512 sequences of the model, 64 of Hopper, 32 of a strategy on Hopper, in whose place no other counts.

    NVFP4 is TP4 on B200 by the variant's map, whose default is 8; drafts are on where the variant says their mode.
    """
    entry = "vllm_recipe/by_machine.yaml"
    tensor = read(entry, hardware="hgx-h200", service="single_node_tp/default")
    data = read(entry, hardware="hgx-h200", service="single_node_dep/default")
    small = read(entry, hardware="hgx-b200", service="single_node_tp/nvfp4")
    assert (tensor.deployment.pool.tp, tensor.command.options["--max-num-seqs"]) == (8, "64")
    assert tensor.command.options["--max-num-batched-tokens"] == "16384"
    assert tensor.command.options["--reasoning-parser"] == "deepseek_r1"
    assert tensor.command.environment["VLLM_USE_DEEP_GEMM"] == "1"
    assert (data.deployment.pool.dp, data.command.options["--max-num-seqs"]) == (8, "32")
    assert "--max-num-batched-tokens" not in data.command.options
    assert (small.deployment.pool.tp, small.deployment.precision.kv_cache) == (4, "fp8")
    assert (tensor.deployment.pool.draft_tokens, small.deployment.pool.draft_tokens) == (0, 1)


def test_an_entry_leaves_out_what_is_not_for_a_machine():
    """On Hopper neither the NVFP4 variant nor tensor parallelism over nodes."""
    on = {
        hw: {s.name for s in read_file(FILES / "vllm_recipe" / "by_machine.yaml", hw).services} for hw in ("hgx-h200", "hgx-b200")
    }
    assert on["hgx-h200"] == {"single_node_tp/default", "single_node_dep/default"}
    assert on["hgx-b200"] == {
        f"{s}/{v}" for s in ("single_node_tp", "single_node_dep", "multi_node_tp") for v in ("default", "nvfp4")
    }


@pytest.mark.parametrize(("needed", "tp"), [(100, 1), (200, 8)])
def test_weights_that_one_gpu_holds_are_not_spread(tmp_path, needed, tp):
    """141 GB a GPU: 100 GB lie on one, 200 GB on all of the node."""
    entry = {
        "model": {"model_id": "Qwen/Qwen3-32B"},
        "variants": {"default": {"vram_minimum_gb": needed}},
        "compatible_strategies": ["single_node_tp"],
    }
    path = written(tmp_path, json.dumps(entry))
    found = read_manifest(read_file(path, "hgx-h200"), GivenToo(hardware="hgx-h200"), path.name)
    assert found.deployment.pool.tp == tp


def test_strategies_that_make_one_command_are_one_instance(tmp_path):
    """The model's own switch makes single_node_tp and single_node_tep alike: alternatives, not two instances."""
    entry = {
        "model": {"model_id": "deepseek-ai/DeepSeek-R1", "base_args": ["--enable-expert-parallel"]},
        "compatible_strategies": ["single_node_tp", "single_node_tep"],
    }
    path = written(tmp_path, json.dumps(entry))
    found = read_manifest(read_file(path, "hgx-h200"), GivenToo(hardware="hgx-h200"), path.name)
    assert (found.deployment.pool.tp, found.deployment.pool.ep, found.deployment.pool.instances) == (8, 8, 1)


def test_a_kustomize_folder_is_what_it_renders_to():
    """The overlay sets the tag, two replicas, a node selector by a merge and an argument by an operation."""
    (document,) = rendered(FILES / "kustomize" / "overlay")
    assert document["spec"]["template"]["spec"]["containers"][0]["image"] == "vllm/vllm-openai:v0.19.1"
    found = read("kustomize/overlay").deployment
    assert (found.hardware, found.engine.version, found.pool.instances, found.pool.batch_per_dp_rank) == (
        "hgx-h200",
        "0.19",
        2,
        64,
    )


def test_a_kustomization_that_reaches_elsewhere_is_refused(tmp_path):
    written(tmp_path, "resources: ['https://example.com/base?ref=v1']\n", "kustomization.yaml")
    with pytest.raises(ProblemError, match="is not fetched; give the output of kustomize build"):
        read_file(tmp_path)


@pytest.mark.parametrize(("pattern", "replaced"), [("w.*", 3), ("(a|aa|w)+(a+)+$", 3), ("(a+)+$", 1), ("x", 1)])
def test_targets_of_patches_are_named_by_expressions_matched_in_linear_time(tmp_path, pattern, replaced):
    # "(a+)+$" on 5,000 letters would take longer than there is time, where an engine goes back and tries again
    name = "w" + "a" * 5000
    document = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {"replicas": 1}}
    patch = [{"op": "replace", "path": "/spec/replicas", "value": 3}]
    written(tmp_path, json.dumps(document), "a.yaml")
    said = {"resources": ["a.yaml"], "patches": [{"patch": json.dumps(patch), "target": {"kind": "Deployment", "name": pattern}}]}
    written(tmp_path, json.dumps(said), "kustomization.yaml")
    assert rendered(tmp_path)[0]["spec"]["replicas"] == replaced


def test_a_target_that_is_no_expression_is_one_message(tmp_path):
    written(tmp_path, json.dumps({"kind": "Pod", "metadata": {"name": "a"}}), "a.yaml")
    written(
        tmp_path,
        json.dumps({"resources": ["a.yaml"], "patches": [{"patch": "[]", "target": {"name": "("}}]}),
        "kustomization.yaml",
    )
    with pytest.raises(ProblemError, match=r"the name of a patch's target: .* is no regular expression"):
        rendered(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Deployment\nspec:\n  replicas: {{ .Values.replicas }}\n", "line 3 is a template that was not rendered"),
        ("{{- if .Values.x }}\nkind: Deployment\n{{- end }}\n", "line 1 is a template.*helm template"),
        ("apiVersion: example.com/v1\nkind: Widget\n", r"nothing here starts an engine: Widget \(example.com/v1\); known"),
        ("apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, image: 'nginx:1'}]}\n", "no container in it starts vLLM"),
        ("apiVersion: v1\nkind: Pod\nspec: 3\n", "should be a mapping"),
        ("apiVersion: apps/v1\nkind: Deployment\nspec: {replicas: many, template: {spec: {}}}\n", "needs a whole number"),
        ("a: [unclosed\n", "not valid YAML"),
        ("---\na: 1\n" * 300, "at most 200 are read"),
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
         "do its aliases repeat each other"),
    ],
)  # fmt: skip
def test_bad_files_are_one_message(tmp_path, text, said):
    with pytest.raises(AutotuneError, match=said):
        read_file(written(tmp_path, text))


def test_hardware_that_nothing_says_is_asked_for():
    with pytest.raises(ProblemError, match="does not say what it runs on: give --hw"):
        read("dynamo/alpha_aggregated.yaml")


def test_nothing_in_a_file_is_run(tmp_path):
    """A script in `args` is text: command substitutions and redirections stay where they are."""
    made = tmp_path / "made"
    pod = f"""apiVersion: v1
kind: Pod
metadata: {{name: p}}
spec:
  containers:
    - name: e
      image: vllm/vllm-openai:v0.19.1
      command: [bash, -c]
      args:
        - |
          touch {made}; echo $(touch {made})
          vllm serve Qwen/Qwen3-235B-A22B-FP8 --tensor-parallel-size 4 > {made}
      resources: {{limits: {{nvidia.com/gpu: 4}}}}
"""
    found = read_manifest(read_file(written(tmp_path, pod)), GivenToo(hardware="hgx-h200"), "pod")
    assert found.deployment.pool.tp == 4
    assert not made.exists()


def test_a_variable_that_no_shell_replaces_is_refused(tmp_path):
    pod = "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: e, command: [vllm, serve, m, --tensor-parallel-size, $TP]}]}\n"
    with pytest.raises(ProblemError, match=r"no shell replaces its variable; write \$\(NAME\)"):
        read_file(written(tmp_path, pod))


def test_two_roles_of_one_script_are_a_pair():
    model = "deepseek-ai/DeepSeek-R1-0528"
    both = "\n".join(
        f"python3 -m sglang.launch_server --model-path {model} --tp-size 8 --disaggregation-mode {role} &"
        for role in ("prefill", "decode")
    )
    found = read_manifest(read_script(both), GivenToo(hardware="hgx-h200"), "script").deployment
    assert {role: pool.tp for role, pool in found.pools.items()} == {"prefill": 8, "decode": 8}


def test_several_engines_that_are_no_pair_are_asked_about(tmp_path):
    pod = (
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {}}}\n"
        "spec: {{template: {{spec: {{containers: [{{name: e, command: [vllm, serve, {}, --max-num-seqs, '{}']}}]}}}}}}\n"
    )
    model = "Qwen/Qwen3-235B-A22B-FP8"
    path = written(tmp_path, "---\n".join(pod.format(n, model, size) for n, size in (("one", 8), ("two", 16), ("three", 32))))
    with pytest.raises(ProblemError, match="one, two, three; say which with --service"):
        read_manifest(read_file(path), GivenToo(hardware="hgx-h200"), path.name)
    alone = read_manifest(read_file(path), GivenToo(hardware="hgx-h200", service="two", size=4), path.name)
    assert alone.deployment.pool.tp == 1


def test_every_reader_keeps_to_its_own_files():
    """A file is recognised by one reader: the folder of the fixture says which."""
    folders = {"srt_slurm": "srt-slurm", "vllm_recipe": "vllm-recipe"}
    for path in sorted(FILES.glob("*/*.yaml")):
        if path.parent.name in ("kustomize",):
            continue
        from autotune.manifests.source import Source

        source = Source(path, documents_in(path.read_text(), path))
        assert [r.name for r in READERS if r.recognises(source)] == [folders.get(path.parent.name, path.parent.name)]


def test_a_deployment_document_is_none_of_them(tmp_path):
    document = "hardware: hgx-h200\nmodel: deepseek-r1\nprecision: fp8-block\nengine: {name: vllm}\npools: {decode: {tp: 8}}\n"
    assert read_file(written(tmp_path, document)) is None


def test_a_tensorrt_llm_command_without_its_settings_file_is_refused_in_words():
    manifest = read_script("trtllm-serve nvidia/DeepSeek-R1-FP4 --tp_size 8 --extra_llm_api_options extra.yaml")
    with pytest.raises(ProblemError, match=r"extra\.yaml: the settings file is not here; put it beside the script"):
        read_manifest(manifest, GivenToo(hardware="hgx-b200"), "script")

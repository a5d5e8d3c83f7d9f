"""TensorRT-LLM's commands and settings files: read as the engine puts them together, written, and read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from autotune.auditing.checking import check
from autotune.auditing.commands import ReadCommand, read_command
from autotune.auditing.goals import Goals
from autotune.auditing.trtllm import Fields
from autotune.documents.deployment import Deployment, Load
from autotune.documents.planned_placement import PlannedPlacement
from autotune.errors import ExportError, ProblemError
from autotune.exporters import export, launch_of
from autotune.exporters.targets.base import TargetOptions
from autotune.exporters.targets.registry import load_target
from autotune.manifests.judging import GivenToo, read_manifest
from autotune.manifests.registry import read_file
from autotune.manifests.scripts import read_script
from autotune.predicting.step import predict
from autotune.recipes.written_options import option_differences
from cost_models.errors import AutotuneError
from search_spaces.loader import load_engine
from search_spaces.options import load_options

R1 = "nvidia/DeepSeek-R1-0528-NVFP4-v2"


def read(settings: object, *, options: str = "", hardware: str = "hgx-b200", model: str = R1, **more) -> ReadCommand:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    command = f"trtllm-serve {model} {options} --config '{text}'"
    return read_command(command, hardware=hardware, **{"isl_tokens": 1000, "osl_tokens": 1000, **more})


DEP8 = {"tensor_parallel_size": 8, "moe_expert_parallel_size": 8, "enable_attention_dp": True}


@pytest.mark.parametrize(
    ("settings", "layout"),
    [
        ({"tensor_parallel_size": 8}, (8, 1, 1, 1)),
        ({"tensor_parallel_size": 8, "moe_expert_parallel_size": 8}, (8, 1, 8, 1)),
        (DEP8, (1, 8, 8, 1)),
        ({**DEP8, "moe_expert_parallel_size": 2}, (1, 8, 2, 1)),
        ({**DEP8, "moe_expert_parallel_size": None, "moe_tensor_parallel_size": 4}, (1, 8, 2, 1)),
        ({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, (4, 1, 1, 2)),
    ],
)
def test_ranks_are_those_of_a_stage_and_attention_dp_takes_each_by_itself(settings, layout):
    pool = read(settings).deployment.pool
    assert (pool.tp, pool.dp, pool.ep, pool.pp) == layout


def test_a_file_of_nothing_but_unknown_fields_is_some_lines():
    fields = Fields(load_options("trtllm", "1.3.0rc29"), "TensorRT-LLM")
    fields.take({f"mystery_{number}": number for number in range(5000)})
    assert len(fields.conflicts) == 13
    assert fields.conflicts[-1] == "TensorRT-LLM: 4,988 more fields that it does not have"


def test_experts_that_do_not_divide_are_no_layout():
    with pytest.raises(ProblemError, match="moe_tensor_parallel_size 16 x moe_expert_parallel_size 1 do not make the 8 ranks"):
        read({"tensor_parallel_size": 8, "moe_tensor_parallel_size": 16})
    with pytest.raises(ProblemError, match="moe_expert_parallel_size 3 do not make the 8 ranks"):
        read({**DEP8, "moe_expert_parallel_size": 3})


def test_the_settings_file_takes_the_place_of_the_command_s_options():
    found = read(
        {"max_batch_size": 64, "kv_cache_config": {"dtype": "fp8"}},
        options="--tp_size 8 --ep_size=8 --max_batch_size 512 --max_num_tokens 4096 --kv_cache_free_gpu_memory_fraction 0.5",
    )
    assert found.command is not None
    assert found.command.options["max_batch_size"] == "64"
    assert found.command.options["kv_cache_config.free_gpu_memory_fraction"] == "0.5"  # a file's kv_cache_config joins it
    assert (found.deployment.pool.tp, found.deployment.pool.ep, found.deployment.pool.batch_per_dp_rank) == (8, 8, 64)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"kv_cache_config": {"free_gpu_mem_fraction": 0.8}},
            "no field kv_cache_config.free_gpu_mem_fraction (do you mean kv_cache_config.free_gpu_memory_fraction?)",
        ),
        ({"moe_backend": "CUTLASS"}, "no field moe_backend (now moe_config.backend): it refuses"),
        ({"moe_config": {"backend": "CUTLAS"}}, "takes no moe_config.backend CUTLAS; did you mean CUTLASS"),
        ({"moe_config": {"backend": "cutlass"}}, "takes no moe_config.backend cutlass"),
        ({"enable_attention_dp": "maybe"}, "enable_attention_dp needs true or false, 'maybe' was given"),
        ({"tensor_parallel_size": [8]}, "tensor_parallel_size needs a whole number, '[8]' was given"),
        ({"cuda_graph_config": {"batch_sizes": 8}}, "cuda_graph_config.batch_sizes needs a list, '8' was given"),
        ({"kv_cache_config": {"free_gpu_memory_fraction": "most"}}, "free_gpu_memory_fraction needs a number"),
        ({"cache_transceiver_config": {"backend": "ucx"}}, "takes no cache_transceiver_config.backend ucx"),
    ],
)
def test_a_settings_file_is_held_against_the_fields_of_the_release(settings, said):
    moved = {renamed.name: renamed.now for renamed in load_engine("trtllm").renamed}
    fields = Fields(load_options("trtllm", "1.3.0rc29"), "TensorRT-LLM 1.3.0rc29", moved=moved)
    fields.take(settings)
    (line,) = fields.conflicts
    assert said in line


def test_an_unknown_field_keeps_the_engine_from_starting():
    found = read({**DEP8, "max_seq_length": 4096}, size=8)
    assert found.conflicts == (
        "TensorRT-LLM 1.3.0rc29 has no field max_seq_length (do you mean max_seq_len?): it refuses the settings file",
    )
    assert check(found.deployment, Goals(), found).answer == "does not work"


def test_fields_of_a_later_release_are_said_to_be_so():
    (line,) = read({**DEP8, "kv_cache_config": {"disk_cache_size": 1}}, version="1.2").conflicts
    assert "TensorRT-LLM 1.3.0rc3 has no field kv_cache_config.disk_cache_size (release 1.3.0rc29 has it)" in line


def test_keys_of_the_user_s_own_are_not_fields():
    assert read({**DEP8, "model_kwargs": {"num_hidden_layers": 3}}).conflicts == ()
    (note,) = read({**DEP8, "model_kwargs": {"num_hidden_layers": 3}}).unmodelled
    assert note.option.startswith("model_kwargs")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--tp-size 8", "has no option --tp-size; did you mean --tp_size"),
        ("--tp_siz 8", "has no option --tp_siz"),  # click takes no beginnings
        ("--max_batch_size", "--max_batch_size needs a value"),
    ],
)
def test_options_that_no_release_has(options, said):
    with pytest.raises(ProblemError, match=said):
        read_command(f"trtllm-serve {R1} {options}", hardware="hgx-b200", isl_tokens=1000, osl_tokens=1000)


def test_releases_without_a_list_of_options_are_not_read():
    with pytest.raises(ProblemError, match=r"options of TensorRT-LLM 1\.0 are not known here: commands of 1\.2, 1\.3 are read"):
        read(DEP8, version="1.0.0")


def test_it_runs_on_nvidia_alone():
    with pytest.raises(ProblemError, match="trtllm is not known on hardware of amd"):
        read(DEP8, hardware="mi355x")


@pytest.mark.parametrize(
    ("variables", "layout", "hardware", "backend", "unmodelled"),
    [
        ("", DEP8, "hgx-b200", "nvlink_one_sided", 0),
        ("TRTLLM_FORCE_COMM_METHOD=allgather ", DEP8, "hgx-b200", "allgather_reducescatter", 0),
        ("TRTLLM_FORCE_COMM_METHOD=NVLINK_TWO_SIDED ", DEP8, "hgx-b200", "nvlink_one_sided", 0),
        ("TRTLLM_FORCE_COMM_METHOD=DEEPEP ", DEP8, "hgx-b200", "nvlink_one_sided", 1),
        # 16 ranks are more than NVLink joins on B200, and not on GB200
        ("", {**DEP8, "tensor_parallel_size": 16, "moe_expert_parallel_size": 16}, "hgx-b200", "allgather_reducescatter", 0),
        ("", {**DEP8, "tensor_parallel_size": 16, "moe_expert_parallel_size": 16}, "gb200-nvl72", "nvlink_one_sided", 0),
        # experts cut over two ranks are gathered
        ("", {**DEP8, "moe_expert_parallel_size": 4}, "hgx-b200", "allgather_reducescatter", 0),
        # no kernel times of NVLink's on H200
        ("", DEP8, "hgx-h200", "allgather_reducescatter", 1),
    ],
)
def test_the_all_to_all_is_what_the_engine_takes(variables, layout, hardware, backend, unmodelled):
    model = R1 if hardware != "hgx-h200" else "deepseek-ai/DeepSeek-R1-0528"
    command = f"{variables}trtllm-serve {model} --config '{json.dumps(layout)}'"
    found = read_command(command, hardware=hardware, isl_tokens=1000, osl_tokens=1000, size=16)
    assert found.deployment.pool.all2all_backend == backend
    assert len(found.unmodelled) == unmodelled
    assert found.conflicts == ()


def test_caches_get_a_share_of_what_weights_and_a_step_leave():
    """(device - everything else) x fraction: a third of the fraction is a third of the tokens."""

    def room(fraction: float) -> float:
        found = read({**DEP8, "kv_cache_config": {"free_gpu_memory_fraction": fraction}}, size=1)
        return predict(found.deployment).kv_capacity_tokens

    assert room(0.3) == pytest.approx(room(0.9) / 3, rel=1e-3)


def test_a_decode_step_holds_the_drafts_of_every_sequence():
    mtp = {"speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 3}}
    found = read({**DEP8, **mtp, "max_batch_size": 128, "max_num_tokens": 256}, role="decode")
    assert (found.deployment.pool.draft_tokens, found.deployment.pool.batch_per_dp_rank) == (3, 64)  # 256 / (1 + 3)
    other = read({**DEP8, "speculative_config": {"decoding_type": "Eagle3", "max_draft_len": 3, "speculative_model": "x/y"}})
    assert "speculative_config (Eagle3)" in {option.option for option in other.unmodelled}


@pytest.mark.parametrize(
    ("graphs", "tokens", "on"),
    [(None, None, False), ({}, 128, True), ({"max_batch_size": 16}, 16, True), ({"batch_sizes": [1, 64, 8]}, 64, True)],
)
def test_graphs_are_captured_up_to_the_largest_size(graphs, tokens, on):
    pool = read({**DEP8, "cuda_graph_config": graphs}, size=8).deployment.pool
    assert (pool.cuda_graph, pool.cuda_graph_tokens) == (on, tokens)


def test_slots_beyond_the_experts_are_redundant():
    found = read({**DEP8, "moe_config": {"load_balancer": {"num_slots": 288, "layer_updates_per_iter": 0}}}, size=8)
    assert (found.deployment.pool.redundant_experts, found.deployment.pool.expert_balance.kind) == (32, "static")
    moving = read({**DEP8, "moe_config": {"load_balancer": {"num_slots": 288, "layer_updates_per_iter": 2}}}, size=8)
    assert ["layer_updates_per_iter 2" in option.option for option in moving.unmodelled] == [True]


HERE = """SLOTS=64
cat > extra.yaml <<{quote}EOF{quote}
max_batch_size: $SLOTS
enable_attention_dp: true
EOF
trtllm-llmapi-launch trtllm-serve serve {model} --tp_size 8 --ep_size 8 --extra_llm_api_options extra.yaml
"""


def test_a_here_document_is_the_settings_file():
    found = read_manifest(read_script(HERE.format(quote="", model=R1)), GivenToo(hardware="hgx-b200"), "script")
    assert (found.deployment.pool.dp, found.deployment.pool.batch_per_dp_rank) == (8, 64)
    quoted = read_script(HERE.format(quote="'", model=R1))
    with pytest.raises(ProblemError, match="max_batch_size"):  # nobody fills $SLOTS in
        read_manifest(quoted, GivenToo(hardware="hgx-b200"), "script")


def test_a_file_beside_the_script_is_the_settings_file(tmp_path):
    (tmp_path / "my.yaml").write_text("enable_attention_dp: true\nmax_batch_size: 32\n")
    for place in ("my.yaml", '"$(dirname "$0")/my.yaml"', "/configs/my.yaml"):
        text = f"trtllm-serve {R1} --tp_size 8 --config {place}\n"
        found = read_manifest(read_script(text, tmp_path), GivenToo(hardware="hgx-b200"), "script")
        assert (found.deployment.pool.dp, found.deployment.pool.batch_per_dp_rank) == (8, 32)


@pytest.mark.parametrize(
    "text",
    ["- 1\n", "a: [1\n", "a: 1\n---\nb: 2\n", "a: !!python/object/apply:os.system ['true']\n", "x" * 100, "a: &x [*x]\n"],
)
def test_what_is_no_settings_file_is_one_message(text, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(AutotuneError) as caught:
        read_manifest(read_script(f"trtllm-serve {R1} --config bad.yaml\n", tmp_path), GivenToo(hardware="hgx-b200"), "script")
    assert 0 < len(str(caught.value)) < 600


def test_aliases_of_aliases_are_refused_before_they_grow(tmp_path):
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(AutotuneError):
        read_manifest(read_script(f"trtllm-serve {R1} --config bomb.yaml\n", tmp_path), GivenToo(hardware="hgx-b200"), "script")


DISAGGREGATED = {
    "hostname": "0.0.0.0",
    "port": 8000,
    "model": R1,
    "kv_cache_config": {"dtype": "fp8"},
    "cache_transceiver_config": {"backend": "DEFAULT"},
    "context_servers": {"num_instances": 2, "tensor_parallel_size": 4, "max_num_tokens": 16384, "urls": ["a:1", "b:1"],
                        "disable_overlap_scheduler": True},
    "generation_servers": {**DEP8, "max_batch_size": 64, "urls": ["c:1"], "router": {"type": "load_balancing"}},
}  # fmt: skip


@pytest.mark.parametrize("how", ["file", "script"])
def test_the_file_of_a_pair_is_both_pools(how, tmp_path):
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(DISAGGREGATED))
    script = "trtllm-serve disaggregated \\\n  -c pair.yaml -t 3600"
    manifest = read_file(tmp_path / "pair.yaml") if how == "file" else read_script(script, tmp_path)
    assert manifest is not None
    found = read_manifest(manifest, GivenToo(hardware="hgx-b200", load=Load(rate_per_s=1.0)), "pair.yaml")
    prefill, decode = found.deployment.pools["prefill"], found.deployment.pools["decode"]
    assert (prefill.tp, prefill.instances, prefill.max_batched_tokens) == (4, 2, 16384)
    assert (decode.dp, decode.instances, decode.batch_per_dp_rank) == (8, 1, 64)
    assert (found.conflicts, found.deployment.phase) == ((), "serve")
    assert check(found.deployment, Goals(), found).conflicts == ()


def test_servers_of_a_script_are_told_apart_by_their_ports(tmp_path):
    settings = {**DEP8, "tensor_parallel_size": 4, "moe_expert_parallel_size": 4, "cache_transceiver_config": {"backend": "UCX"}}
    text = "".join(f"trtllm-serve {R1} --port {port} --config s.yaml &\n" for port in (8001, 8002))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "pair.yaml").write_text(
        "context_servers: {urls: ['localhost:8002']}\ngeneration_servers: {urls: ['localhost:8001']}\n"
    )
    manifest = read_script(f"{text}trtllm-serve disaggregated -c pair.yaml\n", tmp_path)
    assert [service.role for service in manifest.services] == ["decode", "prefill"]
    found = read_manifest(manifest, GivenToo(hardware="hgx-b200", size=8), "script")
    assert set(found.deployment.pools) == {"prefill", "decode"}


def test_answers_travel_in_nvfp4_where_experts_are_stored_so():
    low = {**DEP8, "moe_config": {"use_low_precision_moe_combine": True}}
    assert [len(read(low, model=model, size=8).unmodelled) for model in (R1, "deepseek-ai/DeepSeek-R1-0528")] == [1, 0]


def test_a_pair_without_a_hand_over_does_not_work(tmp_path):
    alone = {key: value for key, value in DISAGGREGATED.items() if key != "cache_transceiver_config"}
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump(alone))
    manifest = read_file(tmp_path / "pair.yaml")
    assert manifest is not None
    found = read_manifest(manifest, GivenToo(hardware="hgx-b200"), "pair.yaml")
    lines = check(found.deployment, Goals(), found).conflicts
    assert ["caches_are_handed_over" in line for line in lines] == [True, True]


def test_a_prefill_server_lets_prompts_in_not_answers():
    """1,000 tokens each way: 1,100 hold a prompt, and not a request."""
    lengths = {**DEP8, "max_seq_len": 1100}
    remark = "requests of 2,000 tokens are longer than the 1,100"
    assert not [line for line in read(lengths, role="prefill").remarks if remark in line]
    assert [line for line in read(lengths, role="decode", size=8).remarks if remark in line]


def test_prompts_longer_than_a_step_are_refused_unless_they_are_cut():
    (line,) = read({**DEP8, "max_num_tokens": 512}).conflicts
    assert "prompts of 1,000 tokens are longer than max_num_tokens 512" in line
    assert read({**DEP8, "max_num_tokens": 512, "enable_chunked_prefill": True}).conflicts == ()
    assert read({**DEP8, "max_num_tokens": 512}, role="decode").conflicts == ()  # another pool computes them


def test_settings_of_a_pair_that_contradict_each_other_or_are_elsewhere(tmp_path):
    path = tmp_path / "pair.yaml"
    path.write_text(yaml.safe_dump({**DISAGGREGATED, "tensor_parallel_size": 8}))
    with pytest.raises(ProblemError, match="tensor_parallel_size is said for all servers and, otherwise, for context_servers"):
        read_file(path)
    path.write_text(yaml.safe_dump({"context_servers": {"urls": ["a:1"]}, "generation_servers": {"urls": ["b:1"]}}))
    with pytest.raises(ProblemError, match="context_servers are addresses alone"):
        read_file(path)


def test_dynamo_s_worker_reads_its_file_and_what_overrides_it():
    command = (
        f"trtllm-llmapi-launch python3 -m dynamo.trtllm --model-path {R1} --served-model-name r1 --disaggregation-mode decode "
        "--tensor-parallel-size 4 --max-batch-size 16 --request-plane nats --publish-events-and-metrics "
        f"--extra-engine-args '{json.dumps({**DEP8, 'max_batch_size': 64})}' --override-engine-args '{{\"max_batch_size\": 32}}'"
    )
    found = read_command(command, hardware="hgx-b200", isl_tokens=1000, osl_tokens=1000)
    pool = found.deployment.pools["decode"]
    assert (pool.dp, pool.batch_per_dp_rank, found.aggregated) == (8, 32, False)
    with pytest.raises(ProblemError, match="no option --mystery"):
        read_command(f"{command} --mystery 1", hardware="hgx-b200", isl_tokens=1000, osl_tokens=1000)


def test_a_recipe_of_srt_slurm_holds_fields(tmp_path):
    recipe = {
        "name": "one",
        "model": {"path": R1, "container": "nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc23", "precision": "fp4"},
        "resources": {"gpu_type": "b200", "gpus_per_node": 8, "prefill_nodes": 1, "prefill_workers": 1, "gpus_per_prefill": 8,
                      "decode_nodes": 1, "decode_workers": 1, "gpus_per_decode": 8},
        "backend": {"type": "trtllm", "trtllm_config": {
            "prefill": {**DEP8, "cuda_graph_config": None, "disable_overlap_scheduler": True, "max_num_tokens": 8448},
            "decode": {**DEP8, "max_batch_size": 128, "max_num_tokens": 128, "max_seq_len": 4096}}},
        "benchmark": {"type": "sa-bench", "isl": 1024, "osl": 1024, "concurrencies": "256"},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    manifest = read_file(tmp_path / "recipe.yaml")
    assert manifest is not None
    found = read_manifest(manifest, GivenToo(), "recipe.yaml")
    graphs = {role: (pool.dp, pool.cuda_graph) for role, pool in found.deployment.pools.items()}
    assert graphs == {"prefill": (8, False), "decode": (8, True)}
    assert found.conflicts == ()


PREFILL = {"dp": 8, "ep": 8, "max_batched_tokens": 8192, "cuda_graph": False, "all2all_backend": "nvlink_one_sided"}
DECODE = {"dp": 8, "ep": 8, "batch_per_dp_rank": 100, "all2all_backend": "nvlink_one_sided", "draft_tokens": 1, "instances": 2}


def deployment(hardware="hgx-b200", model="deepseek-r1", precision="nvfp4", **pools) -> Deployment:
    return Deployment.model_validate({
        "hardware": hardware, "model": model, "precision": precision, "engine": {"name": "trtllm"}, "phase": "serve",
        "workload": {"isl_tokens": 1000, "osl_tokens": 1000, "mtp_acceptance": [0.8]}, "load": {"rate_per_s": 1.0},
        "pools": pools or {"prefill": PREFILL, "decode": DECODE},
    })  # fmt: skip


def files(plan: Deployment, placement: PlannedPlacement | None = None) -> dict[str, str]:
    return {script.name: script.text for script in export(plan, placement)}


SERVE = {"batch_per_dp_rank": 16, "max_batched_tokens": 4096}
OVER_NODES = {"prefill": {**PREFILL, "dp": 4, "ep": 4}, "decode": {**DECODE, "dp": 16, "ep": 16}}
PLANS = {
    "pair": {},
    "pair over nodes": {"hardware": "gb200-nvl72", **OVER_NODES},
    "tensor": {"model": "qwen3-32b", "precision": "bf16", "hardware": "hgx-h200", "serve": {"tp": 2, **SERVE}},
    "experts": {
        "model": "qwen3-235b-a22b",
        "precision": "fp8-block",
        "hardware": "hgx-h200",
        "serve": {"tp": 4, "ep": 4, **SERVE},
    },
    "kimi": {"model": "kimi-k2", "precision": "fp8-block", "serve": {"tp": 8, "pp": 2, "ep": 8, **SERVE}},
}


@pytest.mark.parametrize("release", ["1.3.0rc3", "1.3.0rc29"])
@pytest.mark.parametrize("name", PLANS)
def test_what_is_written_are_fields_of_the_release(name, release):
    written = [yaml.safe_load(text) for file, text in files(deployment(**PLANS[name])).items() if file.endswith(".yml")]
    assert written
    for settings in written:
        fields = Fields(load_options("trtllm", release), release)
        fields.take(settings)
        assert fields.conflicts == []


@pytest.mark.parametrize("release", ["1.3.0rc3", "1.3.0rc29"])
def test_every_option_of_a_script_is_one_of_the_release(release):
    known = {flag for option in load_options("trtllm", release).options for flag in option.flags}
    for name, text in files(deployment(**PLANS["pair over nodes"])).items():
        if name.endswith(("_node.sh", "_head.sh")):
            flags = {word for word in text.rpartition("trtllm-serve ")[2].split() if word.startswith("--")}
            assert flags == {"--host", "--port", "--config"} <= known


def test_a_settings_file_says_the_plan():
    found = files(deployment())
    decode, prefill = (yaml.safe_load(found[f"{role}_settings.yml"]) for role in ("decode", "prefill"))
    assert decode["max_num_tokens"] == 200  # 100 sequences with one draft each
    assert decode["cuda_graph_config"] == {"enable_padding": True, "batch_sizes": [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100]}
    assert decode["moe_config"] == {"backend": "CUTLASS"}
    assert prefill["cuda_graph_config"] is None
    assert prefill["disable_overlap_scheduler"] is True
    assert (
        prefill["speculative_config"] == decode["speculative_config"] == {"decoding_type": "MTP", "num_nextn_predict_layers": 1}
    )
    assert "export TRTLLM_FORCE_COMM_METHOD=NVLINK_ONE_SIDED" in found["decode_node.sh"]
    kimi = yaml.safe_load(files(deployment(**PLANS["kimi"]))["serve_settings.yml"])
    assert kimi["trust_remote_code"] is True
    assert kimi["enable_chunked_prefill"] is True  # requests of 8,000 tokens, steps of 4,096


def test_the_free_fraction_fills_what_the_plan_may():
    """Read back, it is the memory that the plan was priced with."""
    plan = deployment(serve={"dp": 8, "ep": 8, "all2all_backend": "nvlink_one_sided", "memory_fraction": 0.8, **SERVE})
    settings = yaml.safe_load(files(plan)["serve_settings.yml"])
    found = read(settings, load=Load(rate_per_s=1.0))
    assert found.deployment.pools["serve"].memory_fraction == pytest.approx(0.8, abs=0.002)


def test_a_recipe_s_fields_are_held_against_those_of_our_settings():
    """Both have eight attention-DP ranks; the recipe runs 64 sequences on each, ours 100 with a draft each."""
    recipe = read({**DEP8, "max_batch_size": 64, "moe_config": {"backend": "CUTLASS"}}, role="decode")
    found = {difference.option: (difference.recipe, difference.ours) for difference in option_differences(recipe, deployment())}
    assert found["max_batch_size"] == ("64", "100")
    assert found["speculative_config.num_nextn_predict_layers"] == ("-", "1")
    assert not {"tensor_parallel_size", "moe_config.backend", "enable_attention_dp"} & set(found)


@pytest.mark.slow
def test_a_plan_s_map_of_experts_lies_in_the_settings():
    balance = {"kind": "static", "skew": 1.02}
    pool = {"dp": 8, "ep": 8, "batch_per_dp_rank": 16, "redundant_experts": 32, "all2all_backend": "nvlink_one_sided",
            "expert_balance": balance}  # fmt: skip
    document = deployment().model_dump() | {"phase": "decode", "load": None, "pools": {"decode": pool}}
    plan = Deployment.model_validate(document)
    with pytest.raises(ExportError, match="holds no map of them"):
        export(plan)
    slots = np.resize(np.arange(256), 288).reshape(8, 36)
    line = " | ".join(" ".join(map(str, gpu)) for gpu in slots)
    placement = PlannedPlacement(gpus=8, slots=288, balanced=1.0, eplb_balanced=1.0, median_gap=0.0, layers=(line,) * 58)
    settings = yaml.safe_load(files(plan, placement)["decode_settings.yml"])
    balancer = settings["moe_config"]["load_balancer"]
    assert (balancer["num_slots"], list(balancer["initial_global_assignments"])) == (288, list(range(3, 61)))
    back = read(settings, role="decode").deployment.pools["decode"]
    assert (back.redundant_experts, back.expert_balance.kind) == (32, "static")


SHIM = """#!/bin/bash
printf "%s\\n" "$@"
while [[ $# -gt 0 && "$1" != -c ]]; do shift; done
[[ ! -f "${2:-}" ]] || cat "$2"
"""


def run(text: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script with MPI and the engine replaced by what prints its words, and the file after -c."""
    for name in ("mpirun", "trtllm-serve"):
        (folder / name).write_text(SHIM)
        (folder / name).chmod(0o755)
    (folder / "script.sh").write_text(text)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **variables}
    command = ["bash", str(folder / "script.sh")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_mpi_starts_an_instance_of_several_nodes_from_the_first(tmp_path):
    found = files(deployment(**PLANS["pair over nodes"]))
    (tmp_path / "decode_settings.yml").write_text(found["decode_settings.yml"])
    done = run(found["decode_head.sh"], tmp_path, HOSTS="n0,n1,n2,n3", MODEL="/models/it's $(touch pwned)")
    words = done.stdout.split("\n")
    assert words[:6] == ["-np", "16", "--host", "n0:4,n1:4,n2:4,n3:4", "--map-by", "ppr:4:node"]
    at = words.index("trtllm-llmapi-launch")
    assert words[at + 1 : at + 3] == ["trtllm-serve", "/models/it's $(touch pwned)"]
    assert "TRTLLM_FORCE_COMM_METHOD" in [words[i + 1] for i, word in enumerate(words) if word == "-x"]
    assert not (tmp_path / "pwned").exists()
    short = run(found["decode_head.sh"], tmp_path, HOSTS="n0,n1")
    assert short.returncode == 1
    assert "HOSTS must name 4 nodes" in short.stderr


def test_the_router_s_file_names_every_server(tmp_path):
    text = files(deployment())["router.sh"]
    done = run(text, tmp_path, PREFILL_URLS="http://a:8000", DECODE_URLS="http://b:8000/ http://c:8001", WAIT_S="0", PORT="9001")
    document = yaml.safe_load(done.stdout[done.stdout.index("{") :])
    assert document == {
        "hostname": "0.0.0.0", "port": 9001,
        "context_servers": {"num_instances": 1, "urls": ["a:8000"]},
        "generation_servers": {"num_instances": 2, "urls": ["b:8000", "c:8001"]},
    }  # fmt: skip


def test_somebody_else_s_text_stays_a_word(tmp_path):
    found = files(deployment(**PLANS["tensor"]))
    (tmp_path / "serve_settings.yml").write_text(found["serve_settings.yml"])
    for text in ("a'b\"c", "$(touch pwned)", "x; touch pwned #", "--flag=1", "\u00e9\u2028", "-c"):
        done = run(found["serve_node.sh"], tmp_path, MODEL=text)
        assert done.stdout.startswith(f"{text}\n--host\n0.0.0.0\n--port\n8000\n")
        assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("target", "plan", "said"),
    [
        ("lws", "pair over nodes", "MPI joins the 4 nodes"),
        ("sbatch", "pair over nodes", "MPI joins the 4 nodes"),
        ("lws", "pair", "no file for trtllm-serve disaggregated to read its servers from"),
        ("llmd", "tensor", "written for vllm, sglang, not for trtllm"),
        ("kserve", "tensor", "starts vLLM and SGLang, not trtllm"),
        ("lws", "tensor", "no published image of trtllm for nvidia is known"),
    ],
)
def test_what_a_target_cannot_say_is_refused_by_name(target, plan, said):
    with pytest.raises(ExportError, match=said):
        load_target(target).render(launch_of(deployment(**PLANS[plan])), TargetOptions())


SOURCE = """
class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"

class Inner(StrictBaseModel):
    size: Optional[int] = None
    _hidden: int = 1

class Base(StrictBaseModel):
    name: str = ""

class Kind(Base):
    kind: ClassVar[str] = "one"
    deep: List[int] = []

class BaseLlmArgs(StrictBaseModel):
    model: Union[str, Path]
    colour: Colour = Colour.RED

class TorchLlmArgs(BaseLlmArgs):
    inner: Optional[Inner] = None
    spec: Optional[Base] = None
    mode: Literal["a", "b"] = "a"
    load_balancer: Optional[object] = None
"""
SERVE_SOURCE = """
@click.command("serve")
@click.argument("model", type=str)
@click.option("--tensor_parallel_size", "--tp_size", type=int, default=1)
@click.option("--backend", type=ChoiceWithAlias(["pytorch"], {"torch": "pytorch"}))
@click.option("--quiet", is_flag=True, default=False)
def serve(model): pass
"""
READER = Path(__file__).parents[3] / "scripts" / "trtllm_options.py"


def test_options_are_read_from_sources_without_running_them(tmp_path):
    for name, text in (("llmapi/llm_args.py", SOURCE), ("commands/serve.py", SERVE_SOURCE)):
        (tmp_path / "tensorrt_llm" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tensorrt_llm" / name).write_text(text)
    done = subprocess.run(
        [sys.executable, str(READER), str(tmp_path), "9.9"], capture_output=True, text=True, check=True, timeout=60
    )
    found = {option["flags"][0]: option for option in json.loads(done.stdout)["options"]}
    assert {name: option["type"] for name, option in found.items()} == {
        "model": "str", "colour": "str", "inner": "document", "inner.size": "int", "spec": "document", "spec.name": "str",
        "spec.kind": "str", "spec.deep": "list", "mode": "str", "load_balancer": "any|document",
        "--tensor_parallel_size": "int", "--backend": "str", "--quiet": "_StoreTrueAction",
    }  # fmt: skip
    assert found["colour"]["choices"] == ["red", "blue"]
    assert found["spec.kind"]["choices"] == ["one"]
    assert found["--backend"]["choices"] == ["pytorch", "torch"]
    assert found["--tensor_parallel_size"]["flags"] == ["--tensor_parallel_size", "--tp_size"]

"""Options as the engines' own parsers take them, and what they do to the verdict."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from autotune.auditing.checking import check
from autotune.auditing.commands import ReadCommand, read_command
from autotune.auditing.goals import Goals
from autotune.auditing.options import engine_for, split_options, whole_number
from autotune.auditing.shell import find_command
from autotune.auditing.verdict import Verdict
from autotune.cli.main import app
from autotune.documents.deployment import Load, Offload
from autotune.documents.problem import Problem
from autotune.errors import ProblemError
from autotune.exporters import export
from autotune.predicting.step import predict
from autotune.searching.pools import search

R1 = "vllm serve deepseek-ai/DeepSeek-R1-0528 -dp 8 --enable-expert-parallel --all2all-backend deepep_low_latency"
SGLANG = "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-R1-0528 --tp-size 8 --dp-size 8 --enable-dp-attention"


def read(text: str, **changes) -> ReadCommand:
    return read_command(text, **{"hardware": "hgx-h200", "isl_tokens": 1000, "osl_tokens": 1000, "size": 32, **changes})


def verdict(text: str, goals: Goals | None = None, **changes) -> Verdict:
    command = read(text, **changes)
    return check(command.deployment, goals or Goals(), command)


def options_of(text: str, version: str | None = None) -> dict[str, str | None]:
    invocation = find_command(text)
    return dict(split_options(invocation, engine_for(invocation.engine, "nvidia"), version).options)


# --- How parsers take options


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16384", 16384),
        ("16k", 16_000),
        ("16K", 16_384),
        ("2m", 2_000_000),
        ("1.5k", 1500),
        ("4Ki", 4096),
        ("1.5", None),
        ("x", None),
    ],
)
def test_sizes_have_suffixes(text, value):
    assert whole_number(text) == value


@pytest.mark.parametrize("version", ["0.11", "0.24", "0.33"])
@pytest.mark.parametrize("switch", ["--no-enable-prefix-caching", "--no-enable-chunked-prefill", "--no-enable_eplb"])
def test_switches_have_negations_that_the_help_does_not_show(version, switch):
    found = read(f"{R1} {switch}", version=version)
    assert found.conflicts == ()
    assert found.deployment.pool.flags.get("enable_eplb") is not True


@pytest.mark.parametrize("name", ["-dcp", "--decode-context-parallel-size", "--decode_context_parallel_size"])
def test_short_names_and_underscores_are_the_option(name):
    assert options_of(f"{R1} {name} 8")["--decode-context-parallel-size"] == "8"


def test_an_option_that_takes_many_takes_all_words_up_to_the_next():
    found = options_of(f"{R1} --cudagraph-capture-sizes 1 2 4 256 --served-model-name r1 deepseek --port 80")
    assert found["--cudagraph-capture-sizes"] == "1 2 4 256"
    assert found["--served-model-name"] == "r1 deepseek"
    assert found["--port"] == "80"


def test_fields_given_one_by_one_replace_the_document_and_it_is_said():
    # vLLM's parser appends the dotted fields as a document of its own, and of two documents the last counts (run: 0.33.0)
    text = R1 + """ --compilation-config '{"cudagraph_mode":"NONE"}' --compilation_config.custom_ops+=+quant_fp8,+rms_norm"""
    assert options_of(text)["--compilation-config"] == '{"custom_ops": ["+quant_fp8", "+rms_norm"]}'
    found = read(text)
    assert found.conflicts == ()
    assert found.deployment.pool.cuda_graph
    assert any("cudagraph_mode has no effect" in remark for remark in found.remarks)


def test_dotted_fields_nest_and_have_types():
    found = read(
        f"{R1} --enable-eplb --eplb-config.window_size 500 --eplb-config.num_redundant_experts=32 -O.cudagraph_mode NONE"
    )
    pool = found.deployment.pool
    assert (pool.expert_balance.window_steps, pool.redundant_experts, pool.cuda_graph) == (500, 32, False)


@pytest.mark.parametrize(("level", "option"), [("-O3", "3"), ("-O 2", "2"), ("-O=1", "1")])
def test_optimisation_levels(level, option):
    assert options_of(f"{R1} {level}")["--optimization-level"] == option


def test_a_value_that_an_option_does_not_take_keeps_it_from_starting():
    found = verdict(f"{R1} --kv-cache-dtype fp9", version="0.24")
    assert found.answer == "does not work"
    assert any("takes no --kv-cache-dtype fp9; did you mean fp8" in line for line in found.conflicts)


# --- What is modelled


@pytest.mark.parametrize(
    ("engine", "hardware", "version"),
    [("vllm", "gb200-nvl72", None), ("vllm", "hgx-h200", "0.24"), ("vllm", "hgx-b200", "0.17"), ("sglang", "gb200-nvl72", None)],
)
def test_our_prefill_scripts_come_back_offload_included(engine, hardware, version):
    problem = Problem(hardware=hardware, gpus=8, engine=engine, engine_version=version, target="prefill", trials=0)
    plans = search(problem).plans
    assert plans
    for plan in plans:
        text = next(script.text for script in export(plan.deployment) if "node" in script.name or "head" in script.name)
        found = read(text, hardware=hardware, version=version, size=None)
        asked, came = plan.deployment.pool, found.deployment.pool
        names = ("tp", "dp", "ep", "pp", "offload", "max_batched_tokens", "redundant_experts", "all2all_backend", "cuda_graph")
        assert {n: getattr(came, n) for n in names} == {n: getattr(asked, n) for n in names}
        assert found.unmodelled == ()


@pytest.mark.parametrize("options", ["--offload-group-size 4", "--offload-group-size 4 --offload-params self_attn"])
def test_whole_layers_offloaded_are_not_modelled(options):
    found = read(f"{R1} {options}")
    assert found.deployment.pool.offload == Offload(group_size=4)
    assert "every parameter of an offloaded layer" in found.unmodelled[0].what
    assert read(f"{R1} --offload-group-size 4 --offload-params experts").unmodelled == ()


@pytest.mark.parametrize(
    ("text", "captured", "tokens"),
    [
        (f"{R1} --cudagraph-capture-sizes 1 2 4 64", True, 64),
        (f"{R1} --max-cudagraph-capture-size 512", True, 512),
        (f"""{R1} --compilation-config '{{"cudagraph_capture_sizes": [8, 16]}}'""", True, 16),
        (f"""{R1} --compilation-config '{{"cudagraph_mode": "NONE"}}'""", False, None),
        (f"{R1} --enforce-eager --max-cudagraph-capture-size 512", False, None),
        (f"{SGLANG} --cuda-graph-bs-decode 1 2 4 8", True, 8),
        (f"{SGLANG} --cuda-graph-max-bs-decode 24 --speculative-algorithm NEXTN --speculative-num-steps 1", True, 48),
        (f"{SGLANG} --disable-decode-cuda-graph", False, None),
        (f"{SGLANG} --moe-a2a-backend deepep --deepep-mode normal", False, None),
    ],
)
def test_sizes_of_captured_graphs(text, captured, tokens):
    pool = read(text).deployment.pool
    assert (pool.cuda_graph, pool.cuda_graph_tokens) == (captured, tokens)


def test_a_step_larger_than_the_largest_graph_runs_eagerly():
    small, large = (predict(read(f"{R1} --cudagraph-capture-sizes 1 {size}", size=64).deployment).step_s for size in (32, 64))
    assert small > 1.1 * large


def test_a_cache_of_so_many_bytes_takes_the_place_of_the_memory_fraction():
    step = predict(read(f"{R1} --kv-cache-memory-bytes 20G --gpu-memory-utilization 0.5").deployment)
    beside = step.memory_total_bytes - next(line.bytes for line in step.memory if line.name == "kv_cache")
    assert step.memory_limit_bytes - beside == pytest.approx(20 * 1024**3, rel=1e-6)


def test_a_cache_that_no_device_holds_does_not_start():
    found = verdict(f"{R1} --kv-cache-memory-bytes 140G")
    assert found.answer == "does not work"
    assert "more than a device of" in found.conflicts[0]


def test_sglang_limits_the_tokens_of_its_cache():
    free, limited = (
        predict(read(f"{SGLANG} {option}").deployment).kv_capacity_tokens for option in ("", "--max-total-tokens 50k")
    )
    assert limited == pytest.approx(50_000, rel=0.01)
    assert free > 2 * limited


def test_rebalancing_defaults_are_the_versions():
    # asynchronous since vLLM 0.23; SGLang rebalances every 1,000 passes, vLLM every 3,000
    for version, moved in (("0.22", False), ("0.23", True)):
        balance = read(f"{R1} --enable-eplb", version=version).deployment.pool.expert_balance
        assert (balance.interval_steps, balance.asynchronous) == (3000, moved)
    assert read(f"{SGLANG} --enable-eplb --moe-a2a-backend deepep").deployment.pool.expert_balance.interval_steps == 1000


def test_limits_of_a_sequence_are_read():
    assert read(f"{R1} --max-model-len 16k").longest_tokens == 16_000
    assert read(f"{SGLANG} --context-length 65536").longest_tokens == 65_536
    assert read(f"{R1} --max-model-len auto").longest_tokens is None


# --- What is not


@pytest.mark.parametrize(
    "option",
    [
        "--prefill-context-parallel-size 2", "--num-gpu-blocks-override 1000", "--cpu-offload-gb 40",
        "--hf-overrides '{\"num_hidden_layers\": 4}'", "--load-format gguf", "--enable-lora", "--worker-cls mine.Worker",
        "--speculative-config '{\"method\":\"eagle3\",\"model\":\"some/head\",\"num_speculative_tokens\":3}'",
        "--kv-cache-dtype nvfp4", "--dtype float32",
    ],
)  # fmt: skip
def test_what_changes_memory_without_a_model_takes_the_verdict_with_it(option):
    assert verdict(R1).answer == "works"
    found = verdict(f"{R1} {option}")
    assert (found.answer, found.works) == ("cannot say", False)
    assert option.split()[0] in found.unmodelled[0]


@pytest.mark.parametrize(
    "option",
    [
        "--cpu-offload-gb 20",
        "--enable-prefill-cp",
        "--kt-cpuinfer 60",
        "--dwdp-size 2",
    ],
)
def test_the_same_for_sglang(option):
    assert verdict(SGLANG).answer == "works"
    assert verdict(f"{SGLANG} {option}").answer == "cannot say"


@pytest.mark.parametrize(
    "option", ["-dcp 1", "--cpu-offload-gb 0", "--load-format auto", "--attention-backend auto", "--port 80"]
)
def test_values_that_change_nothing_leave_it(option):
    assert verdict(f"{R1} {option}").answer == "works"


def test_speed_matters_only_where_it_is_asked_for():
    text = f"{R1} --attention-backend TRITON_MLA"
    found = verdict(text)
    assert found.answer == "works"
    assert any("not modelled: --attention-backend TRITON_MLA" in remark for remark in found.remarks)
    assert verdict(text, Goals(tpot_s=0.2)).answer == "cannot say"
    assert verdict(text, Goals(concurrency=8)).answer == "works"  # memory alone decides it


def test_waiting_matters_for_services_alone():
    text = f"{R1} --long-prefill-token-threshold 512"
    assert verdict(text).answer == "works"
    assert verdict(text, load=Load(concurrency=64)).answer == "cannot say"


def test_what_does_not_work_anyway_is_said():
    # 8 x 141 GB hold no BF16 expert weights of 1.3 TB; kernels of attention do not change that, offload to the host may
    conflict = verdict(f"{R1} --cpu-offload-gb 40 --kv-cache-dtype fp9", version="0.24")
    assert conflict.answer == "does not work"
    small = "vllm serve deepseek-ai/DeepSeek-R1-0528 --tensor-parallel-size 4"
    assert verdict(f"{small} --attention-backend FLASHMLA", size=1).answer == "does not work"
    assert verdict(f"{small} --cpu-offload-gb 100", size=1).answer == "cannot say"


@pytest.mark.parametrize(("option", "code"), [("", 0), ("--cpu-offload-gb 100", 3), ("--kv-cache-dtype fp9", 2)])
def test_exit_codes(option, code, tmp_path):
    script = tmp_path / "run.sh"
    script.write_text(f"{R1} {option}")
    done = CliRunner().invoke(app, ["check", str(script), "--hw", "hgx-h200", "--size", "32", "--engine-version", "0.24"])
    assert done.exit_code == code, done.output


# --- Versions and wrappers


@pytest.mark.parametrize(
    ("version", "text", "backend"),
    [
        ("0.4.6", f"{SGLANG} --enable-deepep-moe --deepep-mode low_latency", "deepep_low_latency"),
        ("0.4.9", f"{SGLANG} --enable-deepep-moe --cuda-graph-max-bs 128 --enable-two-batch-overlap", "deepep_low_latency"),
        ("0.5.2", f"{SGLANG} --moe-a2a-backend deepep --cuda-graph-max-bs 128", "deepep_low_latency"),
        ("0.5.10", f"{SGLANG} --moe-a2a-backend flashinfer --enable-single-batch-overlap", "nvlink_one_sided"),
        ("0.5.23", SGLANG.replace("--dp-size 8 --enable-dp-attention", "--attn-dp-size 8"), "allgather_reducescatter"),
    ],
)
def test_options_of_each_sglang_generation(version, text, backend):
    found = read(text, version=version, hardware="gb200-nvl72")
    assert found.conflicts == ()
    pool = found.deployment.pool
    assert (pool.tp, pool.dp, pool.all2all_backend) == (1, 8, backend)


def test_options_of_another_generation_are_named():
    assert (
        "SGLang 0.4.9.post6 has no --moe-a2a-backend" in read(f"{SGLANG} --moe-a2a-backend deepep", version="0.4.9").conflicts[0]
    )
    assert "now --moe-a2a-backend deepep" in read(f"{SGLANG} --enable-deepep-moe", version="0.5.23").conflicts[0]


def test_a_version_without_a_list_says_whose_it_took():
    found = read(R1, version="0.30.1")
    assert found.deployment.engine.version == "0.30"
    assert any("that of 0.30.0 was used" in remark for remark in found.remarks)
    assert any("priced with times of 0.5.10" in remark for remark in read(SGLANG, version="0.4.9").remarks)


def test_dynamo_workers_are_read():
    text = "python3 -m dynamo.vllm --model deepseek-ai/DeepSeek-R1-0528 -dp 16 --enable-expert-parallel --is-decode-worker"
    found = read(f"{text} --all2all-backend deepep_low_latency --connector nixl --migration-limit 3")
    assert (found.deployment.pool.dp, found.deployment.phase, found.aggregated) == (16, "decode", False)
    assert found.conflicts == ()
    with pytest.raises(ProblemError, match="--is-decode-worker"):
        read(f"{R1} --is-decode-worker")


def test_an_option_that_came_between_two_lists_is_a_doubt_not_a_conflict():
    """0.5.10.post1 has no --weight-loader-prefetch-checkpoints, 0.5.12.post1 has; a public recipe starts 0.5.11 with it."""
    command = f"{SGLANG} --weight-loader-prefetch-checkpoints"
    found = {v: read_command(command, hardware="hgx-h200", version=v, isl_tokens=9, osl_tokens=9) for v in ("0.5.10", "0.5.11")}
    assert "has no --weight-loader-prefetch-checkpoints" in found["0.5.10"].conflicts[0]
    assert not found["0.5.11"].conflicts
    assert any("what lies between may lack it" in line for line in found["0.5.11"].remarks)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (f"{SGLANG} --moe-a2a-backend megamoe", "--moe-a2a-backend megamoe"),
        ("vllm serve deepseek-ai/DeepSeek-R1-0528 -dp 8 -ep --all2all-backend nixl_ep", "--all2all-backend nixl_ep"),
    ],
)
def test_an_all_to_all_that_nothing_prices_leaves_the_answer_open(command, option):
    """The releases' parsers take both; experts are spread over all eight ranks all the same."""
    found = read_command(command, hardware="hgx-h200", isl_tokens=1000, osl_tokens=1000, size=32)
    assert [one.option for one in found.unmodelled] == [option]
    assert (found.deployment.pool.ep, found.deployment.pool.all2all_backend) == (8, "allgather_reducescatter")
    assert check(found.deployment, Goals(), found).answer == "cannot say"

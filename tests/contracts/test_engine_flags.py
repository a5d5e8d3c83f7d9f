"""Every option and variable we emit exists in that engine version's own parser.

search_spaces/data/options holds option lists dumped from the parsers of the releases themselves.
The scripts are run by bash with the engine replaced by a recorder, so quoting is tested too.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from autotune.documents.deployment import Deployment, Load
from autotune.documents.problem import Problem
from autotune.errors import ExportError
from autotune.exporters import export
from autotune.resolving import resolve_problem
from autotune.searching.pools import search
from autotune.searching.services.choosing import aggregated, disaggregated
from autotune.searching.services.evaluating import service_deployment
from autotune.searching.services.sides import aggregated_candidates, decode_candidates, pools_of, prefill_candidates
from search_spaces.loader import load_engine
from search_spaces.options import load_options

FIXTURES = Path(__file__).parent.parent / "fixtures" / "engine_cli"
EXPORTED = [(name, v.version, v.release) for name in ("vllm", "sglang") for v in load_engine(name).versions if v.scripts]
NEWEST = {engine: version for engine, version, _ in EXPORTED}
FIRST_THE_NEWEST = [pytest.param(*each, marks=() if each[1] in NEWEST.values() else pytest.mark.slow) for each in EXPORTED]
"""The newest version of each engine always, the others among the slow tests."""
RECORDER = """#!/bin/bash
printf '%s\\0' "$#" "$@"
exec env --null
"""
"""Number of arguments, arguments, environment; a NUL after each."""


def run_script(text: str, tmp_path: Path, **variables: str) -> dict:
    """Run a launch script with `vllm` and `python3 -m sglang...` replaced by a recorder."""
    for name in ("vllm", "python3", "vllm-router"):
        shim = tmp_path / name
        shim.write_text(RECORDER)
        shim.chmod(0o755)
    script = tmp_path / "script.sh"
    script.write_text(text)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssertionError(done.stderr)
    count, *words = done.stdout.removesuffix("\0").split("\0")
    given = (word.partition("=") for word in words[int(count) :])
    seen = {name: value for name, _, value in given if name.startswith(("VLLM_", "SGLANG_"))}
    return {"argv": words[: int(count)], "env": seen}


def emitted_flags(argv: list[str]) -> dict[str, str | None]:
    flags: dict[str, str | None] = {}
    for position, token in enumerate(argv):
        if token.startswith("--"):
            following = argv[position + 1] if position + 1 < len(argv) else None
            flags[token] = None if following is None or following.startswith("--") else following
    return flags


ROUTED = {"PREFILL_URLS": "http://10.0.0.1:8000 http://10.0.0.1:8001", "DECODE_URLS": "http://10.0.0.2:8000"}
NODE = {"HEAD_ADDRESS": "10.0.0.1", "NODE_ADDRESS": "10.0.0.2", "NODE_RANK": "1", "NIC": "eth0"}


def check_against_parser(recorded: dict, engine: str, release: str) -> None:
    known = load_options(engine, release)
    options = {flag: option for option in known.options for flag in option.flags}
    for flag, value in emitted_flags(recorded["argv"]).items():
        assert flag in options, f"{engine} {release} has no {flag}"
        choices = options[flag].choices
        if choices and value is not None:
            assert value in choices, f"{engine} {release}: {flag} {value}"
        if value is None:
            assert not options[flag].takes_value, f"{flag} needs a value"
    unknown = set(recorded["env"]) - set(known.env)
    assert not unknown, f"{engine} {release} does not know {unknown}"


@pytest.mark.parametrize(("engine", "version", "release"), FIRST_THE_NEWEST)
@pytest.mark.parametrize("hardware", ["gb200-nvl72", "hgx-h200"])
def test_the_top_three_plans_start_as_far_as_the_parser_can_tell(engine, version, release, hardware, tmp_path):
    result = search(Problem(hardware=hardware, engine=engine, engine_version=version, gpus=16, trials=0))
    assert len(result.plans) == 3
    node = load_gpus_per_node(hardware)
    for plan in result.plans:
        for script in export(plan.deployment):
            recorded = run_script(script.text, tmp_path, **NODE)
            check_against_parser(recorded, engine, release)
            local = emitted_flags(recorded["argv"]).get("--data-parallel-size-local")
            assert local is None or int(local) * plan.layout.tp <= node


SERVICES = [
    (name, version, release)
    for name, version, release in EXPORTED
    if (name, version) in (("vllm", "0.11"), ("vllm", "0.17"), ("vllm", "0.33")) or name == "sglang"
]
ROUTERS = {"vllm": "vllm-router_0.1.17", "sglang": "sglang-router_0.3.2"}


def services(problem: Problem) -> list[Deployment]:
    """The two best services of each kind, as a search writes them, before it replays them."""
    pools = pools_of(resolve_problem(problem))
    pairs = disaggregated(pools, prefill_candidates(pools), decode_candidates(pools), 2)
    found = [*pairs, *aggregated(pools, aggregated_candidates(pools), 2)]
    return [service_deployment(pools, candidate, Load(rate_per_s=candidate.requests_per_s)) for candidate in found]


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "version", "release"), SERVICES)
@pytest.mark.parametrize("hardware", ["gb200-nvl72", "hgx-h200"])
def test_services_start_as_far_as_the_parsers_can_tell(engine, version, release, hardware, tmp_path):
    found = services(Problem(hardware=hardware, target="serve", engine=engine, engine_version=version, gpus=24))
    assert [len(plan.pools) for plan in found] == [2, 2, 1, 1]
    for plan in found:
        scripts = {script.name: script.text for script in export(plan)}
        check_benchmark(scripts.pop("bench.sh"), plan)
        assert ("router.sh" in scripts) is ("prefill" in plan.pools)
        for name, text in scripts.items():
            recorded = run_script(text, tmp_path, **NODE, **ROUTED)
            if name != "router.sh":
                check_against_parser(recorded, engine, release)
                continue
            flags = recorded["argv"]
            known = json.loads((FIXTURES / f"{ROUTERS[engine]}.json").read_text())
            options = {flag for option in known["options"] for flag in option["flags"]}
            assert {flag for flag in flags if flag.startswith("--")} <= options
            assert flags.count("--prefill") == 2
            assert flags.count("--decode") == 1


def check_benchmark(text: str, deployment: Deployment) -> None:
    """The planned load and lengths, on the command line of the engine's own tool (docs.vllm.ai, sglang/bench_serving.py)."""
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    given = dict(itertools.pairwise(words))
    assert given["--random-input-len"] == str(deployment.workload.isl_tokens)
    assert given["--random-output-len"] == str(deployment.workload.osl_tokens)
    load = deployment.load
    assert load is not None
    assert given.get("--request-rate") == (f"{load.rate_per_s:g}" if load.rate_per_s else None)
    assert given.get("--max-concurrency") == (str(load.concurrency) if load.concurrency else None)
    assert int(given["--num-prompts"]) >= 100
    kept = "--result-filename" if deployment.engine.name == "vllm" else "--output-file"
    assert given[kept] == "$RESULT"


def prefill_deployment(engine: str, version: str | None, **pool) -> Deployment:
    hardware = "gb200-nvl72"
    return Deployment.model_validate(
        {
            "hardware": hardware,
            "model": "deepseek-v3",
            "precision": "nvfp4",
            "engine": {"name": engine, "version": version},
            "phase": "prefill",
            "workload": {"isl_tokens": 1000, "osl_tokens": 1000},
            "pools": {"prefill": {"max_batched_tokens": 16384, "cuda_graph": False, **pool}},
        }
    )


OFFLOAD = {"offload_group_size": 8, "offload_num_in_group": 2, "offload_prefetch_step": 2, "enable_dbo": True}


def test_a_vllm_prefill_instance_offloads_and_produces(tmp_path):
    flags = {**OFFLOAD, "all2all_backend": "deepep_high_throughput", "dbo_prefill_token_threshold": 512}
    plan = prefill_deployment("vllm", "0.17", dp=4, ep=4, all2all_backend="deepep_normal", overlap="two_batch", flags=flags)
    recorded = run_script(export(plan)[0].text, tmp_path, **NODE)
    check_against_parser(recorded, "vllm", "0.17.0")
    emitted = emitted_flags(recorded["argv"])
    assert [emitted[f"--offload-{name}"] for name in ("group-size", "num-in-group", "prefetch-step")] == ["8", "2", "2"]
    assert emitted["--offload-params"] == "experts"
    assert emitted["--dbo-prefill-token-threshold"] == "512"
    assert json.loads(emitted["--kv-transfer-config"])["kv_role"] == "kv_producer"
    assert "--enforce-eager" in emitted


def test_an_sglang_prefill_instance_gets_totals_and_a_bootstrap_port(tmp_path):
    flags = {**OFFLOAD, "all2all_backend": "deepep"}
    plan = prefill_deployment("sglang", None, dp=4, ep=4, all2all_backend="deepep_normal", overlap="two_batch", flags=flags)
    plan = plan.model_copy(update={"precision": "fp8-block"})  # NVFP4 has no normal kernels
    recorded = run_script(export(plan)[0].text, tmp_path, **NODE, BOOTSTRAP_PORT="9100")
    check_against_parser(recorded, "sglang", "0.5.23")
    emitted = emitted_flags(recorded["argv"])
    assert emitted["--chunked-prefill-size"] == str(4 * 16384)  # SGLang divides it by the attention-DP size
    assert emitted["--deepep-mode"] == "normal"
    assert emitted["--disaggregation-mode"] == "prefill"
    assert emitted["--disaggregation-bootstrap-port"] == "9100"


def test_no_offload_no_offload_flags():
    flags = {**OFFLOAD, "offload_group_size": 0, "all2all_backend": "deepep_high_throughput", "enable_dbo": False}
    plan = prefill_deployment("vllm", "0.17", dp=4, ep=4, all2all_backend="deepep_normal", flags=flags)
    assert "--offload" not in export(plan)[0].text


def test_vllm_pools_that_hand_caches_over_have_no_pipeline():
    with pytest.raises(ExportError, match="takes no pipeline stages"):
        export(deployment("vllm", None, tp=4, pp=2))


def test_two_prefill_instances_of_a_node_listen_on_their_own_ports(tmp_path):
    text = export(prefill_deployment("vllm", None, dp=2, ep=2, all2all_backend="nvlink_one_sided"))[0].text
    recorded = run_script(text, tmp_path, **NODE, SLOT="1")
    assert emitted_flags(recorded["argv"])["--port"] == "8001"
    assert recorded["env"]["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5602"  # one port for each of the other instance's two ranks


def load_gpus_per_node(hardware: str) -> int:
    from cost_models.catalog import load_hardware

    return load_hardware(hardware).gpus_per_node


def deployment(engine: str, version: str | None, hardware: str = "gb200-nvl72", model: str = "deepseek-v3", **pool) -> Deployment:
    return Deployment.model_validate(
        {
            "hardware": hardware,
            "model": model,
            "precision": "nvfp4" if hardware == "gb200-nvl72" else "fp8-block",
            "engine": {"name": engine, "version": version},
            "workload": {"isl_tokens": 1000, "osl_tokens": 1000, "mtp_acceptance": [0.8]},
            "pools": {"decode": {"batch_per_dp_rank": 64, **pool}},
        }
    )


EVERY_KNOB = {
    "all2all_backend": "deepep_low_latency",
    "enable_dbo": True,
    "dbo_decode_token_threshold": 64,
    "moe_dp_chunk_tokens": 128,
    "enable_moe_dp_chunk": True,
    "enable_activation_chunk": False,
    "activation_chunk_rows": 8192,
    "output_proc_chunk": 2048,
    "enable_eplb": True,
    "eplb_window_steps": 100,
    "eplb_interval_steps": 1000,
    "redundant_experts": 0,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 128,
    "cudagraph_max_tokens": 128,
    "kv_cache_dtype": "fp8",
    "gpu_memory_fraction": 0.9,
    "draft_tokens": 1,
}


@pytest.mark.parametrize("version", [v.version for v in load_engine("vllm").versions])
def test_every_vllm_knob_in_every_version(version, tmp_path):
    release = next(v.release for v in load_engine("vllm").versions if v.version == version)
    plan = deployment(
        "vllm", version, dp=16, ep=16, draft_tokens=1, all2all_backend="deepep_low_latency", overlap="two_batch", flags=EVERY_KNOB
    )
    recorded = run_script(export(plan)[0].text, tmp_path, **NODE)
    check_against_parser(recorded, "vllm", release)
    flags = emitted_flags(recorded["argv"])
    assert json.loads(flags["--speculative-config"]) == {"method": "mtp", "num_speculative_tokens": 1}
    assert json.loads(flags["--eplb-config"])["window_size"] == 100
    transfer = {"kv_connector": "NixlConnector", "kv_role": "kv_consumer", "kv_load_failure_policy": "fail"}
    assert json.loads(flags["--kv-transfer-config"]) == transfer
    assert flags["--data-parallel-start-rank"] == "4"  # node 1 of 4 GPUs each
    chunk = load_engine("vllm").has("moe_dp_chunk_tokens", version)
    assert ("VLLM_MOE_DP_CHUNK_SIZE" in recorded["env"]) is chunk


def test_every_sglang_knob(tmp_path):
    flags = {**EVERY_KNOB, "all2all_backend": "deepep", "enable_sbo": False, "kv_cache_dtype": "fp8_e4m3"}
    plan = deployment("sglang", None, dp=16, ep=16, draft_tokens=1, all2all_backend="deepep_low_latency", flags=flags)
    recorded = run_script(export(plan)[0].text, tmp_path, **NODE)
    check_against_parser(recorded, "sglang", "0.5.23")
    emitted = emitted_flags(recorded["argv"])
    assert emitted["--tp-size"] == emitted["--attn-dp-size"] == "16"
    assert emitted["--max-running-requests"] == str(64 * 16)  # a total over the attention-DP ranks
    assert emitted["--speculative-num-draft-tokens"] == "2"
    assert recorded["env"]["SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"] == "128"


def test_tensor_parallel_over_nodes_has_a_head_and_headless_workers(tmp_path):
    head, worker = export(deployment("vllm", None, tp=8))
    assert (head.name, worker.name) == ("decode_head.sh", "decode_worker.sh")
    flags = emitted_flags(run_script(worker.text, tmp_path, **NODE)["argv"])
    assert "--headless" in flags
    assert flags["--nnodes"] == "2"  # four GPUs per GB200 node, not eight
    assert "--headless" not in emitted_flags(run_script(head.text, tmp_path, **{**NODE, "NODE_RANK": "0"})["argv"])


def test_instances_that_share_a_node_get_their_own_gpus_and_port(tmp_path):
    plan = deployment("vllm", None, "hgx-h200", "qwen3-235b-a22b", tp=4, ep=4)
    text = export(plan)[0].text.replace("exec vllm", 'echo "$CUDA_VISIBLE_DEVICES" >&2; exec vllm')
    recorded = run_script(text, tmp_path, **NODE, SLOT="1")
    assert emitted_flags(recorded["argv"])["--port"] == "8001"
    assert "SLOT * 4" in text


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NODE_ADDRESS": "10.0.0.2", "NODE_RANK": "0"}, "HEAD_ADDRESS"),
        ({**NODE, "NODE_RANK": "4"}, "NODE_RANK must be 0..3"),
        ({**NODE, "NODE_RANK": "one"}, "NODE_RANK must be 0..3"),
    ],
)
def test_scripts_check_their_variables(variables, message, tmp_path):
    plan = deployment("vllm", None, dp=16, ep=16, all2all_backend="deepep_low_latency")
    with pytest.raises(AssertionError, match=re.escape(message)):
        run_script(export(plan)[0].text, tmp_path, **variables)


def test_a_model_path_with_spaces_and_quotes_survives_the_shell(tmp_path):
    text = export(deployment("vllm", None, dp=4, ep=4, all2all_backend="allgather_reducescatter"))[0].text
    nasty = "/models/it's a $(touch pwned) path"
    recorded = run_script(text, tmp_path, **NODE, MODEL=nasty)
    assert recorded["argv"][1] == nasty
    assert not (tmp_path / "pwned").exists()


def test_sglang_starts_from_a_map_where_loads_were_recorded(tmp_path):
    balance = {"kind": "static", "skew": 1.02}
    flags = {"all2all_backend": "deepep", "enable_eplb": True, "redundant_experts": 32, "eplb_interval_steps": 3000}
    plan = deployment(
        "sglang",
        None,
        dp=16,
        ep=16,
        redundant_experts=32,
        all2all_backend="deepep_low_latency",
        expert_balance=balance,
        flags=flags,
    )
    text = export(plan)[0].text
    named = tmp_path / "map.json"
    named.write_text("{}")
    with pytest.raises(AssertionError, match="autotune place LOADS --gpus 16 --redundant 32"):
        run_script(text, tmp_path, **NODE)
    recorded = run_script(text, tmp_path, **NODE, EXPERT_LOCATION=str(named))
    check_against_parser(recorded, "sglang", "0.5.23")
    emitted = emitted_flags(recorded["argv"])
    assert emitted["--init-expert-location"] == str(named)
    assert emitted["--ep-num-redundant-experts"] == "32"
    assert "--enable-eplb" not in emitted

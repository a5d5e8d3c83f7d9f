"""What decides whether scripts work once they start: lengths, ports, names, the network, and waiting for servers."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import shlex
import subprocess
import threading
from pathlib import Path

import pytest

from autotune.documents.deployment import Deployment
from autotune.exporters import export
from autotune.exporters.lengths import LONGEST_OVER_MEAN, lengths_of
from cost_models.catalog import load_hardware, load_model

DECODE = {"dp": 8, "ep": 8, "batch_per_dp_rank": 64, "all2all_backend": "deepep_low_latency"}
PREFILL = {"tp": 4, "ep": 4, "max_batched_tokens": 8192, "cuda_graph": False}


def service(engine="vllm", hardware="gb200-nvl72", model="deepseek-r1", precision="nvfp4", load=None, decode=None, prefill=None,
            isl=1000, osl=1000) -> Deployment:  # fmt: skip
    return Deployment.model_validate({
        "hardware": hardware, "model": model, "precision": precision, "engine": {"name": engine}, "phase": "serve",
        "workload": {"isl_tokens": isl, "osl_tokens": osl}, "load": load or {"rate_per_s": 1.0},
        "pools": {"prefill": prefill or PREFILL, "decode": decode or DECODE},
    })  # fmt: skip


def scripts(deployment: Deployment) -> dict[str, str]:
    return {script.name: script.text for script in export(deployment)}


def options(text: str) -> dict[str, str]:
    """Option -> the word after it, of the engine's command."""
    words = shlex.split(text.split("exec ")[1].replace("\\\n", " "), comments=True)
    return dict(itertools.pairwise(words))


def run(text: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A script with the engine, its router and its benchmark replaced by `echo`; python3 is the real one."""
    for name in ("vllm", "vllm-router"):
        (folder / name).write_text('#!/bin/bash\necho "$@"\n')
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **variables}
    return subprocess.run(["bash", "-c", text], env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_without_a_trace_the_limit_is_a_stated_multiple_of_the_means():
    found = lengths_of(service(isl=1000, osl=500), load_model("deepseek-r1"))
    assert found.longest == 6016  # 4 x 1,500 = 6,000, rounded up to a multiple of 64
    assert f"{LONGEST_OVER_MEAN} times the mean request of 1,500 tokens" in found.why
    for name in ("decode_node.sh", "prefill_node.sh"):
        text = scripts(service(isl=1000, osl=500))[name]
        assert options(text)["--max-model-len"] == "6016"
        assert "# Requests of up to 6,016 tokens are taken: 4 times the mean request of 1,500 tokens." in text


def test_the_model_s_own_limit_is_the_most():
    found = lengths_of(
        service(model="qwen3-235b-a22b", precision="fp8-block", isl=15000, osl=1000), load_model("qwen3-235b-a22b")
    )
    assert found.longest <= 40960


def test_one_request_of_the_limit_fits_the_cache():
    """TP8 on H200 holds a handful of sequences beside the weights of R1 in FP8; 4 x 50,000 tokens are more."""
    decode = {"tp": 8, "ep": 8, "batch_per_dp_rank": 4, "memory_fraction": 0.68}
    plan = service(
        hardware="hgx-h200", precision="fp8-block", decode=decode, prefill={**PREFILL, "tp": 8, "ep": 8}, isl=40000, osl=10000
    )
    found = lengths_of(plan, load_model("deepseek-r1"))
    assert found.longest < 200_000
    assert "what one rank's KV cache holds" in found.why


@pytest.fixture
def trace(tmp_path):
    """Two requests of 1,000 + 100 tokens and one of 9,000 + 2,000: means 3,667 and 733, longest 11,000."""
    lines = [(0, 1000, 100), (1000, 1000, 100), (2000, 9000, 2000)]
    rows = [json.dumps({"timestamp": t, "input_length": i, "output_length": o, "hash_ids": []}) for t, i, o in lines]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(rows))
    return path


@pytest.mark.parametrize(("engine", "flag"), [("vllm", "--max-model-len"), ("sglang", "--context-length")])
def test_a_trace_s_longest_request_is_let_in_and_its_means_are_sent(engine, flag, trace):
    found = scripts(service(engine, precision="fp8-block", load={"trace": str(trace)}))
    assert options(found["decode_node.sh"])[flag] == "11008"
    sent = options(found["bench.sh"])
    assert (sent["--random-input-len"], sent["--random-output-len"]) == ("3667", "733")
    trace.unlink()
    text = scripts(service(engine, precision="fp8-block", load={"trace": str(trace)}))["decode_node.sh"]
    assert "its trace was not read" in text


@pytest.mark.parametrize(
    ("engine", "shortest", "lengths", "spread"),
    [
        ("vllm", 1.0, ("1000", "1000"), None),
        ("sglang", 1.0, ("1000", "1000"), "1"),
        ("vllm", 0.5, ("750", "750"), "0.333"),  # 750 +- a third: 500 to 1,000
        ("sglang", 0.5, ("1000", "1000"), "0.5"),  # half of 1,000 to 1,000
    ],
)
def test_synthetic_lengths_are_sent_as_they_were_planned(engine, shortest, lengths, spread):
    load = {"rate_per_s": 2.0, "shortest": shortest}
    sent = options(scripts(service(engine, precision="fp8-block", load=load))["bench.sh"])
    assert (sent["--random-input-len"], sent["--random-output-len"]) == lengths
    assert sent.get("--random-range-ratio") == spread
    assert sent["--dataset-name"] == {"vllm": "random", "sglang": "random-ids"}[engine]  # SGLang's `random` downloads a dataset


def test_both_pools_answer_to_one_name():
    for engine in ("vllm", "sglang"):
        found = scripts(service(engine, precision="fp8-block"))
        for name in ("prefill_node.sh", "decode_node.sh", "bench.sh"):
            assert options(found[name])["--served-model-name"] == "$SERVED_NAME"
            assert "SERVED_NAME=${SERVED_NAME:-deepseek-ai/DeepSeek-R1-0528}" in found[name]


def test_an_engine_of_both_phases_keeps_its_own_graphs():
    """Steps with prompts run in piecewise graphs, which decode-only ones would take away; a decode pool has no such steps."""
    pair = scripts(service())
    assert "FULL_DECODE_ONLY" in pair["decode_head.sh" if "decode_head.sh" in pair else "decode_node.sh"]
    alone = service().model_copy(update={"pools": {"serve": service().pools["decode"]}})
    assert not any("cudagraph_mode" in text or "--enforce-eager" in text for text in scripts(alone).values())


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_kimi_s_scripts_trust_its_tokenizer(engine):
    found = scripts(service(engine, model="kimi-k2", precision="fp8-block", decode={"tp": 8, "ep": 8, "batch_per_dp_rank": 4}))
    for name in set(found) - {"router.sh", *(["bench.sh"] if engine == "sglang" else [])}:  # SGLang's benchmark always trusts
        assert "--trust-remote-code" in found[name], name
    assert "--trust-remote-code" not in scripts(service(engine, precision="fp8-block"))["decode_node.sh"]


def test_nvl72_pools_over_nodes_talk_over_nvlink_and_ask_for_the_interface():
    text = scripts(service())["decode_node.sh"]  # 8 GPUs on two nodes of four
    for line in (
        "export NCCL_MNNVL_ENABLE=${NCCL_MNNVL_ENABLE:-1}",
        "export UCX_CUDA_IPC_ENABLE_MNNVL=${UCX_CUDA_IPC_ENABLE_MNNVL:-y}",
    ):
        assert line in text
    assert "IBGDA" not in text  # inside the domain
    assert 'if [[ -n "${NIC:-}" ]]; then' in text
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME"):
        assert f'export {name}="$NIC"' in text
    prefill = scripts(service())["prefill_node.sh"]  # one node: nothing to find
    assert "NIC" not in prefill
    assert "NCCL_MNNVL_ENABLE" not in prefill


def test_deepep_over_infiniband_is_told_so():
    decode = {**DECODE, "dp": 16, "ep": 16}
    text = scripts(service(hardware="hgx-h200", precision="fp8-block", decode=decode, prefill={**PREFILL, "tp": 8, "ep": 8}))
    assert "export NVSHMEM_IB_ENABLE_IBGDA=${NVSHMEM_IB_ENABLE_IBGDA:-1}" in text["decode_node.sh"]
    assert "MNNVL" not in text["decode_node.sh"]


def test_settings_of_recipes_give_way_to_the_operator_s(tmp_path):
    text = scripts(service())["decode_node.sh"].replace("exec vllm", 'echo "$NCCL_MNNVL_ENABLE"; exec vllm')
    variables = {"NODE_ADDRESS": "a", "HEAD_ADDRESS": "b", "NODE_RANK": "0", "NIC": "eth0"}
    assert run(text, tmp_path, **variables).stdout.startswith("1\n")
    assert run(text, tmp_path, **variables, NCCL_MNNVL_ENABLE="0").stdout.startswith("0\n")


def test_sglang_s_slots_keep_their_ports_apart_and_the_router_finds_each(tmp_path):
    """Two prefill instances of four GPUs share a node; with attention DP a server also holds 233 to 247 ports beyond its own."""
    found = scripts(service("sglang", "hgx-h200", precision="fp8-block", prefill=PREFILL))
    ports = []
    for slot in ("0", "1"):
        text = found["prefill_node.sh"].replace("exec python3", 'echo "$PORT $BOOTSTRAP_PORT"; exit; exec python3')
        ports.append(tuple(int(word) for word in run(text, tmp_path, SLOT=slot).stdout.split()))
    assert ports == [(30000, 31000), (30020, 31020)]
    router = found["router.sh"].replace("exec python3 -m", "echo")
    urls = {"PREFILL_URLS": "http://a:30000 http://a:30020/ http://b:30000@9999", "DECODE_URLS": "http://c:30000", "WAIT_S": "0"}
    said = run(router, tmp_path, **urls).stdout
    assert "--prefill http://a:30000 31000 --prefill http://a:30020/ 31020 --prefill http://b:30000 9999" in said
    assert "no port in the prefill URL" in run(router, tmp_path, **{**urls, "PREFILL_URLS": "http://a"}).stderr


def test_ascend_slots_of_a_data_parallel_instance_meet_at_their_own_ports():
    plan = Deployment.model_validate({
        "hardware": "ascend-910b2", "model": "qwen3-235b-a22b", "precision": "bf16", "engine": {"name": "vllm-ascend"},
        "phase": "serve", "workload": {"isl_tokens": 100, "osl_tokens": 100}, "load": {"rate_per_s": 1.0},
        "pools": {"serve": {"tp": 2, "dp": 2, "ep": 4, "batch_per_dp_rank": 4, "all2all_backend": "allgather_reducescatter"}},
    })  # fmt: skip
    text = scripts(plan)["serve_node.sh"]
    assert 'RPC_PORT="$((RPC_PORT + SLOT * 1))"' in text
    assert '--data-parallel-rpc-port "$RPC_PORT"' in text


def test_a_910c_node_has_sixteen_dies():
    """64 GB a die; 32 of them are two nodes, each starting 16 ranks; ports up to 35,999 belong to 16 devices."""
    hardware = load_hardware("ascend-910c")
    assert (hardware.gpus_per_node, hardware.gpu.hbm_nominal_bytes.value) == (16, 64e9)
    decode = {"dp": 32, "ep": 32, "batch_per_dp_rank": 8, "all2all_backend": "deepep_low_latency"}
    prefill = {"tp": 8, "dp": 2, "ep": 16, "max_batched_tokens": 4096, "all2all_backend": "allgather_reducescatter"}
    plan = service("vllm-ascend", "ascend-910c", precision="int8", decode=decode,
                   prefill=prefill)  # fmt: skip
    text = scripts(plan)["decode_node.sh"]
    assert "2 node(s) x 16 NPU dies per instance" in text
    assert "NODE_RANK * 16 + rank" in text
    assert "KV_PORT=${KV_PORT:-36000}" in text


class Health(http.server.BaseHTTPRequestHandler):
    """Fails twice, then is well."""

    asked = 0

    def do_GET(self):
        type(self).asked += 1
        status = {"/health": 503 if self.asked < 3 else 200}.get(self.path, 404)
        self.send_response(status)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Health.asked = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Health) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()


@pytest.mark.slow
def test_benchmark_and_router_wait_until_servers_are_well(server, tmp_path):
    found = scripts(service())
    done = run(found["bench.sh"], tmp_path, URL=server, WAIT_S="30")
    assert not done.returncode, done.stderr
    assert Health.asked == 3
    assert "bench serve" in done.stdout
    done = run(found["router.sh"], tmp_path, PREFILL_URLS=server, DECODE_URLS=f"{server}/", WAIT_S="30")
    assert "--worker-startup-timeout-secs 30" in done.stdout
    assert Health.asked == 5


@pytest.mark.slow
def test_what_never_answers_is_named_after_the_stated_limit(tmp_path):
    text = scripts(service())["bench.sh"]
    done = run(text, tmp_path, URL="http://127.0.0.1:9", WAIT_S="1")
    assert done.returncode
    assert "http://127.0.0.1:9/health does not answer after 1 s" in done.stderr
    assert not done.stdout
    assert "WAIT_S must be whole seconds" in run(text, tmp_path, URL="http://127.0.0.1:9", WAIT_S="soon").stderr


def test_a_server_without_a_health_page_answers_too(server, tmp_path):
    done = run(scripts(service())["bench.sh"], tmp_path, URL=server, HEALTH="/nothing-here", WAIT_S="5")
    assert not done.returncode

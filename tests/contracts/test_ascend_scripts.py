"""vLLM-Ascend scripts: run by bash with `vllm` replaced by a recorder, options held against vLLM's own parser."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from autotune.documents.deployment import Deployment, Pool
from autotune.errors import ExportError
from autotune.exporters import export
from autotune.exporters.vllm_ascend import hccl_buffer_mb
from cost_models.catalog import load_model
from search_spaces.options import load_options

NODE = {"NODE_ADDRESS": "10.0.0.2", "HEAD_ADDRESS": "10.0.0.1", "NIC": "eth1", "NODE_RANK": "1"}
RECORDER = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$FOLDER/$ASCEND_RT_VISIBLE_DEVICES.args"
env | grep -E '^(HCCL|GLOO|TP_SOCKET|PYTORCH_NPU|OMP|TASK|VLLM)_' > "$FOLDER/env"
sleep 1
"""


def service(**changes) -> Deployment:
    return Deployment.model_validate({
        "hardware": "ascend-910b2", "model": "deepseek-r1", "precision": "int8", "engine": {"name": "vllm-ascend"},
        "phase": "serve",
        "workload": {"isl_tokens": 2048, "osl_tokens": 2048}, "load": {"rate_per_s": 1.0},
        "pools": {
            "prefill": {"tp": 4, "dp": 4, "ep": 16, "max_batched_tokens": 8192, "cuda_graph": False,
                        "all2all_backend": "allgather_reducescatter"},
            "decode": {"dp": 32, "ep": 32, "batch_per_dp_rank": 84, "all2all_backend": "deepep_low_latency",
                       "flags": {"max_num_seqs": 84, "gpu_memory_fraction": 0.92}},
        },
        **changes,
    })  # fmt: skip


def started(text: str, folder: Path, **variables: str) -> tuple[dict[str, dict[str, str | None]], dict[str, str]]:
    """What each server of a node is started with, by its devices, and the variables of all."""
    shim = folder / "vllm"
    shim.write_text(RECORDER)
    shim.chmod(0o755)
    (folder / "script.sh").write_text(text)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "FOLDER": str(folder), **variables}
    done = subprocess.run(["bash", str(folder / "script.sh")], env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    servers = {}
    for file in folder.glob("*.args"):
        words = file.read_text().splitlines()
        given: dict[str, str | None] = {}
        for word, after in zip(words, [*words[1:], "--"], strict=True):
            if word.startswith("--"):
                given[word] = None if after.startswith("--") else after
        servers[file.stem] = given
    return servers, dict(line.split("=", 1) for line in (folder / "env").read_text().splitlines())


@pytest.mark.slow
def test_a_decode_node_starts_one_server_for_each_of_its_ranks(tmp_path):
    scripts = {script.name: script.text for script in export(service())}
    assert set(scripts) == {"prefill_node.sh", "decode_node.sh", "router.sh", "bench.sh"}
    servers, variables = started(scripts["decode_node.sh"], tmp_path, **NODE)
    assert sorted(servers) == [str(device) for device in range(8)]  # EP32 on nodes of eight: eight ranks each
    assert [servers[str(i)]["--data-parallel-rank"] for i in range(8)] == [str(8 + i) for i in range(8)]  # node 1 of 4
    assert len({server["--port"] for server in servers.values()}) == 8
    known = {flag: option for option in load_options("vllm", "0.13.0").options for flag in option.flags}
    assert set(servers["0"]) <= set(known)
    assert servers["0"]["--quantization"] == "ascend"
    assert variables["HCCL_IF_IP"] == "10.0.0.2"
    assert variables["HCCL_SOCKET_IFNAME"] == variables["GLOO_SOCKET_IFNAME"] == "eth1"
    assert variables["HCCL_INTRA_PCIE_ENABLE"] == "1"  # Atlas A2: dispatch goes through HCCS first
    transfer = json.loads(servers["0"]["--kv-transfer-config"])
    assert (transfer["kv_connector"], transfer["kv_role"], transfer["kv_port"]) == ("MooncakeConnectorV1", "kv_consumer", "28000")
    assert transfer["kv_connector_extra_config"] == {
        "prefill": {"dp_size": 4, "tp_size": 4}, "decode": {"dp_size": 32, "tp_size": 1},
    }  # fmt: skip
    engines = {json.loads(server["--kv-transfer-config"])["engine_id"] for server in servers.values()}
    assert len(engines) == 8  # no two servers under one name
    assert json.loads(servers["0"]["--additional-config"])["recompute_scheduler_enable"] is True


@pytest.mark.slow
def test_a_prefill_rank_holds_its_tensor_parallel_devices(tmp_path):
    text = next(script.text for script in export(service()) if script.name == "prefill_node.sh")
    servers, _ = started(text, tmp_path, **NODE)
    assert sorted(servers) == ["0,1,2,3", "4,5,6,7"]
    assert servers["4,5,6,7"]["--data-parallel-rank"] == "3"
    assert "--enforce-eager" in servers["0,1,2,3"]


@pytest.mark.slow
def test_a_lone_pool_asks_for_the_other_side_s_sizes(tmp_path):
    pools = {"decode": service().pools["decode"]}
    (script,) = export(service(phase="decode", pools=pools, load=None))
    servers, _ = started(script.text, tmp_path, **NODE, PREFILL_DP="2", PREFILL_TP="8")
    config = json.loads(servers["0"]["--kv-transfer-config"])["kv_connector_extra_config"]
    assert config["prefill"] == {"dp_size": 2, "tp_size": 8}
    with pytest.raises(AssertionError, match="dp of the prefill instances"):
        started(script.text, tmp_path, **NODE)


@pytest.mark.slow
def test_an_engine_that_does_both_hands_no_caches_over(tmp_path):
    pool = {"tp": 4, "dp": 2, "ep": 8, "batch_per_dp_rank": 16, "all2all_backend": "allgather_reducescatter"}
    script, _bench = export(service(pools={"serve": pool}))
    servers, _ = started(script.text, tmp_path, NODE_ADDRESS="10.0.0.2", NIC="eth1")
    assert "--kv-transfer-config" not in servers["0,1,2,3"]
    assert "--additional-config" not in servers["0,1,2,3"]  # recompute_scheduler_enable is refused outside of pairs
    assert servers["0,1,2,3"]["--data-parallel-address"] == "127.0.0.1"


def test_the_hccl_buffer_is_what_the_kernel_asks_for():
    """For 512 tokens, H 2048, 2 ranks of 64 experts, top 8: 2 x 512 x (4608 x 128 + 4096 x 8) bytes = 608 MiB; it asks 609."""
    qwen = load_model("qwen3-235b-a22b")
    moe = qwen.moe.model_copy(update={"experts": 128, "top_k": 8})
    groups = tuple(group.model_copy(update={"ffn": moe}) for group in qwen.groups)
    pool = Pool(dp=2, ep=2, batch_per_dp_rank=512, all2all_backend="deepep_low_latency")
    assert hccl_buffer_mb(pool, qwen.model_copy(update={"hidden": 2048, "groups": groups})) == 609
    assert hccl_buffer_mb(Pool(tp=8, batch_per_dp_rank=8), load_model("deepseek-r1")) == 200


@pytest.mark.slow
def test_the_map_of_experts_lies_beside(tmp_path):
    balance = {"kind": "static", "skew": 1.02}
    pool = service().pools["decode"].model_dump() | {"expert_balance": balance, "redundant_experts": 32}
    (script,) = export(service(phase="decode", pools={"decode": pool}, load=None))
    (tmp_path / "map.json").write_text("{}")
    servers, _ = started(script.text, tmp_path, **NODE, PREFILL_DP="2", PREFILL_TP="8", EXPERT_MAP=str(tmp_path / "map.json"))
    eplb = json.loads(servers["0"]["--additional-config"])["eplb_config"]
    assert eplb == {"expert_map_path": str(tmp_path / "map.json"), "num_redundant_experts": 32}


def test_the_proxy_gets_hosts_and_ports(tmp_path):
    text = next(script.text for script in export(service()) if script.name == "router.sh")
    (tmp_path / "python3").write_text('#!/usr/bin/env bash\necho "$@"\n')
    os.chmod(tmp_path / "python3", 0o755)
    (tmp_path / "router.sh").write_text(text)
    variables = {"PREFILL_URLS": "http://10.0.0.1:8000 10.0.0.1:8001", "DECODE_URLS": "http://10.0.0.3:8000", "PROXY": "proxy.py"}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}
    command = ["bash", str(tmp_path / "router.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "proxy.py --host 0.0.0.0 --port 9000" in done.stdout
    assert "--prefiller-hosts 10.0.0.1 10.0.0.1 --prefiller-ports 8000 8001" in done.stdout
    assert "--decoder-hosts 10.0.0.3 --decoder-ports 8000" in done.stdout


def test_what_the_tutorials_do_not_start_is_an_error():
    with pytest.raises(ExportError, match="needs Ray"):
        export(service(phase="decode", pools={"decode": {"tp": 16, "ep": 16, "batch_per_dp_rank": 8}}, load=None))

"""Targets: every one, read back. Schemas: tests/fixtures/targets (source, version and licence in each), made strict."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from target_validity import (
    CORE,
    FIXTURES,
    SRT_ROLE,
    SRT_TOP,
    compose_schema,
    gpus_of_object,
    object_schemas,
    pods_with_gpus,
)

from autotune.cli.export import FORMATS
from autotune.documents.deployment import Deployment
from autotune.errors import ExportError, ProblemError
from autotune.exporters import MAP_FILES, launch_of
from autotune.exporters.base import Argument
from autotune.exporters.folders import MARK, MARKED_BYTES
from autotune.exporters.launch import Launch
from autotune.exporters.targets import registry
from autotune.exporters.targets.base import TargetOptions
from autotune.exporters.targets.registry import MODULES, load_target

DECODE = {"dp": 8, "ep": 8, "batch_per_dp_rank": 64, "all2all_backend": "deepep_low_latency", "instances": 2}
PREFILL = {"tp": 4, "ep": 4, "max_batched_tokens": 8192, "cuda_graph": False, "instances": 3}
WIDE = {"tp": 16, "batch_per_dp_rank": 16, "max_batched_tokens": 4096}
SMALL = {"tp": 2, "batch_per_dp_rank": 8, "max_batched_tokens": 4096}
OPTIONS = TargetOptions(image="registry.example/engine:1.5.1", router_image="registry.example/router:1.2.0")
KUBERNETES = ("lws", "llmd", "dynamo", "kserve")


def plan(engine="vllm", hardware="gb200-nvl72", precision="nvfp4", model="deepseek-r1", load=None, **pools) -> Launch:
    pools = pools or {"prefill": PREFILL, "decode": DECODE}
    return launch_of(Deployment.model_validate({
        "hardware": hardware, "model": model, "precision": precision, "engine": {"name": engine}, "phase": "serve",
        "workload": {"isl_tokens": 1000, "osl_tokens": 1000}, "load": load or {"rate_per_s": 1.0}, "pools": pools,
    }))  # fmt: skip


ONE_SIDED = {"dp": 8, "ep": 8, "all2all_backend": "nvlink_one_sided"}
TRTLLM_PAIR = {"prefill": {**PREFILL, **ONE_SIDED, "tp": 1}, "decode": {**DECODE, **ONE_SIDED}}
HOPPER = {"hardware": "hgx-h200", "precision": "fp8-block"}
QWEN = {"hardware": "hgx-h200", "precision": "bf16", "model": "qwen3-32b"}
WIDER = {"decode": {**DECODE, "dp": 16, "ep": 16}, "prefill": PREFILL}
PLANS: dict[str, dict[str, Any]] = {
    "vllm-pair-nvl72": {},
    "sglang-pair-nvl72": {"engine": "sglang"},
    "vllm-pair-h200": {**HOPPER, **WIDER},
    "sglang-pair-h200": {"engine": "sglang", **HOPPER, **WIDER},
    "vllm-tensor-over-nodes": {**HOPPER, "serve": WIDE},
    "sglang-tensor-over-nodes": {"engine": "sglang", **HOPPER, "serve": WIDE},
    "vllm-small": {**QWEN, "hardware": "hgx-h100", "serve": SMALL},
    "vllm-small-pair": {**QWEN, "decode": SMALL, "prefill": {**SMALL, "batch_per_dp_rank": 0}},
    "sglang-small": {"engine": "sglang", **QWEN, "serve": {**SMALL, "instances": 4}},
    "trtllm-small": {"engine": "trtllm", **QWEN, "serve": {**SMALL, "instances": 4}},
    "trtllm-pair-b200": {"engine": "trtllm", "hardware": "hgx-b200", **TRTLLM_PAIR},
    "trtllm-pair-nvl72": {"engine": "trtllm", **TRTLLM_PAIR},
    "sglang-wide": {"engine": "sglang", **HOPPER, "serve": {**DECODE, "max_batched_tokens": 4096}},
    "ascend": {"engine": "vllm-ascend", **QWEN, "hardware": "ascend-910b2", "serve": SMALL},
}


@cache
def launch(name: str) -> Launch:
    return plan(**PLANS[name])


def options_for(target: str) -> TargetOptions:
    return TargetOptions() if target in ("bash", "sbatch") else OPTIONS


def files(target: str, made: Launch) -> dict[str, str]:
    """Name -> text; skips what the target says it cannot write (its own test looks at those)."""
    try:
        return {file.name: file.text for file in load_target(target).render(made, options_for(target))}
    except ExportError as error:
        pytest.skip(str(error))


def read_all(text: str) -> list[Any]:
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def documents(target: str, made: Launch) -> list[dict[str, Any]]:
    found = files(target, made)
    return [doc for name, text in found.items() if name.endswith(".yaml") and "values" not in name for doc in read_all(text)]


@pytest.mark.parametrize("target", KUBERNETES)
@pytest.mark.parametrize("name", PLANS)
def test_every_object_is_what_its_published_schema_asks_for(target, name):
    """Strict: a key that the schema does not have fails."""
    for doc in documents(target, launch(name)):
        if doc["kind"] not in CORE:
            object_schemas()[doc["apiVersion"], doc["kind"]].validate(doc)
        if doc["kind"] != "Kustomization":
            assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", doc["metadata"]["name"])


@pytest.mark.slow
@pytest.mark.parametrize("target", KUBERNETES)
def test_pods_and_core_objects_are_what_kubernetes_takes(target):
    validate = pytest.importorskip("kubernetes_validate").validate
    for name in PLANS:
        try:
            found = documents(target, launch(name))
        except pytest.skip.Exception:
            continue
        for doc in found:
            if doc["kind"] in CORE:
                validate(doc, "1.34", strict=True)
            for pod in pods_with_gpus(doc):
                validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod}, "1.34", strict=True)


@pytest.mark.parametrize("name", PLANS)
def test_compose_is_what_its_published_schema_asks_for(name):
    (doc,) = documents("compose", launch(name))
    compose_schema().validate(doc)
    devices = [service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"]
               for service in doc["services"].values() if "deploy" in service]  # fmt: skip
    used = [gpu for group in devices for gpu in group]
    assert used == [str(index) for index in range(launch(name).gpus)]  # each GPU once


@pytest.mark.parametrize("name", PLANS)
def test_an_srt_slurm_recipe_has_schema_2_s_keys_and_the_plan_s_counts(name):
    (doc,) = documents("srt-slurm", launch(name))
    assert set(doc) == SRT_TOP
    assert doc["schema"] == 2
    names = {"prefill": "prefill", "decode": "decode", "serve": "agg"}
    for pool in launch(name).pools:
        role = doc["roles"][names[pool.role]]
        assert set(role) <= SRT_ROLE
        assert (role["nodes"], role["workers"], role["workers"] * role["gpus"]) == (pool.nodes, pool.instances, pool.gpus)
        assert all(isinstance(value, str) for value in role["env"].values())
        assert not [
            key for key in role["args"] if key.startswith("-") or key in ("port", "host", "node-rank", "kv-transfer-config")
        ]


@pytest.mark.parametrize("target", KUBERNETES)
@pytest.mark.parametrize("name", PLANS)
def test_manifests_start_the_plan_s_gpus(target, name):
    assert sum(gpus_of_object(doc) for doc in documents(target, launch(name))) == launch(name).gpus


@pytest.mark.parametrize("target", KUBERNETES)
@pytest.mark.parametrize("name", PLANS)
def test_pods_have_shared_memory_time_to_end_and_claims_where_traffic_needs_them(target, name):
    found, made = documents(target, launch(name)), launch(name)
    fabric, rdma = any(pool.fabric for pool in made.pools), any(pool.rdma for pool in made.pools)
    assert fabric == any(doc["kind"] == "ComputeDomain" for doc in found)
    for doc in found:
        for pod in pods_with_gpus(doc):
            main = pod["containers"][0]
            assert pod["terminationGracePeriodSeconds"] == 120
            assert ("resourceClaims" in pod) == fabric
            assert ({"name": "compute-domain-channel"} in main["resources"].get("claims", [])) == fabric
            assert ("rdma/ib" in main["resources"]["limits"]) == rdma
            memory = [volume["emptyDir"]["medium"] for volume in pod.get("volumes", []) if "emptyDir" in volume]
            assert memory == (["Memory"] if target != "dynamo" else [])
    if fabric:
        (domain,) = (doc for doc in found if doc["kind"] == "ComputeDomain")
        template = domain["spec"]["channel"]["resourceClaimTemplate"]["name"]
        claims = {pod["resourceClaims"][0]["resourceClaimTemplateName"] for doc in found for pod in pods_with_gpus(doc)}
        assert claims == {template}


def test_every_server_of_a_set_is_probed_and_behind_the_router():
    """Two decode instances of two nodes that both serve, three prefill instances: seven servers."""
    found = documents("lws", launch("vllm-pair-nvl72"))
    for doc in found:
        for pod in pods_with_gpus(doc):
            main = pod["containers"][0]
            assert main["startupProbe"]["periodSeconds"] * main["startupProbe"]["failureThreshold"] == 3600
            assert {"readinessProbe", "livenessProbe"} <= set(main)
    (router,) = (doc for doc in found if doc["kind"] == "Deployment")
    words = router["spec"]["template"]["spec"]["containers"][0]["args"]
    name = "deepseek-r1-gb200-nvl72-serve"
    assert [words[i + 1] for i, word in enumerate(words) if word == "--decode"] == [
        f"http://{name}-decode-{pod}.{name}-decode:8000" for pod in ("0", "0-1", "1", "1-1")
    ]
    assert words.count("--prefill") == 3


def test_workers_without_a_server_are_not_probed():
    (found,) = (doc for doc in documents("lws", launch("vllm-tensor-over-nodes")) if doc["kind"] == "LeaderWorkerSet")
    group = found["spec"]["leaderWorkerTemplate"]
    leader, worker = (group[kind]["spec"]["containers"][0] for kind in ("leaderTemplate", "workerTemplate"))
    assert "startupProbe" in leader
    assert "startupProbe" not in worker
    assert "--headless" in worker["args"]


ENGINES = ("vllm", "python3", "trtllm-serve")


def expanded(text: str, variables: dict[str, str]) -> str:
    """As Kubernetes reads it: $(NAME) filled in where it is known, $$ for $."""

    def fill(found: re.Match[str]) -> str:
        return "$" if found.group() == "$$" else variables.get(found.group(1), found.group())

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", fill, text)


def started(main: dict[str, Any], folder: Path, rank: int) -> list[str]:
    """Words that the engine gets, with the container started as a kubelet does; only a shell is really run."""
    variables = {"LWS_WORKER_INDEX": str(rank), "LWS_LEADER_ADDRESS": "head"}
    for entry in main["env"]:
        variables[entry["name"]] = expanded(entry["value"], variables) if "value" in entry else "node"
    words = [expanded(word, variables) for word in (*main["command"], *main["args"])]
    if words[0] != "/bin/bash":
        return words
    return run(words, folder, variables)


def run(words: list[str], folder: Path, variables: dict[str, str]) -> list[str]:
    for name in ENGINES:
        (folder / name).write_text('#!/bin/bash\nprintf "%s\\0" "${0##*/}" "$@"\n')
        (folder / name).chmod(0o755)
    environment = {**variables, "PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert not [path.name for path in folder.iterdir() if path.name not in (*ENGINES, "node.sh") and path.suffix != ".yml"]
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize("name", [name for name in PLANS if name != "ascend"])
def test_an_engine_in_a_pod_gets_the_words_that_its_script_gives_it(name, tmp_path):
    made = launch(name)
    sets = [doc for doc in documents("lws", made) if doc["kind"] == "LeaderWorkerSet"]
    for doc, pool in zip(sets, made.pools, strict=True):
        group = doc["spec"]["leaderWorkerTemplate"]
        for rank in range(pool.place.nodes):
            template = group["workerTemplate"] if rank else group.get("leaderTemplate", group["workerTemplate"])
            pod = started(template["spec"]["containers"][0], tmp_path, rank)
            process = pool.worker if rank else pool.head
            (tmp_path / "node.sh").write_text(files("bash", made)[f"{process.name}.sh"])
            for file in made.files:
                (tmp_path / file.name).write_text(file.text)
            variables = {"NODE_RANK": str(rank), "HEAD_ADDRESS": "head", "NODE_ADDRESS": "node", "NIC": "eth0"}
            words = run(["/bin/bash", str(tmp_path / "node.sh")], tmp_path, variables)
            assert pod == [word.replace(f"{tmp_path}/", "/etc/autotune/") for word in words]


HOSTILE = (
    "a'b\"c",
    "$(touch pwned)",
    "`touch pwned`",
    "x; touch pwned #",
    "{{ .Values.x }}",
    "- a: &b *c",
    "${HOME} $$ $(NODE_RANK)",
    "--flag=1",
    "yes",
    "é\u2028",
)


def hostile(made: Launch, text: str) -> Launch:
    """A launch with a string of somebody else's wherever one fits."""
    pools = []
    for pool in made.pools:
        processes = tuple(
            dataclasses.replace(
                process,
                title=text, comments=(text,),
                optional={**process.optional, "SERVED_NAME": text, "MODEL": text},
                defaults={**process.defaults, "FIRST": text},
                environment={**process.environment, "SECOND": text},
                arguments=(*process.arguments, Argument("--hostile", text)),
            )
            for process in pool.processes
        )  # fmt: skip
        pools.append(dataclasses.replace(pool, processes=processes, hardware=text))
    return dataclasses.replace(made, pools=tuple(pools), name=text, model=text, version=f"1.2 {text}")


def strings(doc: Any) -> list[str]:
    if isinstance(doc, dict):
        return [text for key, value in doc.items() for text in (*strings(key), *strings(value))]
    if isinstance(doc, list):
        return [text for value in doc for text in strings(value)]
    return [doc] if isinstance(doc, str) else []


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", ["vllm-pair-nvl72", "sglang-pair-h200"])
def test_nobody_s_text_becomes_a_command_or_a_key(text, name, tmp_path):
    """Engines get it as it is; manifests keep their shape."""
    options = TargetOptions(image=text, router_image=text, rdma_resource=text)
    made = hostile(launch(name), text)
    plain = documents("lws", launch(name))
    docs = read_all(load_target("lws").render(made, options)[0].text)
    assert [doc["kind"] for doc in docs] == [doc["kind"] for doc in plain]
    for doc, pool in zip((doc for doc in docs if doc["kind"] == "LeaderWorkerSet"), made.pools, strict=True):
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", doc["metadata"]["name"])
        assert len(doc["metadata"]["name"]) <= 50
        main = doc["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"][0]
        words = started(main, tmp_path, 1 if pool.place.nodes > 1 else 0)
        assert words[-2:] == ["--hostile", text]
        assert words[words.index("--served-model-name") + 1] == text
        values = {entry["name"]: expanded(entry.get("value", ""), {}) for entry in main["env"]}
        assert values["FIRST"] == values["SECOND"] == text
        assert main["image"] == text


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    ("target", "name"),
    [
        *((target, "vllm-pair-nvl72") for target in ("llmd", "dynamo", "kserve", "srt-slurm", "sbatch")),
        *((target, "trtllm-pair-b200") for target in ("dynamo", "srt-slurm", "sbatch", "bash")),
        ("compose", "vllm-small"),
        ("compose", "trtllm-small"),
    ],
)
def test_the_same_in_every_other_target(target, name, text, tmp_path):
    made = hostile(launch(name), text)
    options = TargetOptions() if target in ("sbatch", "bash") else TargetOptions(image=text, router_image=text)
    if target == "kserve":
        with pytest.raises(ExportError, match="is no repository"):  # of a model's URI
            load_target(target).render(made, options)
        return
    found = load_target(target).render(made, options)
    for file in found:
        if not file.name.endswith(".yaml"):
            subprocess.run(["bash", "-n"], input=file.text, text=True, check=True, timeout=60)
            continue
        read = [text.replace("$$", "$") for doc in read_all(file.text) for text in strings(doc)]
        if target == "llmd" or file.name in ("kustomization.yaml", "router.values.yaml"):
            continue
        assert any(text.replace("$$", "$") in item for item in read)
    if target == "sbatch" and text != "yes":  # part of the name
        job = next(file.text for file in found if file.name == "service.sbatch")
        assert text not in "\n".join(line for line in job.splitlines() if not line.startswith("# "))


def test_kserve_s_other_options_are_words_of_a_shell(tmp_path):
    made = launch("vllm-pair-h200")
    (doc,) = (doc for doc in documents("kserve", made) if doc["kind"] == "LLMInferenceService")
    for spec, pool in ((doc["spec"], made.pools[1]), (doc["spec"]["prefill"], made.pools[0])):
        (line,) = (
            entry["value"] for entry in spec["template"]["containers"][0]["env"] if entry["name"] == "VLLM_ADDITIONAL_ARGS"
        )
        words = run(["bash", "-c", 'eval "exec vllm $EXTRA"'], tmp_path, {"EXTRA": expanded(line, {})})
        flags = [argument.flag for argument in pool.head.arguments]
        assert [word for word in words if word in flags] == [word for word in shlex.split(line) if word in flags]
        assert "--tensor-parallel-size" not in words
        over_nodes = spec["parallelism"].get("expert", False)  # only templates for several nodes read it
        assert over_nodes == (pool.place.nodes > 1) == ("worker" in spec)
        assert ("--enable-expert-parallel" in words) == (not over_nodes)


def test_kserve_s_runtime_for_sglang_gets_the_options_that_its_preset_does_not_set():
    """Its preset gives --tp the tensor size: 8, for SGLang counts the ranks of attention data parallelism in it."""
    made = launch("sglang-wide")
    (spec,) = (doc["spec"] for doc in documents("kserve", made) if doc["kind"] == "LLMInferenceService")
    assert (spec["runtime"], spec["parallelism"]) == ("kserve-llm-sglang", {"tensor": 8})
    script = files("bash", made)["serve_node.sh"]
    words = spec["template"]["containers"][0]["args"]
    flags = [word for word in words if word.startswith("--")]
    assert [flag for flag in flags if flag not in script] == ["--enable-metrics"]  # which KServe's scheduler reads
    assert spec["labels"]["llm-d.ai/engine-type"] == "sglang"
    assert not set(flags) & {"--tp-size", "--model-path", "--served-model-name", "--host", "--port"}
    assert [words[words.index(flag) + 1] for flag in ("--attn-dp-size", "--ep-size")] == ["8", "8"]


def test_llm_d_finds_sglang_s_servers_their_metrics_and_the_port_of_the_caches():
    """Labels say the engine, servers tell their queues, and the sidecar asks where prefill hands caches over."""
    (found,) = (doc for doc in documents("llmd", launch("sglang-pair-h200")) if doc["kind"] == "DisaggregatedSet")
    for role in found["spec"]["roles"]:
        group = role["spec"]["leaderWorkerTemplate"]
        leader = group.get("leaderTemplate", group["workerTemplate"])
        assert leader["metadata"]["labels"]["llm-d.ai/engine-type"] == "sglang"
        main = leader["spec"]["containers"][0]
        assert (main["name"], "--enable-metrics" in main["args"]) == ("sglang", True)
        if role["name"] == "prefill":
            asked = main["args"][main["args"].index("--disaggregation-bootstrap-port") + 1]
            assert asked == "31000"
        else:
            (sidecar,) = leader["spec"]["initContainers"]
            assert "--kv-connector=sglang" in sidecar["args"]
            assert sidecar["env"] == [{"name": "SGLANG_BOOTSTRAP_PORT", "value": asked}]
            assert f"--vllm-port={main['args'][main['args'].index('--port') + 1]}" in sidecar["args"]


@pytest.mark.slow
def test_the_slurm_job_gives_every_node_its_rank_and_the_router_every_server(tmp_path):
    """srun, scontrol and the scripts are stand-ins: three prefill nodes, two decode instances of two nodes each."""
    (tmp_path / "scontrol").write_text('#!/bin/bash\n[[ "$3" == p ]] && printf "p%s\\n" 0 1 2 || printf "d%s\\n" 0 1 2 3\n')
    srun = """#!/bin/bash
nodes="${2#--nodes=}"; shift 4
for (( n = 0; n < nodes; n++ )); do SLURM_NODEID=$n SLURM_LOCALID=0 SLURMD_NODENAME=x "$@"; done; sleep 2
"""
    (tmp_path / "srun").write_text(srun)
    say = 'echo "${0##*/} $SLOT $NODE_RANK $HEAD_ADDRESS $NODE_ADDRESS" >> said\n'
    (tmp_path / "prefill_node.sh").write_text(say)
    (tmp_path / "decode_node.sh").write_text(say)
    (tmp_path / "router.sh").write_text('echo "$PREFILL_URLS | $DECODE_URLS" > urls; sleep 2\n')
    for name in ("scontrol", "srun"):
        (tmp_path / name).chmod(0o755)
    nodes = {"SLURM_JOB_NODELIST_HET_GROUP_0": "p", "SLURM_JOB_NODELIST_HET_GROUP_1": "d", "SLURM_JOB_NODELIST": "p"}
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path), **nodes}
    job = files("sbatch", launch("vllm-pair-nvl72"))["service.sbatch"]
    subprocess.run(["bash", "-c", job], env=variables, check=True, capture_output=True, timeout=60)
    said = sorted((tmp_path / "said").read_text().split("\n"))[1:]
    assert said == [
        "decode_node.sh 0 0 d0 d0", "decode_node.sh 0 0 d2 d2", "decode_node.sh 0 1 d0 d1", "decode_node.sh 0 1 d2 d3",
        "prefill_node.sh 0 0 p0 p0", "prefill_node.sh 0 0 p1 p1", "prefill_node.sh 0 0 p2 p2",
    ]  # fmt: skip
    prefill = " ".join(f"http://p{n}:8000" for n in range(3))
    decode = " ".join(f"http://d{n}:8000" for n in range(4))
    assert (tmp_path / "urls").read_text() == f"{prefill} | {decode}\n"
    assert job.count("#SBATCH --nodes=3") == job.count("#SBATCH --nodes=4") == job.count("#SBATCH hetjob") == 1


@pytest.mark.parametrize(
    ("target", "name", "options", "says"),
    [
        ("lws", "vllm-pair-nvl72", TargetOptions(), "--router-image"),
        ("dynamo", "vllm-pair-nvl72", TargetOptions(), "--image"),
        ("lws", "ascend", OPTIONS, "--format bash or sbatch"),
        ("kserve", "sglang-pair-nvl72", OPTIONS, "one node that does both, not a pair of pools: use --format llmd or lws"),
        ("kserve", "sglang-tensor-over-nodes", OPTIONS, "not an instance over several nodes"),
        ("kserve", "vllm-tensor-over-nodes", OPTIONS, "not tensor or pipeline"),
        ("llmd", "ascend", OPTIONS, "--format bash or sbatch"),
        ("compose", "vllm-pair-nvl72", OPTIONS, "fits one node"),
        ("sbatch", "vllm-small", OPTIONS, "--image is for targets of containers"),
    ],
)
def test_what_a_target_cannot_say_is_said_with_the_way_out(target, name, options, says):
    with pytest.raises(ExportError, match=re.escape(says)):
        load_target(target).render(launch(name), options)


def test_images_are_the_plan_s_version_or_asked_for():
    text = load_target("lws").render(launch("vllm-small"), TargetOptions())[0].text
    assert f"image: vllm/vllm-openai:v{launch('vllm-small').version}.0" in text
    text = load_target("lws").render(launch("sglang-small"), TargetOptions())[0].text
    assert f"image: lmsysorg/sglang:v{launch('sglang-small').version}" in text


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("target", MODULES)
def test_the_next_export_knows_every_file_of_this_one(target, name):
    """By the mark in its head, or it would count as the user's own and stay beside the next plan's."""
    strange = [file for file, text in files(target, launch(name)).items() if MARK not in text[:MARKED_BYTES]]
    assert [file for file in strange if file not in MAP_FILES] == []


def test_every_module_of_a_target_is_registered():
    folder = Path(registry.__file__).parent
    found = {path.stem for path in folder.glob("*.py") if "\nTARGET = Target(" in path.read_text()}
    assert found == set(MODULES.values())
    assert [load_target(name).name for name in MODULES] == list(MODULES) == FORMATS.split(", ")
    with pytest.raises(ProblemError, match="known: bash, "):
        load_target("helm")


def test_the_documentation_has_a_section_for_every_target():
    text = (Path(__file__).parent.parent.parent / "docs" / "targets.md").read_text()
    for name in MODULES:
        target = load_target(name)
        section = text.split(f"## `{name}`")[1].split("\n## ")[0]
        assert target.apply.split(",")[0] in section
        assert target.validate in section


@pytest.mark.parametrize("target", [name for name in MODULES if name != "bash"])
def test_goldens(target):
    """Made by `autotune export`; a change of them is a change that users see. See docs/targets.md for how they are made anew."""
    name = "vllm-small-pair" if target == "compose" else "vllm-pair-nvl72"
    for file, text in files(target, launch(name)).items():
        golden = FIXTURES / "golden" / target / file
        if golden.suffix == ".sh":
            continue
        assert text == golden.read_text(), f"{golden} differs"


def test_help_names_every_target():
    assert FORMATS.split(", ") == list(MODULES)

"""Whether what a target writes is valid, as one list of complaints.

Its published schema made strict, the Kubernetes schemas, GPUs counted from the files alone, and the plan that it reads back as.
Used by the tests and by scripts/targets_matrix.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from autotune.documents.deployment import Deployment, Pool
from autotune.exporters.launch import Launch
from autotune.exporters.targets.base import TargetOptions
from autotune.exporters.targets.registry import load_target
from autotune.manifests.judging import GivenToo, read_manifest
from autotune.manifests.kustomize import is_kustomization
from autotune.manifests.registry import read_file
from cost_models.catalog import load_model
from cost_models.errors import AutotuneError

FIXTURES = Path(__file__).parent.parent / "fixtures" / "targets"
CORE = ("ConfigMap", "Service", "Deployment")
KUBERNETES = "1.34"
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
SRT_TOP = {"schema", "name", "model", "resources", "frontend", "engine", "roles", "benchmark"}
SRT_ROLE = {"nodes", "workers", "gpus", "env", "args", "extra_args", "engine", "container", "kv_events", "sidecar", "critical"}
"""srtctl rejects others (src/srtctl/core/roles.py of NVIDIA/srt-slurm, Apache-2.0)."""
SCRIPTS = ("bash", "sbatch")
FIELDS = ("tp", "dp", "ep", "pp", "instances", "all2all_backend", "redundant_experts", "draft_tokens", "cuda_graph")
"""Of a pool, that must come back."""


def options_of(target: str) -> TargetOptions:
    """Images that plans do not hold; srt-slurm's own image says the engine's version."""
    if target in SCRIPTS:
        return TargetOptions()
    image = None if target == "srt-slurm" else "registry.example/engine:1.5.1"
    return TargetOptions(image=image, router_image="registry.example/router:1.2.0")


def complaints_of(target: str, plan: Deployment, launch: Launch) -> list[str]:
    """What is wrong with a plan as a target writes it. Raises ExportError where the target says that it cannot."""
    files = {file.name: file.text for file in load_target(target).render(launch, options_of(target))}
    found = [*_scripts(files), *_documents(target, files, launch)]
    return [*found, *_read_back(target, files, plan)]


def _scripts(files: dict[str, str]) -> Iterator[str]:
    for name, text in files.items():
        if name.endswith((".sh", ".sbatch")):
            done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False, timeout=60)
            if done.returncode:
                yield f"{name}: {done.stderr.strip()}"


def _documents(target: str, files: dict[str, str], launch: Launch) -> Iterator[str]:
    found = [
        doc
        for name, text in files.items()
        if name.endswith(".yaml") and "values" not in name
        for doc in yaml.load_all(text, Loader=yaml.CSafeLoader)
    ]
    if target == "compose":
        yield from _schema(found[0], compose_schema(), "compose")
        counted = sum(map(_compose_gpus, found[0]["services"].values()))
    elif target == "srt-slurm":
        yield from _srt_slurm(found[0])
        counted = sum(role["workers"] * role["gpus"] for role in found[0]["roles"].values())
    elif target in SCRIPTS:
        return
    else:
        for doc in found:
            yield from _object(doc)
        counted = sum(gpus_of_object(doc) for doc in found)
    if counted != launch.gpus:
        yield f"{counted} GPUs in the files, the plan has {launch.gpus}"


def _object(doc: dict[str, Any]) -> Iterator[str]:
    """A Kubernetes object against its schema, its pods and core objects against Kubernetes' own where that package is there."""
    kind = doc["kind"]
    if kind not in CORE:
        yield from _schema(doc, object_schemas()[doc["apiVersion"], kind], kind)
    if kind != "Kustomization" and not NAME.fullmatch(doc["metadata"]["name"]):
        yield f"{kind}: {doc['metadata']['name']} is no name"
    whole = [doc] if kind in CORE else []
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod} for pod in pods_with_gpus(doc)]
    for item in (*whole, *pods):
        yield from _kubernetes(item)


def _kubernetes(item: dict[str, Any]) -> Iterator[str]:
    try:
        import kubernetes_validate
    except ImportError:
        return
    try:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{item['kind']}: {error.message}"


def _schema(doc: Any, validator: Any, what: str) -> Iterator[str]:
    for error in validator.iter_errors(doc):
        yield f"{what}: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"


def _srt_slurm(doc: dict[str, Any]) -> Iterator[str]:
    if set(doc) != SRT_TOP:
        yield f"keys of the recipe: {sorted(set(doc) ^ SRT_TOP)}"
    for name, role in doc["roles"].items():
        if unknown := set(role) - SRT_ROLE:
            yield f"keys of {name}: {sorted(unknown)}"


def _compose_gpus(service: dict[str, Any]) -> int:
    devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    return sum(len(device["device_ids"]) for device in devices)


@cache
def object_schemas() -> dict[tuple[str, str], Any]:
    """(apiVersion, kind) -> validator; strict: a key that the schema does not have fails."""
    import jsonschema

    read = [json.loads(path.read_text()) for path in FIXTURES.glob("*.json") if path.name != "compose.json"]
    return {(item["apiVersion"], item["kind"]): jsonschema.Draft202012Validator(item["schema"]) for item in read}


@cache
def compose_schema() -> Any:
    """Validator of the compose specification."""
    import jsonschema

    return jsonschema.Draft7Validator(json.loads((FIXTURES / "compose.json").read_text())["schema"])


def pods_in(doc: Any) -> list[dict[str, Any]]:
    """Every pod spec in a document."""
    if isinstance(doc, list):
        return [pod for item in doc for pod in pods_in(item)]
    if not isinstance(doc, dict):
        return []
    return [doc] if "containers" in doc else [pod for item in doc.values() for pod in pods_in(item)]


def pods_with_gpus(doc: Any) -> list[dict[str, Any]]:
    """Pod specs of engines."""
    return [pod for pod in pods_in(doc) if "resources" in pod["containers"][0]]


def gpus_of_object(doc: dict[str, Any]) -> int:
    """GPUs that a document starts, by its own replicas and sizes."""

    def each(pod: dict[str, Any]) -> int:
        limits = pod["containers"][0]["resources"]["limits"]
        return int(limits.get("nvidia.com/gpu") or limits["amd.com/gpu"])

    def group(spec: dict[str, Any]) -> int:
        inner = spec["leaderWorkerTemplate"]
        worker = inner["workerTemplate"]
        leader = inner.get("leaderTemplate", worker)
        return int(spec["replicas"] * (each(leader["spec"]) + (inner["size"] - 1) * each(worker["spec"])))

    def kserve(spec: dict[str, Any]) -> int:
        parallel = spec["parallelism"]
        return int(spec["replicas"] * each(spec["template"]) * parallel.get("data", 1) // parallel.get("dataLocal", 1))

    match doc["kind"]:
        case "LeaderWorkerSet":
            return group(doc["spec"])
        case "DisaggregatedSet":
            return sum(group(role["spec"]) for role in doc["spec"]["roles"])
        case "DynamoGraphDeployment":
            return sum(
                part["replicas"] * part.get("multinode", {"nodeCount": 1})["nodeCount"] * each(part["podTemplate"]["spec"])
                for part in doc["spec"]["components"] if part["type"] != "frontend"
            )  # fmt: skip
        case "LLMInferenceService":
            return sum(kserve(spec) for spec in (doc["spec"], doc["spec"].get("prefill")) if spec)
    return 0


def _read_back(target: str, files: dict[str, str], plan: Deployment) -> Iterator[str]:
    """The plan that the files are read as, against the one that they were written from."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in files.items():
            (folder / file).write_text(text)
        manifests = [] if target in SCRIPTS else sorted(folder.glob("*.yaml"))
        try:
            manifest = read_file(folder if is_kustomization(folder) or not manifests else manifests[0])
            if manifest is None:
                yield "is read as nothing"
                return
            workload = plan.workload
            asked = GivenToo(
                load=plan.load, isl_tokens=workload.isl_tokens, osl_tokens=workload.osl_tokens,
                mtp_acceptance=workload.mtp_acceptance,
            )  # fmt: skip
            found = read_manifest(manifest, asked, target)
        except AutotuneError as error:
            yield f"is not read back: {error}"
            return
    yield from (f"read back: {line}" for line in found.conflicts)
    back = found.deployment
    said = {
        "hardware": (back.hardware, plan.hardware),
        "weights": (_weights_of(back), _weights_of(plan)),
        "precision": (_plain(back.precision), _plain(plan.precision)),
    }
    for role, pool in plan.pools.items():
        if role not in back.pools:
            yield f"no {role} pool comes back, but {', '.join(back.pools)}"
            continue
        said |= {f"{role}.{field}": (_of(back.pools[role], field), _of(pool, field)) for field in FIELDS}
    yield from (f"{name} comes back as {one}, was {other}" for name, (one, other) in said.items() if one != other)


def _weights_of(deployment: Deployment) -> str:
    """The published weights that start, which presets may share: NVFP4 of Kimi-K2 is published of Kimi-K2-Thinking alone."""
    return load_model(deployment.model).checkpoints.get(_plain(deployment.precision), deployment.model)


def _of(pool: Pool, field: str) -> Any:
    return getattr(pool, field)


def _plain(precision: Any) -> str:
    """The recipe: what its KV cache is, comes back in options of its own."""
    return precision if isinstance(precision, str) else str(precision.recipe)

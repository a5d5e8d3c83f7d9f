"""KServe's LLMInferenceService: a parallelism that its controller turns into `vllm serve` options, or a command of its own."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from autotune.documents.deployment import PoolRole
from autotune.errors import ProblemError
from autotune.manifests.images import engine_version
from autotune.manifests.machines import hardware_in
from autotune.manifests.pods import Around, config_maps, container_of, starts
from autotune.manifests.service import EngineService, Manifest, inner, listing, mapping, whole
from autotune.manifests.source import Source

KIND, GROUP = "LLMInferenceService", "serving.kserve.io/"
VERSIONS = ("serving.kserve.io/v1alpha1", "serving.kserve.io/v1alpha2")
SIZES = {"tensor": "--tensor-parallel-size", "pipeline": "--pipeline-parallel-size", "data": "--data-parallel-size"}
LOCAL_RANKS = "--data-parallel-size-local"
EXTRA = "VLLM_ADDITIONAL_ARGS"
"""Options that the controller's own start script puts behind its own."""
SGLANG = "sglang"
"""In the name of a runtime whose preset starts SGLang with the container's arguments (kserve-llm-sglang)."""
LOCAL = "/mnt/models"
"""Where KServe mounts what a model's URI names."""


def recognises(source: Source) -> bool:
    """Whether a document is an LLMInferenceService."""
    return any(
        document.get("kind") == KIND and str(document.get("apiVersion")).startswith(GROUP) for document in source.documents
    )


def read(source: Source) -> Manifest:
    """The pools of a service; raises ProblemError for a version of the resource that is not known here."""
    configs = config_maps(source.documents)
    resources = [document for document in source.documents if document.get("kind") == KIND]
    for resource in resources:
        if resource.get("apiVersion") not in VERSIONS:
            raise ProblemError(f"{KIND} {resource.get('apiVersion')} is not known here; known: {', '.join(VERSIONS)}")
    services = [service for resource in resources for service in _services(resource, configs)]
    routed = any(inner(resource, "spec").get("router") is not None for resource in resources)
    remarks = ("router: KServe's scheduler (not judged)",) if routed else ()
    return Manifest("KServe LLMInferenceService", tuple(services), hardware_in(resources), remarks=remarks)


def _services(resource: Mapping[str, Any], configs: Mapping[str, Mapping[str, str]]) -> Iterator[EngineService]:
    name = str(inner(resource, "metadata").get("name", KIND))
    spec = inner(resource, "spec")
    prefill = inner(spec, "prefill")
    if based := listing(spec.get("baseRefs"), "baseRefs"):
        raise ProblemError(f"{name}: baseRefs ({len(based)}) lie outside of the file; give the merged resource")
    if prefill:
        runs = {**prefill, "runtime": spec.get("runtime")}
        yield _service(f"{name}-prefill", runs, inner(spec, "model"), "prefill", Around(configs, where=name))
    yield _service(name, spec, inner(spec, "model"), "decode" if prefill else None, Around(configs, where=name))


def _service(
    name: str, pool: Mapping[str, Any], model: Mapping[str, Any], role: PoolRole | None, around: Around
) -> EngineService:
    pod = inner(pool, "template")
    containers = [mapping(c, f"{name}: containers") for c in listing(pod.get("containers"), f"{name}: containers")]
    main = next((c for c in containers if c.get("name") == "main"), containers[0] if containers else {})
    parallel = inner(pool, "parallelism")
    if not starts(main) or not main.get("command"):
        start = _sglang_command if SGLANG in str(pool.get("runtime") or "") else _command
        words = [*start(name, parallel, model), *(str(word) for word in listing(main.get("args"), "args"))]
        main = {**main, "command": words, "args": []}
    found = container_of(main, pod, around)
    if extra := found.environment.get(EXTRA):
        kept = {key: value for key, value in found.environment.items() if key != EXTRA}
        found = dataclasses.replace(found, text=f"{found.text} {shlex.join(shlex.split(extra))}", environment=kept)
    if parallel.get("dataLocal") and "--data-parallel-size" in found.text and LOCAL_RANKS not in found.text:
        local = whole(parallel["dataLocal"], f"{name}: parallelism.dataLocal", 1)
        found = dataclasses.replace(found, text=f"{found.text} {LOCAL_RANKS} {local}")
    count = pool.get("replicas", 1)
    return EngineService(
        name=name,
        text=found.text,
        environment=found.environment,
        role=role,
        nodes=_nodes(name, parallel, bool(inner(pool, "worker"))),
        gpus_per_node=found.gpus,
        instances=whole(count, f"{name}: replicas", 1),
        image=found.image,
        version=engine_version(found.image),
    )


def _named(name: str, model: Mapping[str, Any]) -> tuple[str, str]:
    """The model by its hub name where its URI is one, else its folder; and the name that it is served under."""
    uri = str(model.get("uri", ""))
    hub = uri.removeprefix("hf://") if uri.startswith("hf://") else None
    return hub or LOCAL, str(model.get("name") or hub or name)


def _sglang_command(name: str, parallel: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    """What the preset of KServe's SGLang runtime starts."""
    path, served = _named(name, model)
    words = ["python3", "-m", "sglang.launch_server", "--model-path", path, "--served-model-name", served]
    width = parallel.get("tensor")
    return [*words, "--tp-size", str(whole(width, f"{name}: parallelism.tensor", 1))] if width else words


def _command(name: str, parallel: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    """What the controller starts."""
    path, served = _named(name, model)
    words = ["vllm", "serve", path, "--served-model-name", served]
    for key, option in SIZES.items():
        words += [option, str(whole(parallel[key], f"{name}: parallelism.{key}", 1))] if parallel.get(key) else []
    return [*words, "--enable-expert-parallel"] if parallel.get("expert") else words


def _nodes(name: str, parallel: Mapping[str, Any], spread: bool) -> int:
    """Data parallelism over nodes of dataLocal ranks; pipeline stages where there are workers."""
    ranks, local = (whole(parallel.get(key) or 1, f"{name}: parallelism.{key}", 1) for key in ("data", "dataLocal"))
    if parallel.get("dataLocal"):
        return max(-(-ranks // local), 1)
    return whole(parallel.get("pipeline") or 1, f"{name}: parallelism.pipeline", 1) if spread else 1

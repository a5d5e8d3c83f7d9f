"""Values of llm-d's modelservice chart: prefill and decode pools with their parallelism and containers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from autotune.errors import ProblemError
from autotune.manifests.images import engine_version
from autotune.manifests.machines import hardware_in
from autotune.manifests.pods import Around, container_of
from autotune.manifests.service import EngineService, Manifest, inner, listing, mapping, whole
from autotune.manifests.source import Source

SIZES = {"tensor": "--tensor-parallel-size", "data": "--data-parallel-size"}


def recognises(source: Source) -> bool:
    """Whether a document is a values file of the chart."""
    return any("modelArtifacts" in document and "apiVersion" not in document for document in source.documents)


def read(source: Source) -> Manifest:
    """The pools that the chart would create."""
    values = next(document for document in source.documents if "modelArtifacts" in document)
    services = tuple(service for role in ("prefill", "decode") for service in _pool(values, role))
    if len(services) == 1 and inner(values, "prefill").get("create", True) is False:
        services = (dataclasses.replace(services[0], role=None),)
    routed = ("router: the chart's routing proxy (not judged)",) if inner(values, "routing") else ()
    return Manifest("llm-d modelservice values", services, hardware_in(values), remarks=routed)


def _pool(values: Mapping[str, Any], role: Literal["prefill", "decode"]) -> Iterator[EngineService]:
    pool = inner(values, role)
    if not pool or pool.get("create") is False or whole(pool.get("replicas", 1), f"{role}.replicas") == 0:
        return
    parallel = inner(pool, "parallelism")
    containers = [mapping(c, f"{role}.containers") for c in listing(pool.get("containers"), f"{role}.containers")]
    main = next((c for c in containers if c.get("modelCommand")), containers[0] if containers else {})
    around = Around(where=role)
    found = container_of(_started(main, parallel, inner(values, "modelArtifacts"), role), {}, around)
    ranks, local = (whole(parallel.get(key) or 1, f"{role}.parallelism.{key}", 1) for key in ("data", "dataLocal"))
    tensor = whole(parallel.get("tensor") or 1, f"{role}.parallelism.tensor", 1)
    nodes = whole(parallel.get("workers") or 1, f"{role}.parallelism.workers", 1)
    nodes = max(nodes, -(-ranks // local) if parallel.get("dataLocal") else 1)
    yield EngineService(
        name=role,
        text=found.text,
        environment=found.environment,
        role=role,
        nodes=nodes,
        gpus_per_node=found.gpus or tensor * local,
        instances=whole(pool.get("replicas", 1), f"{role}.replicas"),
        image=found.image,
        version=engine_version(found.image),
    )


def _started(
    container: Mapping[str, Any], parallel: Mapping[str, Any], artifacts: Mapping[str, Any], role: str
) -> dict[str, Any]:
    """The container with the command that the chart gives it: `vllmServe` writes one, `custom` takes the container's."""
    mode = container.get("modelCommand", "imageDefault")
    if mode == "custom":
        return dict(container)
    if mode not in ("vllmServe", "imageDefault"):
        raise ProblemError(f"{role}: modelCommand {mode} is none of vllmServe, imageDefault, custom")
    uri = str(artifacts.get("uri", ""))
    model = uri.removeprefix("hf://") if uri.startswith("hf://") else str(artifacts.get("name", uri))
    words = ["vllm", "serve", model]
    for key, option in SIZES.items():
        size = whole(parallel.get(key) or 1, f"{role}.parallelism.{key}", 1)
        words += [option, str(size)] if size > 1 else []
    args = [str(word) for word in listing(container.get("args"), f"{role}: args")]
    return {**container, "command": [*words, *args], "args": []}

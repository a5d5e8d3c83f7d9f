"""NVIDIA Dynamo's DynamoGraphDeployment: v1alpha1 with `services`, v1beta1 with `components`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from autotune.errors import ProblemError
from autotune.manifests.images import engine_version
from autotune.manifests.kubernetes import role_named
from autotune.manifests.machines import hardware_in
from autotune.manifests.pods import Around, Container, config_maps, container_of, gpus_of, starts, variables
from autotune.manifests.service import EngineService, Manifest, inner, listing, mapping, whole
from autotune.manifests.source import Source

KIND, GROUP = "DynamoGraphDeployment", "nvidia.com/"
VERSIONS = ("nvidia.com/v1alpha1", "nvidia.com/v1beta1")
FRONTEND = re.compile(r"dynamo\.frontend|dynamo\.router|dynamo\.planner")


def recognises(source: Source) -> bool:
    """Whether a document is a DynamoGraphDeployment."""
    return any(
        document.get("kind") == KIND and str(document.get("apiVersion")).startswith(GROUP) for document in source.documents
    )


def read(source: Source) -> Manifest:
    """The workers of a graph; raises ProblemError for a version of the resource that is not known here."""
    configs = config_maps(source.documents)
    graphs = [document for document in source.documents if document.get("kind") == KIND]
    for graph in graphs:
        if graph.get("apiVersion") not in VERSIONS:
            raise ProblemError(f"{KIND} {graph.get('apiVersion')} is not known here; known: {', '.join(VERSIONS)}")
    services = [service for graph in graphs for service in _services(graph, configs)]
    return Manifest("Dynamo DynamoGraphDeployment", tuple(services), hardware_in(graphs), remarks=tuple(_routers(graphs)))


def _components(graph: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    spec = mapping(graph.get("spec"), "spec")
    for name, component in mapping(spec.get("services"), "spec.services").items():
        yield name, mapping(component, f"services.{name}")
    for entry in listing(spec.get("components"), "spec.components"):
        component = mapping(entry, "spec.components")
        yield str(component.get("name")), component


def _services(graph: Mapping[str, Any], configs: Mapping[str, Mapping[str, str]]) -> Iterator[EngineService]:
    shared = variables({"env": inner(graph, "spec").get("envs") or inner(graph, "spec").get("env")}, Around(configs))
    for name, component in _components(graph):
        own = variables({"env": component.get("envs") or component.get("env")}, Around(configs))
        found = _container(component, Around(configs, {**shared, **own}, name))
        count = whole(component.get("replicas", 1), f"{name}: replicas")
        if found is None or count == 0:
            continue
        nodes = whole(inner(component, "multinode").get("nodeCount", 1), f"{name}: nodeCount", 1)
        gpus = gpus_of(component) or found.gpus
        added = _added(found.text, nodes, gpus)
        role = str(component.get("subComponentType") or component.get("type") or component.get("componentType") or "")
        yield EngineService(
            name=name,
            text=" ".join([found.text.rstrip(), *added]),
            environment=found.environment,
            role=role_named(role) or role_named(re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name)),
            nodes=nodes,
            gpus_per_node=gpus,
            instances=count,
            image=found.image,
            version=engine_version(found.image),
            remarks=(f"Dynamo's operator adds {' '.join(added)}",) if added else (),
        )


def _added(text: str, nodes: int, gpus: int | None) -> list[str]:
    """What the operator adds to the command of several nodes (its backend_vllm.go and backend_sglang.go)."""
    if nodes == 1:
        return []
    if "dynamo.sglang" in text or "sglang.launch_server" in text:
        return [] if "--nnodes" in text else ["--nnodes", str(nodes), "--node-rank", "0"]
    ranks, width = (_size(text, option) for option in ("--data-parallel-size", "--tensor-parallel-size"))
    if ranks == 1 or gpus is None or "--data-parallel-size-local" in text or width > gpus:
        return []
    return ["--data-parallel-size-local", str(gpus // width)]


def _size(text: str, option: str) -> int:
    """A size that the command writes as a number; 1 where it does not."""
    found = re.search(rf"{option}[=\s]+['\"]?(\d+)", text)
    return int(found.group(1)) if found else 1


def _container(component: Mapping[str, Any], around: Around) -> Container | None:
    """The main container of a worker; none for what starts no engine."""
    extra = inner(component, "extraPodSpec")
    template = inner(component, "podTemplate", "spec")
    containers = [mapping(extra.get("mainContainer"), "mainContainer"), *listing(template.get("containers"), "containers")]
    found = next((c for c in containers if isinstance(c, dict) and c and starts(c)), None)
    return container_of(found, {**template, **extra}, around) if found else None


def _routers(graphs: list[dict[str, Any]]) -> Iterator[str]:
    for graph in graphs:
        for name, component in _components(graph):
            role = str(component.get("type") or component.get("componentType") or "")
            if role in ("frontend", "epp", "planner") or (role == "" and FRONTEND.search(str(component))):
                yield f"router: {name} ({role or 'frontend'}), not judged"

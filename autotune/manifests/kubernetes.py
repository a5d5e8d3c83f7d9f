"""Kubernetes' own workloads, LeaderWorkerSet and llm-d's DisaggregatedSet."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from autotune.documents.deployment import PoolRole
from autotune.manifests.images import engine_version
from autotune.manifests.machines import hardware_in
from autotune.manifests.pods import Around, config_maps, engine_container
from autotune.manifests.service import EngineService, Manifest, inner, listing, mapping, whole
from autotune.manifests.source import Source

WORKLOADS = ("Pod", "Deployment", "StatefulSet", "Job", "ReplicaSet")
SETS = {"LeaderWorkerSet": "leaderworkerset.x-k8s.io/", "DisaggregatedSet": "disaggregatedset.x-k8s.io/"}
ROLE_LABELS = ("llm-d.ai/role", "disaggregatedset.x-k8s.io/role", "autotune/role")
ROLE_NAME = re.compile(r"(?:^|[-_.])(prefill|decode)(?:er|worker|s)?(?:$|[-_.])", re.IGNORECASE)


def recognises(source: Source) -> bool:
    """Whether a document is a workload of these kinds."""
    return any(_is_workload(document) for document in source.documents)


def _is_workload(document: Mapping[str, Any]) -> bool:
    kind, version = str(document.get("kind")), str(document.get("apiVersion"))
    return (kind in WORKLOADS and "." not in version.split("/")[0]) or (kind in SETS and version.startswith(SETS[kind]))


def read(source: Source) -> Manifest:
    """All engines that the workloads of a file start."""
    configs = config_maps(source.documents)
    workloads = [document for document in source.documents if _is_workload(document)]
    services = [service for document in workloads for service in _services(document, configs)]
    kinds = ", ".join(dict.fromkeys(str(document["kind"]) for document in workloads))
    return Manifest(f"Kubernetes {kinds}", tuple(services), hardware_in(workloads), remarks=_routers(source))


def _routers(source: Source) -> tuple[str, ...]:
    found = [str(d["kind"]) for d in source.documents if d.get("kind") in ("InferencePool", "HTTPRoute")]
    return (f"router: {', '.join(dict.fromkeys(found))} (not judged)",) if found else ()


def _services(document: Mapping[str, Any], configs: Mapping[str, Mapping[str, str]]) -> Iterator[EngineService]:
    name = str(mapping(document.get("metadata"), "metadata").get("name", document["kind"]))
    spec = mapping(document.get("spec"), f"{name}: spec")
    if document["kind"] == "DisaggregatedSet":
        for entry in listing(spec.get("roles"), f"{name}: roles"):
            role = mapping(entry, f"{name}: roles")
            label = str(role.get("name"))
            yield from _leader_worker(f"{name}-{label}", {**role, **inner(role, "spec")}, role_named(label), configs)
    elif document["kind"] == "LeaderWorkerSet":
        yield from _leader_worker(name, spec, None, configs)
    else:
        pod = document if document["kind"] == "Pod" else mapping(spec.get("template"), f"{name}: template")
        count = whole(spec.get("replicas", 1), f"{name}: replicas") if document["kind"] != "Pod" else 1
        labels = {**_labels(document), **_labels(pod)}
        yield from _pod(name, mapping(pod.get("spec"), f"{name}: pod spec"), labels, 1, count, None, Around(configs, where=name))


def _leader_worker(
    name: str, spec: Mapping[str, Any], role: PoolRole | None, configs: Mapping[str, Mapping[str, str]]
) -> Iterator[EngineService]:
    """A group's leader tells what it runs; where it has none of its own, any member."""
    template = inner(spec, "leaderWorkerTemplate")
    size = whole(template.get("size", 1), f"{name}: size", 1)
    set_by = {"LWS_GROUP_SIZE": str(size), "LWS_WORKER_INDEX": "0", "LWS_LEADER_ADDRESS": f"{name}-0.{name}"}
    worker, leader = inner(template, "workerTemplate"), inner(template, "leaderTemplate")
    count = whole(spec.get("replicas", 1), f"{name}: replicas")
    for pod in (leader, worker):
        around = Around(configs, set_by, name)
        found = list(_pod(name, mapping(pod.get("spec"), name), {**_labels(spec), **_labels(pod)}, size, count, role, around))
        if found:
            yield from found
            return


def _pod(
    name: str,
    spec: Mapping[str, Any],
    labels: Mapping[str, str],
    nodes: int,
    instances: int,
    role: PoolRole | None,
    around: Around,
) -> Iterator[EngineService]:
    found = engine_container(spec, around)
    if found is None or instances == 0:
        return
    labelled = next((role_named(labels[label]) for label in ROLE_LABELS if label in labels), None)
    yield EngineService(
        name=name,
        text=found.text,
        environment=found.environment,
        role=role or labelled or role_named(name),
        nodes=nodes,
        gpus_per_node=found.gpus,
        instances=instances,
        image=found.image,
        version=engine_version(found.image),
    )


def role_named(name: str) -> PoolRole | None:
    """The side of a pair that a name or label says: prefill or decode as a word of it, not both."""
    found = {match.lower() for match in ROLE_NAME.findall(name)}
    if found == {"prefill"}:
        return "prefill"
    return "decode" if found == {"decode"} else None


def _labels(document: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in inner(document, "metadata", "labels").items()}

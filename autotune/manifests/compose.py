"""Docker compose: services of one node."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autotune.manifests.images import engine_version
from autotune.manifests.kubernetes import role_named
from autotune.manifests.machines import hardware_in
from autotune.manifests.pods import Around, container_of, starts
from autotune.manifests.service import EngineService, Manifest, inner, listing, mapping, whole
from autotune.manifests.source import Source
from cost_models.reading import read_text

INTERPOLATED = re.compile(r"\$\{\w+:?-(?P<default>[^}]*)\}|\$\$")
"""What compose itself replaces: a variable with a default, and a doubled dollar."""


def recognises(source: Source) -> bool:
    """Whether a document has compose's services."""
    return any("apiVersion" not in document and _has_services(document.get("services")) for document in source.documents)


def _has_services(services: Any) -> bool:
    return isinstance(services, dict) and any(
        isinstance(s, dict) and {"image", "build", "command", "entrypoint"} & set(s) for s in services.values()
    )


def read(source: Source) -> Manifest:
    """The engines among the services."""
    document = next(document for document in source.documents if _has_services(document.get("services")))
    found = mapping(document["services"], "services")
    folder = source.path.parent
    services = tuple(
        read for name, service in found.items() for read in _service(name, mapping(service, f"services.{name}"), folder)
    )
    return Manifest("docker compose", services, hardware_in(document))


def _service(name: str, service: Mapping[str, Any], folder: Path) -> Iterator[EngineService]:
    container = {
        "command": _words(service.get("entrypoint")),
        "args": _words(service.get("command")),
        "image": service.get("image"),
        "env": _environment(service.get("environment"), name),
    }
    if not starts(container):
        return
    found = container_of(container, {}, Around(where=name, files=_files(service, folder)))
    deploy = inner(service, "deploy")
    yield EngineService(
        name=name,
        text=found.text,
        environment=found.environment,
        role=role_named(name),
        gpus_per_node=_gpus(service, name, found.environment),
        instances=whole(service.get("scale", deploy.get("replicas", 1)), f"{name}: replicas"),
        image=found.image,
        version=engine_version(found.image),
    )


def _files(service: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Texts of files beside the document that a service mounts, by path; folders, and what is elsewhere, are left alone."""
    found = {}
    for entry in listing(service.get("volumes"), "volumes"):
        place, _, path = str(entry).partition(":") if isinstance(entry, str) else ("", "", "")
        own = folder / place
        if place.startswith("./") and ".." not in Path(place).parts and own.is_file():
            found[path.partition(":")[0]] = read_text(own)
    return found


def _words(command: Any) -> list[str]:
    """A command's words: compose splits text as a shell does, and doubles the dollars that are not its own."""
    words = shlex.split(command) if isinstance(command, str) else [str(word) for word in listing(command, "command")]
    return [INTERPOLATED.sub(lambda m: m["default"] if m["default"] is not None else "$", word) for word in words]


def _environment(environment: Any, name: str) -> list[dict[str, str]]:
    if isinstance(environment, list):
        pairs = [str(entry).partition("=") for entry in environment]
        return [{"name": key, "value": value} for key, joined, value in pairs if joined]
    found = mapping(environment, f"{name}: environment")
    return [{"name": key, "value": str(value)} for key, value in found.items() if value is not None]


def _gpus(service: Mapping[str, Any], name: str, environment: Mapping[str, str]) -> int | None:
    """GPUs that a service reserves or sees; none where it takes all, or does not say."""
    reserved = inner(service, "deploy", "resources", "reservations").get("devices")
    for entry in listing(reserved, f"{name}: devices"):
        device = mapping(entry, f"{name}: devices")
        if ids := listing(device.get("device_ids"), "device_ids"):
            return len(ids)
        if device.get("count") not in (None, "all"):
            return whole(device["count"], f"{name}: count", 1)
    seen = environment.get("NVIDIA_VISIBLE_DEVICES") or environment.get("CUDA_VISIBLE_DEVICES")
    return len(seen.split(",")) if seen and seen not in ("all", "none", "void") else None

"""What targets have in common: what they are asked for, names, YAML, and variables that Kubernetes fills in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from autotune.errors import ExportError
from autotune.exporters.base import Script
from autotune.exporters.launch import Launch, LaunchPool
from autotune.exporters.quoting import Shell, note

Document = dict[str, Any]
LONGEST_NAME = 40
"""Of a service: with role, instance and node it stays below the 63 characters of a label."""
VARIABLE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
EXPANDS = re.compile(r'"((?:[^"\\$`]|\$[A-Za-z_][A-Za-z0-9_]*)*)"')
"""Shell text of one quoted word that does nothing but name variables."""
IMAGES = {("vllm", "nvidia"): "vllm/vllm-openai:v{}", ("sglang", "nvidia"): "lmsysorg/sglang:v{}"}
"""(engine, vendor) -> its own published image (docs.vllm.ai/en/latest/deployment/docker, docs.sglang.io/get_started/install)."""
ONE = re.compile(r'"\$([A-Za-z_][A-Za-z0-9_]*)"')
"""Shell text of one variable."""
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """What a plan does not say."""

    image: str | None = None
    """Of the engine; by default the one its project publishes under the plan's version."""
    router_image: str | None = None
    """Of the router in front of a pair."""
    rdma_resource: str = "rdma/ib"
    """Name under which the cluster's device plugin offers NICs (as in the recipes of llm-d and Dynamo)."""


@dataclass(frozen=True, slots=True)
class Target:
    """One way to start a launch."""

    name: str
    title: str
    render: Callable[[Launch, TargetOptions], list[Script]]
    """Raises ExportError for a launch that the target cannot say, naming what stands in the way."""
    apply: str
    """The line that starts it, in the folder of its files."""
    validate: str
    """The line that checks it without starting anything."""


def engine_image(launch: Launch, vendor: str, options: TargetOptions) -> str:
    """The image asked for, or the engine's own of the plan's version. Raises ExportError where neither is known."""
    if options.image is not None:
        return printable(options.image, "the image")
    published = IMAGES.get((launch.engine, vendor))
    if published is None:
        raise ExportError(f"no published image of {launch.engine} for {vendor} is known: name one with --image")
    version = launch.version if launch.version.count(".") > 1 else f"{launch.version}.0"
    return published.format(version)


def router_image(options: TargetOptions, what: str) -> str:
    """The image asked for. Raises ExportError without: routers have versions of their own, which no plan holds."""
    if options.router_image is None:
        raise ExportError(f"a pair of pools needs {what}, which the plan does not name: give its image with --router-image")
    return printable(options.router_image, "the router's image")


def service_name(launch: Launch) -> str:
    """A name that Kubernetes takes (RFC 1035 label), cut with a digest where it is too long."""
    plain = re.sub(r"[^a-z0-9]+", "-", f"{launch.name}-{launch.phase}".lower()).strip("-") or "launch"
    plain = plain if plain[0].isalpha() else f"m-{plain}"
    if len(plain) <= LONGEST_NAME:
        return plain
    digest = hashlib.sha256(plain.encode()).hexdigest()[:6]
    return f"{plain[: LONGEST_NAME - 7].rstrip('-')}-{digest}"


def plan_annotations(launch: Launch, pool: LaunchPool | None = None) -> dict[str, str]:
    """What the plan said and the manifest's own fields do not: read back by `autotune check`."""
    found = {
        "autotune/engine": launch.engine,
        "autotune/engine-version": launch.version,
        "autotune/model": launch.model,
        "autotune/precision": pool.precision if pool else launch.precision,
    }
    if pool is not None:
        found |= {"autotune/hardware": pool.hardware, "autotune/role": pool.role}
    return {key: printable(value, key) for key, value in found.items()}


def printable(value: object, what: str) -> str:
    """Text that YAML and environments can hold. Raises ExportError for control characters."""
    text = str(value)
    if found := UNPRINTABLE.search(text):
        raise ExportError(f"{what} has the character {found.group()!r}, which no manifest can hold")
    return text


def manifest(name: str, documents: list[Document], about: str) -> Script:
    """A YAML file under a line that says what it is."""
    import yaml

    emitter: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    class Plain(emitter):  # type: ignore[misc]  # which of the two is known when it runs
        """Without anchors: people read these files."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
            return True

    def said(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    Plain.add_representer(str, said)
    several = len(documents) > 1
    form: dict[str, Any] = {"sort_keys": False, "default_flow_style": False, "width": 10**6, "allow_unicode": True}
    body = str(yaml.dump_all(documents, Dumper=Plain, explicit_start=several, **form))
    return Script(name, f"# {note(about)}; written by autotune.\n{body}", executable=False)


def literal_of(value: object, known: dict[str, str]) -> object:
    """A value with a variable that is known put in; as it is where that is not all of it."""
    if not isinstance(value, Shell):
        return value
    found = ONE.fullmatch(value)
    return known.get(found.group(1), value) if found else value


def escaped(text: str) -> str:
    """Text in which Kubernetes fills in nothing (its `$$` is a `$`)."""
    return text.replace("$", "$$")


def kubernetes_text(value: object) -> str | None:
    """Text in which Kubernetes fills in $(NAME); None where only a shell can work the value out.

    A literal `$` is escaped as Kubernetes wants it (`$$`).
    """
    if not isinstance(value, Shell):
        return escaped(printable(value, "an argument"))
    found = EXPANDS.fullmatch(value)
    return VARIABLE.sub(r"$(\1)", found.group(1)) if found else None

"""A pod's engine container as the command that it runs, with its variables, image and GPUs."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.auditing.shell import TRTLLM_SERVE
from autotune.errors import ProblemError
from autotune.manifests.images import is_server
from autotune.manifests.service import arguments, listing, mapping, whole
from autotune.manifests.source import documents_in

SHELLS = ("sh", "bash", "dash", "zsh")
STARTS = re.compile(
    r"\bvllm\s+serve\b|\bsglang\s+serve\b|sglang\.launch_server|vllm\.entrypoints\.openai\.api_server"
    r"|\bdynamo\.(?:vllm|sglang|trtllm)\b|\btrtllm-serve\b|trtllm-llmapi-launch"
)
"""What starts an engine in a container's words."""
REFERENCE = re.compile(r"\$\(([A-Za-z_]\w*)\)")
UNEXPANDED = re.compile(r"\$\{?[A-Za-z_]\w*")
GPUS = re.compile(r"^(nvidia\.com/gpu|amd\.com/gpu|huawei\.com/ascend.*|gpu)$", re.IGNORECASE)
CONFIGS = ("--config", "--extra_llm_api_options", "--extra-engine-args", "--extra_engine_args")
"""Options that name a file of the engine's settings."""


@dataclass(frozen=True, slots=True)
class Container:
    """An engine container."""

    text: str
    environment: Mapping[str, str]
    image: str | None
    gpus: int | None
    """None where no resource asks for any."""


@dataclass(frozen=True, slots=True)
class Around:
    """What surrounds a pod."""

    configs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Data of the ConfigMaps of the file, by name."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the controller sets."""
    where: str = "the file"
    files: Mapping[str, str] = field(default_factory=dict)
    """Texts that lie in its containers already, by path."""


def config_maps(documents: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Data of every ConfigMap, by name."""
    found = {}
    for document in documents:
        if document.get("kind") == "ConfigMap":
            data = mapping(document.get("data"), "ConfigMap data")
            found[str(mapping(document.get("metadata"), "metadata").get("name"))] = {k: str(v) for k, v in data.items()}
    return found


def engine_container(spec: Mapping[str, Any], around: Around) -> Container | None:
    """The container of a pod that starts an engine; none where none does. Raises ProblemError for what is no pod."""
    containers = [mapping(c, f"{around.where}: containers") for c in listing(spec.get("containers"), "containers")]
    found = [container for container in containers if starts(container)]
    if not found:
        return None
    return container_of(max(found, key=lambda c: gpus_of(c) or 0), spec, around)


def starts(container: Mapping[str, Any]) -> bool:
    """Whether a container starts an engine."""
    words = " ".join(_words(container))
    alone = not container.get("command") and is_server(_image(container))
    return bool(STARTS.search(words)) or alone


def container_of(container: Mapping[str, Any], spec: Mapping[str, Any], around: Around) -> Container:
    """A container's command, environment and resources."""
    environment = {**around.environment, **variables(container, around)}
    files = {**around.files, **_mounted(container, spec, around)}
    words = _words(container)
    if not container.get("command") and is_server(_image(container)) and not STARTS.search(" ".join(words)):
        words = ["vllm", "serve", *words]
    return Container(text_of(words, environment, files, around.where), environment, _image(container), gpus_of(container))


def text_of(words: Sequence[str], environment: Mapping[str, str], files: Mapping[str, str], where: str) -> str:
    """Shell text of a container's words: a script that a shell is given, or the words themselves.

    files : texts by their paths in the container. Raises ProblemError for a settings file that is not there, and for a variable
    that nothing would replace.
    """
    words = [REFERENCE.sub(lambda m: environment.get(m.group(1), m.group(0)), word) for word in words]
    script = _script(words)
    if script is not None:
        return _with_configs(script, files, where)
    if lost := next((word for word in words if UNEXPANDED.search(word) and not word.lstrip().startswith("{")), None):
        raise ProblemError(
            f"{where}: '{lost[:60]}' goes to the engine as it stands, for no shell replaces its variable; write $(NAME)"
        )
    return _with_configs(shlex.join(words), files, where)


def _script(words: Sequence[str]) -> str | None:
    """What a shell is given after -c, or a single word that is a whole command; none for other commands."""
    if words and posixpath.basename(words[0]) in SHELLS:
        for at, word in enumerate(words[1:], start=1):
            if word.startswith("-") and word.endswith("c") and at + 1 < len(words):
                return words[at + 1]
        return None
    return None


def _with_configs(text: str, files: Mapping[str, str], where: str) -> str:
    """Text in which a file of settings is replaced by the options that it holds."""
    for option in CONFIGS:
        pattern = re.compile(rf"(?<![\w-]){re.escape(option)}[=\s]+(['\"]?)([^\s'\"\\]+)\1")
        for found in list(pattern.finditer(text)):
            path = found.group(2)
            if option == "--config" and not any(engine in text for engine in ("sglang", "vllm", TRTLLM_SERVE)):
                continue
            if path not in files:
                known = ", ".join(files) or "none"
                raise ProblemError(
                    f"{where}: {option} {path} is not in a ConfigMap of the file (mounted here: {known}); add its ConfigMap "
                    "to the file, or put what is mounted beside it"
                )
            whole_file = option != "--config" or TRTLLM_SERVE in text
            text = text.replace(found.group(0), _options(option, files[path], path, whole_file), 1)
    return text


def _options(option: str, content: str, path: str, whole_file: bool) -> str:
    """The options of a settings file, as words; TensorRT-LLM's stays one document."""
    held = {key: value for document in documents_in(content, path) for key, value in document.items()}
    if whole_file:
        return f"{option} {shlex.quote(json.dumps(held))}"
    return shlex.join(arguments(held))


def variables(container: Mapping[str, Any], around: Around) -> dict[str, str]:
    """Variables of a container that have a value, ConfigMaps of the file included."""
    found: dict[str, str] = {}
    for source in listing(container.get("envFrom"), "envFrom"):
        reference = mapping(mapping(source, "envFrom").get("configMapRef"), "configMapRef")
        found.update(around.configs.get(str(reference.get("name")), {}))
    for entry in listing(container.get("env"), "env"):
        item = mapping(entry, "env")
        name, value = str(item.get("name")), item.get("value")
        reference = mapping(mapping(item.get("valueFrom"), "valueFrom").get("configMapKeyRef"), "configMapKeyRef")
        if reference:
            value = around.configs.get(str(reference.get("name")), {}).get(str(reference.get("key")))
        if value is not None:
            found[name] = REFERENCE.sub(lambda m: found.get(m.group(1), m.group(0)), str(value))
    return found


def gpus_of(container: Mapping[str, Any]) -> int | None:
    """Accelerators that a container's limits or requests ask for."""
    resources = mapping(container.get("resources"), "resources")
    for kind in ("limits", "requests"):
        for key, value in mapping(resources.get(kind), kind).items():
            if GPUS.match(key):
                return whole(value, key)
    return None


def _mounted(container: Mapping[str, Any], spec: Mapping[str, Any], around: Around) -> dict[str, str]:
    """Texts of ConfigMaps that are mounted, by path."""
    volumes = {str(v.get("name")): v for v in listing(spec.get("volumes"), "volumes") if isinstance(v, dict)}
    found = {}
    for mount in listing(container.get("volumeMounts"), "volumeMounts"):
        place = mapping(mount, "volumeMounts")
        source = mapping(volumes.get(str(place.get("name")), {}).get("configMap"), "configMap")
        path, part = str(place.get("mountPath", "")), place.get("subPath")
        for key, content in around.configs.get(str(source.get("name")), {}).items():
            if part is None:
                found[posixpath.join(path, key)] = content
            elif key == part:
                found[path] = content
    return found


def _image(container: Mapping[str, Any]) -> str | None:
    image = container.get("image")
    return str(image) if image else None


def _words(container: Mapping[str, Any]) -> list[str]:
    return [*_listed(container, "command"), *_listed(container, "args")]


def _listed(container: Mapping[str, Any], key: str) -> list[str]:
    said = container.get(key)
    return [said] if isinstance(said, str) else [str(word) for word in listing(said, key)]

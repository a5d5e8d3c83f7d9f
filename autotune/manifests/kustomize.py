"""A kustomize folder as the documents that it renders to: resources, components, patches, images, replicas, ConfigMaps."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autotune.errors import ProblemError
from autotune.manifests.service import inner, listing, mapping, whole
from autotune.manifests.source import documents_in, documents_of, mappings_in
from cost_models.patterns import compiled
from cost_models.reading import is_folder, parse_yaml, read_text

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
KNOWN = {
    "apiVersion", "kind", "metadata", "resources", "bases", "components", "patches", "patchesStrategicMerge", "patchesJson6902",
    "images", "replicas", "configMapGenerator", "generatorOptions", "namespace", "namePrefix", "nameSuffix", "labels",
    "commonLabels", "commonAnnotations", "secretGenerator", "configurations", "buildMetadata", "sortOptions",
}  # fmt: skip
"""Fields that are applied here, or change nothing that a verdict depends on."""
DEEPEST = 12
MERGED_BY = ("name", "mountPath", "containerPort", "key")
"""Fields by which items of a list are the same to a patch."""
Documents = list[dict[str, Any]]


def is_kustomization(folder: Path) -> bool:
    """Whether a folder has a kustomization."""
    return is_folder(folder) and any((folder / name).is_file() for name in NAMES)


def rendered(folder: Path, depth: int = 0, below: Documents | None = None) -> Documents:
    """The documents of a folder; of a component, those that it is applied to.

    Raises ProblemError for what lies outside of this machine, for fields that are not applied here, and for patches of nothing.
    """
    if depth > DEEPEST:
        raise ProblemError(f"{folder}: kustomizations that refer to each other more than {DEEPEST} deep")
    file = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if file is None:
        raise ProblemError(f"{folder}: no kustomization.yaml in it")
    said = mapping(parse_yaml(read_text(file), file), str(file))
    if unknown := sorted(set(said) - KNOWN):
        raise ProblemError(f"{file}: {', '.join(unknown)} is not applied here; give the output of kustomize build {folder}")
    found = list(below or [])
    for entry in [*listing(said.get("bases"), "bases"), *listing(said.get("resources"), "resources")]:
        found += _resource(folder, str(entry), depth)
    found += [_generated(folder, mapping(entry, "configMapGenerator")) for entry in listing(said.get("configMapGenerator"), "")]
    for entry in listing(said.get("components"), "components"):
        found = rendered(_inside(folder, str(entry)), depth + 1, found)
    for patch, target in _patches(folder, said):
        found = _patched(found, patch, target, file)
    _set_images(found, said)
    _set_replicas(found, said)
    return found


def _inside(folder: Path, entry: str) -> Path:
    if re.match(r"^(https?://|git@|ssh://)|^[\w.-]+\.[a-z]+/.*(\?ref=|//)", entry):
        raise ProblemError(f"{folder}: {entry} lies elsewhere and is not fetched; give the output of kustomize build {folder}")
    return folder / entry


def _resource(folder: Path, entry: str, depth: int) -> Documents:
    path = _inside(folder, entry)
    return rendered(path, depth + 1) if is_folder(path) else list(documents_of(path))


def _generated(folder: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    data: dict[str, str] = {}
    for literal in listing(entry.get("literals"), "literals"):
        key, _, value = str(literal).partition("=")
        data[key] = value
    for file in listing(entry.get("files"), "files"):
        key, _, path = str(file).rpartition("=")
        data[key or Path(path).name] = read_text(folder / path)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": entry.get("name")}, "data": data}


def _patches(folder: Path, said: Mapping[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(patch, target): a mapping that is merged, or a list of operations."""
    for entry in [*listing(said.get("patches"), "patches"), *listing(said.get("patchesJson6902"), "patchesJson6902")]:
        item = mapping(entry, "patches")
        text = read_text(folder / str(item["path"])) if item.get("path") else str(item.get("patch", ""))
        content = parse_yaml(text, f"{folder}: patch")
        for patch in [content] if isinstance(content, list) else documents_in(text, f"{folder}: patch"):
            yield patch, mapping(item.get("target"), "target")
    for entry in listing(said.get("patchesStrategicMerge"), "patchesStrategicMerge"):
        text = str(entry) if "\n" in str(entry) else read_text(folder / str(entry))
        for patch in documents_in(text, f"{folder}: patch"):
            yield patch, {}


def _patched(documents: Documents, patch: Any, target: Mapping[str, Any], file: Path) -> Documents:
    target = target or {"kind": patch.get("kind"), "name": inner(patch, "metadata").get("name")}
    hits = [at for at, document in enumerate(documents) if _is_target(document, target)]
    if not hits and not isinstance(patch, list):
        raise ProblemError(f"{file}: a patch of {target.get('kind')} {target.get('name')} has nothing to change")
    found = list(documents)
    for at in hits:
        found[at] = _operated(found[at], patch, file) if isinstance(patch, list) else _merged(found[at], patch)
    return found


def _is_target(document: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
    name = str(inner(document, "metadata").get("name"))
    if target.get("kind") not in (None, document.get("kind")):
        return False
    return target.get("name") is None or name == target["name"] or _matches(str(target["name"]), name)


def _matches(pattern: str, name: str) -> bool:
    """Whether a target's name, an expression of RE2 as for kustomize itself, is all of a name."""
    try:
        return compiled(pattern).fullmatch(name) is not None
    except ValueError as error:
        raise ProblemError(f"the name of a patch's target: {error}") from error


def _merged(value: Any, patch: Any) -> Any:
    """A strategic merge: mappings by key, lists of named items by name, others replaced; null takes away."""
    if isinstance(value, dict) and isinstance(patch, dict):
        if patch.get("$patch") == "replace":
            return {key: inside for key, inside in patch.items() if key != "$patch"}
        both = {key: _merged(value.get(key), inside) for key, inside in patch.items() if inside is not None}
        return {key: inside for key, inside in value.items() if key not in patch} | both
    by = next((key for key in MERGED_BY if _all_have(value, key) and _all_have(patch, key)), None)
    if by is None:
        return copy.deepcopy(patch)
    changed = {item[by]: item for item in patch}
    gone = {name for name, item in changed.items() if item.get("$patch") == "delete"}
    kept = [_merged(item, changed[item[by]]) if item[by] in changed else item for item in value if item[by] not in gone]
    names = {item[by] for item in value}
    return kept + [item for name, item in changed.items() if name not in names and name not in gone]


def _all_have(value: Any, key: str) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and key in item for item in value)


def _operated(document: dict[str, Any], operations: list[Any], file: Path) -> dict[str, Any]:
    """A document after JSON 6902 operations; raises ProblemError for one that does not fit."""
    found = copy.deepcopy(document)
    for entry in operations:
        operation = mapping(entry, f"{file}: patch")
        path = [part.replace("~1", "/").replace("~0", "~") for part in str(operation.get("path", "")).split("/")[1:]]
        try:
            _operate(found, str(operation.get("op")), path, operation.get("value"))
        except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
            raise ProblemError(f"{file}: the operation on {operation.get('path')} does not fit the document") from error
    return found


def _operate(document: Any, op: str, path: list[str], value: Any) -> None:
    *parents, last = path
    inside = document
    for part in parents:
        inside = inside[int(part)] if isinstance(inside, list) else inside[part]
    key: Any = last if isinstance(inside, dict) else len(inside) if last == "-" else int(last)
    if op == "test":
        return
    if op == "remove":
        del inside[key]
    elif op == "add" and isinstance(inside, list):
        inside.insert(key, value)
    elif op in ("add", "replace"):
        inside[key] = value
    else:
        raise ValueError(op)


def _set_images(documents: Documents, said: Mapping[str, Any]) -> None:
    changes = [mapping(entry, "images") for entry in listing(said.get("images"), "images")]
    for found in mappings_in(documents) if changes else ():
        if isinstance(found.get("image"), str):
            found["image"] = _image(found["image"], changes)


def _image(image: str, changes: list[dict[str, Any]]) -> str:
    slash = image.rfind("/")
    colon = image.find(":", slash + 1)
    name = image if colon < 0 else image[:colon]
    for change in changes:
        if change.get("name") == name:
            tag = change.get("newTag") or (image[colon + 1 :] if colon >= 0 else "")
            return f"{change.get('newName', name)}{':' if tag else ''}{tag}"
    return image


def _set_replicas(documents: Documents, said: Mapping[str, Any]) -> None:
    for entry in listing(said.get("replicas"), "replicas"):
        change = mapping(entry, "replicas")
        for document in documents:
            if inner(document, "metadata").get("name") == change.get("name"):
                document.setdefault("spec", {})["replicas"] = whole(change.get("count"), "replicas.count")

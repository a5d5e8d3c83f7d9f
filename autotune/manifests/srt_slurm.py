"""Recipes of NVIDIA's srt-slurm: schema 1 (`backend` with one mapping of options a role) and schema 2 (`engine` and `roles`)."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from autotune.auditing.wrappers import DYNAMO_OPTIONS
from autotune.documents.deployment import PoolRole
from autotune.errors import ProblemError
from autotune.manifests.images import engine_version
from autotune.manifests.machines import named_hardware
from autotune.manifests.service import EngineService, Manifest, arguments, inner, mapping, whole
from autotune.manifests.source import Source

ROLES: dict[str, PoolRole | None] = {"prefill": "prefill", "decode": "decode", "aggregated": None, "agg": None}
STARTS = {"sglang": ("python3", "-m", "sglang.launch_server"), "vllm": ("vllm", "serve"), "trtllm": ("trtllm-serve",)}


VARIANTS = ("override_", "zip_override_")
"""How sections begin that srtctl merges into `base`, each a job of its own."""


def recognises(source: Source) -> bool:
    """Whether a document is a recipe, or holds variants of one."""
    return any(_is_recipe(document) or _variants(document) for document in source.documents)


def _variants(document: Mapping[str, Any]) -> list[str]:
    """Names of the sections that change `base`; empty where there is no recipe under it."""
    base = document.get("base")
    if not isinstance(base, dict) or not (isinstance(base.get("resources"), dict) or isinstance(base.get("roles"), dict)):
        return []
    return [str(key) for key in document if str(key).startswith(VARIANTS)]


def _is_recipe(document: Mapping[str, Any]) -> bool:
    first = isinstance(document.get("backend"), dict) and isinstance(document.get("resources"), dict)
    second = isinstance(document.get("roles"), dict) and isinstance(document.get("engine"), dict | str)
    return "apiVersion" not in document and "hardware" not in document and (first or second)


def read(source: Source) -> Manifest:
    """The pools of a recipe and the load of its benchmark; raises ProblemError for one that is still several."""
    several = [name for document in source.documents for name in _variants(document)]
    if several:
        raise ProblemError(
            f"{source.path}: a base with {len(several)} sections of changes ({', '.join(several[:6])}): write one out with "
            f"`srtctl resolve-override -f {source.path.name}:{several[0]} --stdout` and give the result"
        )
    recipe = next(document for document in source.documents if _is_recipe(document))
    resources, benchmark, model = (inner(recipe, key) for key in ("resources", "benchmark", "model"))
    second = isinstance(recipe.get("roles"), dict)
    services = tuple(_second(recipe) if second else _first(recipe))
    gpu = str(resources.get("gpu_type", ""))
    isl, osl = (
        whole(benchmark[key], f"benchmark.{key}", 1) if benchmark.get(key) is not None else None for key in ("isl", "osl")
    )
    return Manifest(
        f"srt-slurm recipe (schema {2 if second else 1})",
        services,
        named_hardware(gpu),
        precision=str(model["precision"]) if model.get("precision") else None,
        concurrencies=_counts(benchmark.get("concurrencies")),
        remarks=(f"router: {inner(recipe, 'frontend').get('type', 'dynamo')} (not judged)",),
        isl_tokens=isl,
        osl_tokens=osl,
    )


def _counts(said: Any) -> tuple[int, ...]:
    """Concurrencies of a sweep: 4x8x32, a list, or one."""
    if said is None:
        return ()
    parts = said if isinstance(said, list) else re.split(r"[x,\s]+", str(said))
    return tuple(whole(part, "benchmark.concurrencies", 1) for part in parts if str(part))


def _first(recipe: Mapping[str, Any]) -> Iterator[EngineService]:
    backend, resources = inner(recipe, "backend"), inner(recipe, "resources")
    kind = str(backend.get("type", "sglang")).lower()
    options = mapping(backend.get(f"{kind}_config"), f"backend.{kind}_config")
    if not any(role in options for role in ROLES):
        raise ProblemError(f"backend.{kind}_config has none of the roles {', '.join(ROLES)}")
    for name, role in ROLES.items():
        if name in options:
            short = "agg" if role is None else name
            environment = mapping(backend.get(f"{name}_environment"), f"backend.{name}_environment")
            nodes, workers = (resources.get(f"{short}_{key}") for key in ("nodes", "workers"))
            gpus = resources.get(f"gpus_per_{short}")
            held = mapping(options[name], f"{kind}_config.{name}")
            yield _service(recipe, name, kind, held, environment, (nodes, workers, gpus))


def _second(recipe: Mapping[str, Any]) -> Iterator[EngineService]:
    said = recipe["engine"]
    kind = str(said if isinstance(said, str) else inner(recipe, "engine").get("type", "")).lower()
    for name, value in inner(recipe, "roles").items():
        if name not in ROLES:
            raise ProblemError(f"roles.{name} is none of {', '.join(ROLES)}")
        role = mapping(value, f"roles.{name}")
        environment = mapping(role.get("env"), f"roles.{name}.env")
        sizes = (role.get("nodes"), role.get("workers"), role.get("gpus"))
        yield _service(recipe, name, kind, mapping(role.get("args"), f"roles.{name}.args"), environment, sizes)


def _start(kind: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The engine, or Dynamo's worker around it where options are the worker's."""
    own = any(f"--{name}".replace("_", "-").startswith(DYNAMO_OPTIONS) for name in options)
    return ("python3", "-m", f"dynamo.{kind}") if own else tuple(STARTS[kind])


def _service(
    recipe: Mapping[str, Any],
    name: str,
    kind: str,
    options: Mapping[str, Any],
    environment: Mapping[str, Any],
    sizes: tuple[Any, Any, Any],
) -> EngineService:
    """sizes : (nodes, workers, GPUs of a worker); nodes are those of all workers."""
    if kind not in STARTS:
        raise ProblemError(f"engine {kind} is not known here; known: {', '.join(STARTS)}")
    model = inner(recipe, "model")
    image = str(model["container"]) if model.get("container") else None
    nodes, per_node, workers = _places(recipe, name, sizes)
    return EngineService(
        name=name,
        text=shlex.join([*_start(kind, options), *_words(kind, options, model), *_placed(kind, options, nodes, per_node)]),
        environment={key: str(value) for key, value in environment.items()},
        role=ROLES[name],
        nodes=nodes,
        gpus_per_node=per_node,
        instances=workers,
        image=image,
        version=engine_version(image) or _bare(image),
    )


def _places(recipe: Mapping[str, Any], name: str, sizes: tuple[Any, Any, Any]) -> tuple[int, int | None, int]:
    """(nodes of a worker, GPUs on each, workers); workers may share a node."""
    count, workers, gpus = sizes
    told = inner(recipe, "resources").get("gpus_per_node")
    whole_node = whole(told, "resources.gpus_per_node", 1) if told is not None else None
    number = whole(workers if workers is not None else 1, f"{name}: workers", 1)
    if gpus is not None and whole_node:
        asked = whole(gpus, f"{name}: gpus", 1)
        return max(-(-asked // whole_node), 1), min(asked, whole_node), number
    if gpus is not None:
        return 1, whole(gpus, f"{name}: gpus", 1), number
    nodes = whole(count if count is not None else 1, f"{name}: nodes")
    if nodes >= number:
        return nodes // number, whole_node, number
    return 1, (whole_node * nodes // number or None) if whole_node else None, number


def _placed(kind: str, options: Mapping[str, Any], nodes: int, per_node: int | None) -> list[str]:
    """What srtctl adds for a worker of several nodes: vLLM's data-parallel ranks of each (src/srtctl/backends/vllm.py)."""
    if kind != "vllm" or nodes == 1 or per_node is None or "data-parallel-size" not in options:
        return []
    width = whole(options.get("tensor-parallel-size", 1), "tensor-parallel-size", 1)
    return ["--data-parallel-size-local", str(per_node // width)] if width <= per_node else []


def _words(kind: str, options: Mapping[str, Any], model: Mapping[str, Any]) -> list[str]:
    """Options with the model by the path that the recipe gives it, where they do not."""
    named = next((options[key] for key in ("model-path", "model") if key in options), model.get("path", ""))
    named = str(named).removeprefix("hf:")
    if kind == "trtllm":  # its options are fields of the settings file (src/srtctl/backends/trtllm.py)
        fields = {key: value for key, value in options.items() if key not in ("model-path", "model")}
        return [named, "--config", json.dumps(fields)]
    if kind == "vllm":
        return [str(named), *arguments({key: value for key, value in options.items() if key not in ("model-path", "model")})]
    return arguments({**options, "model-path": named})


def _bare(image: str | None) -> str | None:
    """srt-slurm's containers may be named by the engine's version alone."""
    return image if image and re.fullmatch(r"\d+\.\d+\.\d+(\.post\d+)?", image) else None

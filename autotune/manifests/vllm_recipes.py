"""Entries of vLLM's recipe collection (models/*.yaml): one model, its variants, and the strategies that fit it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autotune.errors import ProblemError
from autotune.manifests.service import EngineService, Manifest, inner, listing, mapping
from autotune.manifests.source import Source
from cost_models.catalog import load_hardware

TENSOR, DATA, PIPELINE = "--tensor-parallel-size", "--data-parallel-size", "--pipeline-parallel-size"
EXPERT = "--enable-expert-parallel"
FAMILIES = {"h": "hopper", "b": "blackwell", "g": "blackwell", "m": "amd"}


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a strategy lays out a model, as the collection's strategies/*.yaml do."""

    parallel: str
    experts: bool = False
    nodes: int = 1
    over_nodes: str | None = None
    """The option that spans nodes, where the first stays within one."""


STRATEGIES = {
    "single_node_tp": Strategy(TENSOR),
    "single_node_tep": Strategy(TENSOR, experts=True),
    "single_node_dep": Strategy(DATA, experts=True),
    "multi_node_tp": Strategy(TENSOR, nodes=2),
    "multi_node_tep": Strategy(TENSOR, experts=True, nodes=2),
    "multi_node_dep": Strategy(DATA, experts=True, nodes=2),
    "multi_node_tp_pp": Strategy(TENSOR, nodes=2, over_nodes=PIPELINE),
    "multi_node_tp_dp": Strategy(TENSOR, nodes=2, over_nodes=DATA),
}


def recognises(source: Source) -> bool:
    """Whether a document is an entry of the collection."""
    return any(_is_entry(document) for document in source.documents)


def _is_entry(document: Mapping[str, Any]) -> bool:
    model = document.get("model")
    return isinstance(model, dict) and "model_id" in model and "compatible_strategies" in document


def read_on(source: Source, hardware: str) -> Manifest:
    """Every strategy and variant of an entry on a machine, named strategy/variant; pairs and unknown strategies left out."""
    entry = next(document for document in source.documents if _is_entry(document))
    strategies = [str(name) for name in listing(entry.get("compatible_strategies"), "compatible_strategies")]
    known = [name for name in strategies if name in STRATEGIES]
    if not known:
        raise ProblemError(f"none of the recipe's strategies is known here ({', '.join(strategies)})")
    services = tuple(service for name in known for service in _variants(entry, name, hardware))
    left = [name for name in strategies if name not in STRATEGIES]
    model = inner(entry, "model")
    remarks = [f"strategies left out: {', '.join(left)}"] if left else []
    if model.get("min_vllm_version"):
        remarks.append(f"the recipe needs vLLM {model['min_vllm_version']} or newer")
    return Manifest("vLLM recipe", services, (hardware,), alternatives=True, remarks=tuple(remarks))


def _variants(entry: Mapping[str, Any], strategy: str, hardware: str) -> Iterator[EngineService]:
    variants = inner(entry, "variants") or {"default": {}}
    for name, value in variants.items():
        variant = mapping(value, f"variants.{name}")
        yield _service(f"{strategy}/{name}", entry, variant, strategy, hardware)


def _service(name: str, entry: Mapping[str, Any], variant: Mapping[str, Any], strategy: str, hardware: str) -> EngineService:
    model, laid = inner(entry, "model"), STRATEGIES[strategy]
    gpus = load_hardware(hardware).gpus_per_node
    family = FAMILIES.get(hardware.removeprefix("hgx-")[:1], "")
    override = inner(entry, "hardware_overrides", family) if family else {}
    own = inner(entry, "strategy_overrides", strategy)
    spread = 1 if laid.over_nodes else laid.nodes
    # a recipe's own tensor-parallel size goes before all GPUs of the node
    size = int(variant.get("tp") or own.get("tp") or gpus * spread) if laid.parallel == TENSOR else gpus * spread
    words = [*_words(model, "base_args"), *([EXPERT] if laid.experts else []), laid.parallel, str(size)]
    words += [laid.over_nodes, str(laid.nodes)] if laid.over_nodes else []
    words += [word for part in (variant, override, own) for word in _words(part, "extra_args")]
    environment = {
        **inner(model, "base_env"),
        **inner(variant, "extra_env"),
        **inner(override, "extra_env"),
        **inner(own, "extra_env"),
    }
    served = str(variant.get("model_id") or model["model_id"])
    return EngineService(
        name=name,
        text=shlex.join(["vllm", "serve", served, *_once(words)]),
        environment={key: str(value) for key, value in environment.items()},
        nodes=laid.nodes,
        gpus_per_node=gpus,
    )


def _words(part: Mapping[str, Any], key: str) -> list[str]:
    return [str(word) for word in listing(part.get(key), key)]


def _once(words: list[str]) -> list[str]:
    """Words without the switch of expert parallelism that the model and a strategy both have."""
    first = words.index(EXPERT) if EXPERT in words else None
    return [word for at, word in enumerate(words) if word != EXPERT or at == first]

"""Entries of vLLM's recipe collection (models/*.yaml): one model, its variants, and the strategies that fit it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from autotune.errors import ProblemError
from autotune.manifests.service import EngineService, Manifest, inner, listing, mapping, whole
from autotune.manifests.source import Source
from cost_models.catalog import load_hardware
from cost_models.specs.hardware import HardwareSpec

TENSOR, DATA, PIPELINE = "--tensor-parallel-size", "--data-parallel-size", "--pipeline-parallel-size"
EXPERT = "--enable-expert-parallel"
ENVIRONMENTS = ("base_env", "extra_env", "env")
FAMILIES = {"h": "hopper", "b": "blackwell", "g": "blackwell", "m": "amd"}
"""First letter of a machine -> what entries call its generation."""
SINGLE_TENSOR = "single_node_tp"
FULL_BYTES_PER_GPU = 1e9
"""Entries give what a variant's weights need in GB."""


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


@dataclass(frozen=True, slots=True)
class OnMachine:
    """By which keys an entry says what is different on a machine."""

    spec: HardwareSpec
    gpu: str
    """h200, gb200, mi355x, ..."""
    generation: str
    brand: str

    @classmethod
    def named(cls, hardware: str) -> OnMachine:
        """Of a catalogue name."""
        spec = load_hardware(hardware)
        gpu = spec.name.removeprefix("hgx-").removesuffix("-nvl72")
        return cls(spec, gpu, FAMILIES.get(gpu[:1], ""), spec.gpu.vendor)

    def of(self, value: Any) -> Any:
        """A value that may differ by exact GPU, generation or brand; none where no key fits."""
        if not isinstance(value, dict):
            return value
        return next((value[key] for key in (self.gpu, self.generation, self.brand, "default") if key in value), None)

    def override(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """What a part changes for the generation, else for all of NVIDIA."""
        changes = inner(part, "hardware_overrides")
        found = changes.get(self.generation) or (changes.get("nvidia") if self.brand == "nvidia" else None)
        return mapping(found, "hardware_overrides")

    def exact(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """What a part changes for this GPU alone."""
        return mapping(inner(part, "hardware_overrides").get(self.gpu), "hardware_overrides")


def read_on(source: Source, hardware: str) -> Manifest:
    """Every strategy and variant of an entry on a machine, named strategy/variant; pairs and unknown strategies left out.

    The rules are those of the collection's own command builder (src/lib/command-synthesis.js of vllm-project/recipes, 2026-08):
    later words win, a strategy's changes for a generation take the place of the entry's, features that are on come last.
    """
    entry = next(document for document in source.documents if _is_entry(document))
    on = OnMachine.named(hardware)
    listed = [str(name) for name in listing(entry.get("compatible_strategies"), "compatible_strategies")]
    strategies = [name for name in _offered(entry, listed) if _takes(entry, name, listed, on)]
    known = [name for name in strategies if name in STRATEGIES]
    if not known:
        raise ProblemError(f"none of the recipe's strategies is known here for {hardware} ({', '.join(listed)})")
    services = tuple(service for name in known for service in _variants(entry, name, on))
    if not services:
        raise ProblemError(f"none of the recipe's variants is for {hardware}")
    left = [name for name in listed if name not in known]
    model = inner(entry, "model")
    remarks = [f"strategies left out: {', '.join(left)}"] if left else []
    if model.get("min_vllm_version"):
        remarks.append(f"the recipe needs vLLM {model['min_vllm_version']} or newer")
    return Manifest("vLLM recipe", services, (hardware,), alternatives=True, remarks=tuple(remarks))


def _offered(entry: Mapping[str, Any], listed: list[str]) -> list[str]:
    """Strategies that are listed, and those that single machines are granted."""
    gates = inner(entry, "strategy_hardware")
    granted = [name for name, gate in gates.items() if name not in listed and "supported" in mapping(gate, name).values()]
    return [*listed, *granted]


def _takes(entry: Mapping[str, Any], strategy: str, listed: list[str], on: OnMachine) -> bool:
    """Whether a strategy is offered on a machine."""
    gate = on.of(inner(entry, "strategy_hardware", strategy))
    return str(gate) == "supported" if gate is not None else strategy in listed


def _variants(entry: Mapping[str, Any], strategy: str, on: OnMachine) -> Iterator[EngineService]:
    variants = inner(entry, "variants") or {"default": {}}
    for name, value in variants.items():
        variant = mapping(value, f"variants.{name}")
        supported = listing(variant.get("supported_hardware"), f"variants.{name}.supported_hardware")
        if not supported or on.gpu in supported:
            yield _service(f"{strategy}/{name}", entry, (name, variant), strategy, on)


def _service(
    name: str, entry: Mapping[str, Any], named: tuple[str, Mapping[str, Any]], strategy: str, on: OnMachine
) -> EngineService:
    """named : a variant with its name."""
    model, laid, variant = inner(entry, "model"), STRATEGIES[strategy], named[1]
    own = inner(entry, "strategy_overrides", strategy)
    changes = [on.override(own)] if on.override(own) else [on.override(entry), on.override(variant)]
    parts = [model, variant, on.exact(variant), own, *changes, on.exact(own)]
    words = [*_words(model, "base_args"), *_words(variant, "extra_args"), *_words(on.exact(variant), "extra_args")]
    words += [*([EXPERT] if laid.experts else []), laid.parallel, str(_size(entry, variant, strategy, on))]
    words += [laid.over_nodes, str(laid.nodes)] if laid.over_nodes else []
    for part in (own, *changes, on.exact(own)):
        words += [*_words(part, "extra_args"), *_words(part, "vllm_args")]
    words += [word for feature in _features(entry, named, strategy, on) for word in feature]
    environment = {key: str(value) for part in parts for field in ENVIRONMENTS for key, value in inner(part, field).items()}
    served = str(variant.get("model_id") or model["model_id"])
    return EngineService(
        name=name,
        text=shlex.join(["vllm", "serve", served, *_last_of_each(words)]),
        environment=environment,
        nodes=laid.nodes,
        gpus_per_node=on.spec.gpus_per_node,
    )


def _size(entry: Mapping[str, Any], variant: Mapping[str, Any], strategy: str, on: OnMachine) -> int:
    """Ranks of the strategy's kind: all GPUs; of tensor parallelism on one node as the entry says, or one where that holds it."""
    laid, gpus = STRATEGIES[strategy], on.spec.gpus_per_node
    if strategy != SINGLE_TENSOR:
        return gpus if laid.over_nodes else gpus * laid.nodes
    for said in (on.of(variant.get("tp")), on.of(inner(entry, "strategy_overrides", strategy).get("tp"))):
        if said:
            return min(whole(said, "tp", 1), gpus)
    needed = float(whole(variant.get("vram_minimum_gb") or 0, "vram_minimum_gb"))
    return 1 if 0 < needed <= on.spec.gpu.hbm_nominal_bytes.value / FULL_BYTES_PER_GPU else gpus


def _features(
    entry: Mapping[str, Any], named: tuple[str, Mapping[str, Any]], strategy: str, on: OnMachine
) -> Iterator[list[str]]:
    """Options of the features that are on unless somebody switches them off: tool calls, reasoning, and drafts where they are."""
    modes = inner(named[1], "default_modes")
    optional = {*listing(entry.get("opt_in_features"), "opt_in_features")}
    optional |= {*listing(inner(entry, "hardware_opt_in_features").get(on.gpu), "hardware_opt_in_features")}
    for key, value in inner(entry, "features").items():
        feature = mapping(value, f"features.{key}")
        allowed = listing(feature.get("strategies"), f"features.{key}.strategies")
        if (key in optional and key not in modes) or (allowed and strategy not in allowed):
            continue
        held = _mode(feature, modes.get(key), named[0], on) if feature.get("modes") else feature
        yield _words(on.override(held) if "args" in on.override(held) else held, "args")


def _mode(feature: Mapping[str, Any], wanted: Any, variant: str, on: OnMachine) -> dict[str, Any]:
    """The mode of a feature that is taken: the variant's, the feature's, or the first that the machine and the variant have."""
    modes = {key: mapping(value, key) for key, value in inner(feature, "modes").items()}
    usable = {
        key: mode
        for key, mode in modes.items()
        if variant in (listing(mode.get("variants"), "variants") or [variant]) and on.of(inner(mode, "hardware")) != "unsupported"
    }
    first = next((str(key) for key in (wanted, feature.get("default_mode")) if str(key) in usable), next(iter(usable), ""))
    return usable.get(first, {})


def _words(part: Mapping[str, Any], key: str) -> list[str]:
    """Words; an option and its value that stand in one are two."""
    said = [str(word) for word in listing(part.get(key), key)]
    return [part for word in said for part in (word.split(maxsplit=1) if word.startswith("-") else [word])]


def _last_of_each(words: list[str]) -> list[str]:
    """Options with their values; of those that come more than once the last, where the first stood: alike commands read alike."""
    units: list[list[str]] = []
    for word in words:
        if word.startswith("-") or not units:
            units.append([word])
        else:
            units[-1].append(word)
    last = {unit[0].partition("=")[0]: unit for unit in units}
    return [word for unit in last.values() for word in unit]

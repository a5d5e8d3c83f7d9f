"""Bounds of what documents may say: beyond them a number is a slip of the pen, and the models would compute with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import AfterValidator

from cost_models.errors import InputError
from cost_models.specs.base import Fact

if TYPE_CHECKING:
    from cost_models.specs.model import ModelSpec

MOST_LAYERS = 1_000
MOST_EXPERTS = 4_096
MOST_TOKENS = 10**9
"""Of a vocabulary or a context."""
MOST_WIDTH = 10**7
"""Of any other size of a model: hidden, heads, head sizes, ranks, widths of feed-forward networks."""
MOST_PARAMETERS = 1e14
OTHERWISE = {"layers": MOST_LAYERS, "experts": MOST_EXPERTS, "vocab": MOST_TOKENS, "max_context_tokens": MOST_TOKENS}
"""Field -> bound, where it is not MOST_WIDTH."""
EXPERTS = ("num_experts", "n_routed_experts", "num_local_experts", "num_experts_per_tok", "moe_num_experts", "n_shared_experts")
"""Keys of a config.json that count experts."""
LAYERS = ("first_k_dense_replace", "n_layer")
"""Keys of a config.json that count layers without saying so."""
OF_A_LAYER = ("vocab_size_per_layer_input",)
"""Keys of a config.json that speak of layers and count none of them."""
UNCHECKED = ("parameters",)
"""Counts that are only compared."""
MOST_SECONDS = 3600.0
MOST_COEFFICIENT = 1e16
MOST_RATIO = 1e3
"""Of a measured time over a predicted one, and of a predicted over a measured one."""
MOST_EFFICIENCY = 4.0
"""Of a share of a datasheet peak; shipped ones reach 1.6, where a kernel does less than the form counts."""
DIVISORS = ("_efficiency", "_per_s", "sharpness", "_factor", "_share", "tile_tokens", "query_tile")
"""Endings of coefficients that must not be zero."""


def within(least: float, most: float) -> AfterValidator:
    """A datasheet fact between two values, named with its value where it is not."""

    def check(fact: Fact) -> Fact:
        if not least <= fact.value <= most:
            raise ValueError(f"value {fact.value:g} is not between {least:g} and {most:g}")
        return fact

    return AfterValidator(check)


def check_coefficients(coefficients: dict[str, float]) -> dict[str, float]:
    """Coefficients of a calibration entry; raises ValueError naming one that no kernel can have."""
    for name, value in coefficients.items():
        most = MOST_EFFICIENCY if name.endswith("_efficiency") else MOST_SECONDS if _is_time(name) else MOST_COEFFICIENT
        if not 0 <= value <= most:
            raise ValueError(f"{name} {value:g} is not between 0 and {most:g}")
        if value == 0 and name.endswith(DIVISORS) and name != "single_sequence_loss":
            raise ValueError(f"{name} is 0: it is divided by")
    return coefficients


def check_interval(interval: tuple[float, float]) -> tuple[float, float]:
    """An interval; raises ValueError where its ends are in the wrong order."""
    low, high = interval
    if not low <= high:
        raise ValueError(f"goes from {low:g} to {high:g}; the lower end comes first")
    return interval


def check_ratios(interval: tuple[float, float]) -> tuple[float, float]:
    """An interval of ratios of two times; raises ValueError where one is none."""
    if not 1 / MOST_RATIO <= interval[0] <= interval[1] <= MOST_RATIO:
        least, most = 1 / MOST_RATIO, MOST_RATIO
        raise ValueError(
            f"{interval[0]:g} to {interval[1]:g} are no ratios of two times ({least:g} to {most:g}, the smaller first)"
        )
    return interval


def _is_time(name: str) -> bool:
    return name.endswith("_s") and not name.endswith("_per_s")


def check_config(config: dict[str, Any], origin: str) -> None:
    """Raise InputError naming a size in a config.json that no model has, before anything as long as it is made."""
    for place, name, value in _sizes(config, ""):
        counts_layers = ("layer" in name or name in LAYERS) and name not in OF_A_LAYER
        most = MOST_LAYERS if counts_layers else MOST_EXPERTS if name in EXPERTS else MOST_TOKENS
        if abs(value) > most:
            raise InputError(f"{origin}: {place} {value:.6g} is more than any model has (at most {most:,})")


def check_model(model: ModelSpec, origin: str) -> ModelSpec:
    """A model from a user's file; raises InputError naming a size that no model has, or two that contradict each other."""
    if model.dense_layers > model.layers:
        raise InputError(f"{origin}: {model.dense_layers} dense layers of {model.layers} layers")
    for place, name, value in _sizes(model.model_dump(), ""):
        most = OTHERWISE.get(name, MOST_WIDTH)
        if value > most and name not in UNCHECKED:
            raise InputError(f"{origin}: {place} {value:.6g} is more than any model has (at most {most:,})")
    if model.moe is not None and model.moe.top_k > model.moe.experts:
        raise InputError(f"{origin}: {model.moe.top_k} experts per token of {model.moe.experts} experts")
    if model.moe is not None and model.moe.experts < 2:
        raise InputError(f"{origin}: {model.moe.experts} expert is a dense layer: describe it as one")
    if model.moe is not None and model.moe.top_k_groups > model.moe.groups:
        raise InputError(f"{origin}: {model.moe.top_k_groups} groups per token of {model.moe.groups} groups")
    if (parameters := model.parameters()) > MOST_PARAMETERS:
        raise InputError(f"{origin}: {parameters:.3g} parameters, at most {MOST_PARAMETERS:g} are priced")
    return model


def _sizes(data: Any, place: str, name: str = "") -> list[tuple[str, str, int]]:
    """(place, field, value) of every whole number of a document; those of a list belong to the field of the list."""
    if isinstance(data, dict):
        return [size for key, value in data.items() for size in _sizes(value, f"{place}.{key}" if place else str(key), str(key))]
    if isinstance(data, list | tuple):
        return [size for at, value in enumerate(data) for size in _sizes(value, f"{place}.{at}", name)]
    return [(place, name, data)] if isinstance(data, int) and not isinstance(data, bool) else []

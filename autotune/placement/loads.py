"""Recorded expert loads: tokens per layer and expert, one scenario per file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autotune.errors import ProblemError
from autotune.placement.arrays_file import read_npy, read_npz
from autotune.placement.torch_file import read_torch_file
from cost_models.arrays import Floats, Ints, as_floats
from cost_models.reading import ARRAYS, read_text, reading, shortened
from cost_models.specs.model import ModelSpec

LOAD_KEYS = ("logical_count", "expert_load", "counts", "topk_ids_of_layer")
MOST_TOKENS = 1e15
"""Of one expert in one scenario."""
MOST_CHOSEN = 32
"""Experts of one token at most: a last axis this short holds choices, not counts."""


@dataclass(frozen=True, slots=True)
class Loads:
    """Loads of a model's MoE layers."""

    names: tuple[str, ...]
    """Of the scenarios."""
    counts: Floats
    """(scenarios, MoE layers, experts)."""

    def layer(self, index: int) -> Floats:
        """(scenarios, experts)."""
        return as_floats(self.counts[:, index])

    @property
    def skew(self) -> Floats:
        """Busiest expert / mean, (scenarios, layers)."""
        return as_floats(self.counts.max(axis=2) / self.counts.mean(axis=2))

    @property
    def drift(self) -> float:
        """Mean over layers of half the summed difference between the two scenarios furthest apart; 0 with one scenario."""
        shares = self.counts / self.counts.sum(axis=2, keepdims=True)
        apart = np.abs(shares[:, None] - shares[None]).sum(axis=3).mean(axis=2) / 2
        return float(apart.max())


@dataclass(frozen=True, slots=True)
class Choices:
    """Experts that each token chose."""

    chosen: Ints
    """(MoE layers, tokens, experts per token)."""

    def layer(self, index: int) -> Ints:
        """(tokens, experts per token)."""
        chosen: Ints = self.chosen[index]
        return chosen


def read_choices(paths: list[Path], model: ModelSpec) -> tuple[Loads, Choices]:
    """Loads, one scenario per file, and the choices per token of all files together; raises ProblemError as `read_loads` does,
    and for files that hold only counts.
    """
    arrays = [_array(path) for path in paths]
    loads = _loads(paths, arrays, model)
    chosen = [_choices(path, array, model) for path, array in zip(paths, arrays, strict=True)]
    return loads, Choices(np.concatenate(chosen, axis=1))


def _choices(path: Path, array: Any, model: ModelSpec) -> Ints:
    if not _holds_choices(array, model):
        raise ProblemError(
            f"{path}: holds counts; nodes per token need the experts that each token chose, [layers, tokens, experts per token] "
            "(vLLM: --enable-return-routed-experts)"
        )
    by_layer = _by_layer(path, array, model)
    whole = len(by_layer) == model.layers
    return np.asarray(by_layer[list(model.moe_positions)] if whole else by_layer, dtype=np.int64)


def read_loads(paths: list[Path], model: ModelSpec) -> Loads:
    """One scenario per file; raises ProblemError naming what is wrong with which file.

    Formats: SGLang recorder dumps (.pt, without torch), .npz and .npy, .csv; arrays [layers, experts], or [steps, layers,
    experts] (summed), or chosen experts per token [tokens, layers, top k] or [layers, tokens, top k] (counted). Dense layers
    may be there as rows of zeros.
    """
    return _loads(paths, [_array(path) for path in paths], model)


def _loads(paths: list[Path], arrays: list[Any], model: ModelSpec) -> Loads:
    if model.moe is None:
        raise ProblemError(f"{model.name} has no experts to place")
    scenarios = [_scenario(path, array, model) for path, array in zip(paths, arrays, strict=True)]
    return Loads(tuple(path.name for path in paths), as_floats(np.stack(scenarios)))


def _scenario(path: Path, stored: Any, model: ModelSpec) -> Floats:
    array = _counted(path, stored, model)
    moe = model.moe
    assert moe is not None
    if array.shape[1] != moe.experts or array.shape[0] not in (model.layers, model.moe_layers):
        raise ProblemError(
            f"{path}: loads of {array.shape[0]} layers x {array.shape[1]} experts; {model.name} has {model.layers} layers "
            f"({model.moe_layers} with experts) and {moe.experts} experts"
        )
    if not np.isfinite(array).all() or (array < 0).any() or (array > MOST_TOKENS).any():
        raise ProblemError(f"{path}: loads must be finite and not negative, at most {MOST_TOKENS:.0e} tokens per expert")
    if array.shape[0] == model.layers:
        array = array[list(model.moe_positions)]
    empty = np.flatnonzero(array.sum(axis=1) == 0)
    if len(empty):
        raise ProblemError(
            f"{path}: no tokens in MoE layer {model.moe_positions[int(empty[0])]} (of {len(empty)} such); was it recorded?"
        )
    return as_floats(array)


def _array(path: Path) -> Any:
    """The array of a file, as stored."""
    kinds = {".pt": _from_torch, ".npz": _from_npz, ".npy": read_npy, ".csv": _from_csv}
    if path.suffix not in kinds:
        raise ProblemError(f"{shortened(path)}: expert loads are read from {', '.join(kinds)}")
    return np.asarray(kinds[path.suffix](path))


def _from_torch(path: Path) -> Any:
    return _named(path, read_torch_file(path))


def _from_npz(path: Path) -> Any:
    return _named(path, read_npz(path))


def _from_csv(path: Path) -> Any:
    with reading(path, "not a table of numbers, one layer per line", ProblemError):
        text = read_text(path, ARRAYS)
        if not text.strip():
            raise ProblemError(f"{path}: is empty")
        return np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2)


def _named(path: Path, found: Any) -> Any:
    """The loads in a file of several arrays."""
    if isinstance(found, np.ndarray):
        return found
    arrays = {k: v for k, v in found.items() if isinstance(v, np.ndarray)} if isinstance(found, dict) else {}
    for key in LOAD_KEYS:
        if key in arrays:
            return arrays[key]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise ProblemError(f"{path}: none of {', '.join(LOAD_KEYS)} among its arrays: {', '.join(arrays) or 'none'}")


def _counted(path: Path, array: Any, model: ModelSpec) -> Any:
    """Counts by layer and expert, whatever was stored."""
    assert model.moe is not None
    if array.dtype.kind not in "iuf":
        raise ProblemError(f"{path}: holds {array.dtype}, not numbers")
    if array.ndim == 2:
        return array
    if array.ndim != 3:
        raise ProblemError(f"{path}: {array.ndim} dimensions; expected [layers, experts], with steps or tokens as a third")
    if array.shape[2] == model.moe.experts:
        return array.sum(axis=0, dtype=np.float64)  # whole numbers would wrap around
    if not _holds_choices(array, model):
        raise ProblemError(f"{path}: shape {array.shape} is neither counts of {model.moe.experts} experts nor choices per token")
    return np.stack([np.bincount(layer.ravel(), minlength=model.moe.experts) for layer in _by_layer(path, array, model)])


def _holds_choices(array: Any, model: ModelSpec) -> bool:
    """Whether an array's last axis is the experts of one token."""
    assert model.moe is not None
    return bool(array.ndim == 3 and array.shape[2] <= min(MOST_CHOSEN, model.moe.experts - 1) and array.dtype.kind in "iu")


def _by_layer(path: Path, array: Any, model: ModelSpec) -> Any:
    """Choices (layers, tokens, experts per token), whichever of the first two came first."""
    assert model.moe is not None
    by_layer = array if array.shape[0] in (model.layers, model.moe_layers) else array.transpose(1, 0, 2)
    if by_layer.size and (by_layer.min() < 0 or by_layer.max() >= model.moe.experts):
        raise ProblemError(
            f"{path}: experts {by_layer.min()}..{by_layer.max()} chosen, {model.name} has 0..{model.moe.experts - 1}"
        )
    return by_layer

"""What commands print with --json where no other room has a document for it; the rest print documents of their own."""

from __future__ import annotations

from typing_extensions import TypedDict

from autotune.documents.prediction import Prediction, PrefillPrediction, ServicePrediction, Uncertainty
from autotune.validating.statistics import Decision, Summary
from cost_models.specs.base import Spec
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from search_spaces.schema import EngineSpec


class PredictedDecode(Prediction):
    """`autotune predict` of a decode pool."""

    intervals: Uncertainty


class PredictedPrefill(PrefillPrediction):
    """`autotune predict` of a prefill pool."""

    intervals: Uncertainty


class PredictedService(ServicePrediction):
    """`autotune predict` of a service."""

    steps: dict[str, Prediction | PrefillPrediction]
    """A full step of each pool."""


class ValidatedCase(Spec):
    """A published measurement beside its prediction: errors are relative, positive when the prediction is high."""

    id: str
    named: bool
    throughput_error: float
    tpot_error: float | None
    ttft_error: float | None


class ValidatedFile(Spec):
    """The cases of one file."""

    title: str
    cases: tuple[ValidatedCase, ...]
    named: Summary
    decisions: tuple[Decision, ...]


class HardwareNumbers(Spec):
    """Computed from an entry of the hardware catalogue."""

    scale_out_bytes_per_s_per_gpu: float
    host_link_bytes_per_s_per_gpu: float
    default_gpus: int


class HardwareShown(HardwareSpec):
    """`autotune hw show`."""

    derived: HardwareNumbers


class ModelNumbers(Spec):
    """Computed from a model."""

    parameters: float
    active_parameters: float
    bf16_state_bytes_by_context: dict[int, float]
    """State that one sequence keeps, by its tokens."""


class ModelShown(ModelSpec):
    """`autotune model show`."""

    derived: ModelNumbers


class EngineNumbers(Spec):
    """Computed from an engine's document."""

    newest: str
    knobs_of_newest: tuple[str, ...]


class EngineShown(EngineSpec):
    """`autotune engine show`."""

    derived: EngineNumbers


HardwareListed = TypedDict(
    "HardwareListed",
    {"name": str, "title": str, "GPUs per node": str, "domain": str, "HBM": str, "NIC per GPU": str},
)
ModelListed = TypedDict(
    "ModelListed", {"name": str, "title": str, "parameters": str, "active": str, "precisions": str, "not modelled": str}
)
EngineListed = TypedDict("EngineListed", {"name": str, "title": str, "versions": str, "launch scripts": str})

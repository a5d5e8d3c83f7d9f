"""Hugging Face checkpoints: config.json and the quantisation files beside it, as a model and what its matrices are stored in.

One entry per architecture in `registry.ARCHITECTURES`: a reader of its config.json and the names that its modules have,
by which quantisation files exclude them.
"""

from cost_models.huggingface.folder import CheckpointFiles, announced, model_from_files
from cost_models.huggingface.precision import Stored, stored_precision
from cost_models.huggingface.registry import ARCHITECTURES, NOT_MODELLED, Architecture, model_from_config

__all__ = [
    "ARCHITECTURES", "NOT_MODELLED", "Architecture", "CheckpointFiles", "Stored", "announced", "model_from_config",
    "model_from_files", "stored_precision",
]  # fmt: skip

"""Drafters with weights of their own, as the small models that they are: what they weigh, keep and cost.

EAGLE-3 (arXiv 2503.01840) drafts token by token, a pass for each; DFlash (arXiv 2602.06036) and DSpark (arXiv 2607.05147) draft
a whole block in one pass. All read hidden states of several layers of the target, fused by one matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from cost_models.attention.base import AttentionKind
from cost_models.attention.mla import MlaSpec
from cost_models.errors import UnsupportedModelError
from cost_models.huggingface.fields import flat, gqa, latent_sizes
from cost_models.specs.base import Spec
from cost_models.specs.matrix import Matrix
from cost_models.specs.model import ModelSpec

DraftKindName = Literal["eagle3", "dflash", "dspark"]
FUSED_LAYERS = 3
"""Of the target, that EAGLE-3 reads."""


@dataclass(frozen=True, slots=True)
class DraftKind:
    """How a kind of drafter works."""

    whole_block: bool
    """All drafts come from one pass over a block; otherwise each takes a pass."""
    reads_embedding: bool
    """Its first layer reads the token's embedding beside the hidden state: its input projection is twice as wide."""
    own_head: bool
    """It has a head over its own vocabulary; otherwise it uses the target's."""
    corrects: bool = False
    """A low-rank (Markov) head corrects each draft by the one before it."""


DRAFT_KINDS: dict[DraftKindName, DraftKind] = {
    "eagle3": DraftKind(whole_block=False, reads_embedding=True, own_head=True),
    "dflash": DraftKind(whole_block=True, reads_embedding=False, own_head=False),
    "dspark": DraftKind(whole_block=True, reads_embedding=False, own_head=False, corrects=True),
}
ARCHITECTURES: dict[str, DraftKindName] = {
    "LlamaForCausalLMEagle3": "eagle3",
    "Eagle3DeepseekV2ForCausalLM": "eagle3",
    "DFlashDraftModel": "dflash",
    "DSparkDraftModel": "dspark",
}
"""Architecture of a drafter's configuration -> its kind."""


class Drafter(Spec):
    """One drafter, in BF16. Its token embedding is the target's and is not counted."""

    name: str
    target: str
    """Preset that it drafts for."""
    kind: DraftKindName
    layers: ModelSpec
    """Its layers as a model, whose vocabulary is that of its head."""
    fused_layers: int = Field(gt=0)
    """Layers of the target whose hidden states it reads."""
    markov_rank: int = Field(default=0, ge=0)
    source: str

    @property
    def works(self) -> DraftKind:
        """How its kind works."""
        return DRAFT_KINDS[self.kind]

    @property
    def fuse(self) -> Matrix:
        """Hidden states of the target to its own width."""
        width = self.layers.hidden
        return Matrix("draft_fuse", "attention_in", width, self.fused_layers * width, 1, "replicated")

    @property
    def head(self) -> Matrix:
        """What turns its hidden states into logits."""
        return Matrix("draft_head", "lm_head", self.layers.vocab, self.layers.hidden, 1, "column")

    @property
    def embedding_input(self) -> Matrix | None:
        """The other half of the first layer's input projections, which multiplies the token's embedding."""
        first = self.layers.in_order()[0].attention
        if not self.works.reads_embedding or first is None:
            return None
        read = [m for m in first.matrices(self.layers.hidden, 1) if m.family == "attention_in" and m.k == self.layers.hidden]
        return Matrix("draft_embedding_in", "attention_in", sum(m.n for m in read), self.layers.hidden, 1, read[0].sharding)

    @property
    def correction(self) -> Matrix | None:
        """From the Markov rank to the vocabulary; the matrix into the rank is a look-up of as many parameters."""
        if not self.works.corrects:
            return None
        return Matrix("draft_markov", "lm_head", self.layers.vocab, self.markov_rank, 1, "replicated")

    def matrices(self) -> list[Matrix]:
        """All that it stores."""
        correction = self.correction
        extra = [self.embedding_input, correction, correction, self.head if self.works.own_head else None]
        return [*self.layers.layer_matrices(), self.fuse, *(matrix for matrix in extra if matrix)]

    def parameters(self) -> int:
        """Without norms, which are less than a thousandth."""
        return sum(matrix.parameters for matrix in self.matrices())


def drafter_from_config(config: Mapping[str, Any], *, name: str, target: str, source: str) -> Drafter:
    """A drafter of its configuration (config.json as SpecForge, TorchSpec and the engines read it).

    Raises UnsupportedModelError for an architecture that is not known, and for a key that is missing.
    """
    named = config.get("architectures") or ["none"]
    kind = ARCHITECTURES.get(str(named[0]))
    if kind is None:
        raise UnsupportedModelError(f"{source}: drafter {named[0]} is not modelled; known: {', '.join(ARCHITECTURES)}")
    try:
        fields = {"max_position_embeddings": 1, **flat(config)}
        attention: AttentionKind = MlaSpec(**latent_sizes(fields)) if fields.get("kv_lora_rank") else gqa(fields)
        block = fields.get("dflash_config") or {}
        eagle = fields.get("eagle_config") or {}
        ids = block.get("target_layer_ids") or eagle.get("eagle_aux_hidden_state_layer_ids") or ()
        layers = ModelSpec.uniform(
            layers=fields["num_hidden_layers"],
            attention=attention,
            dense_intermediate=fields["intermediate_size"],
            name=name,
            title=name,
            source=source,
            hidden=fields["hidden_size"],
            vocab=fields.get("draft_vocab_size") or fields["vocab_size"],
            max_context_tokens=fields["max_position_embeddings"],
        )
        return Drafter(
            name=name,
            target=target,
            kind=kind,
            layers=layers,
            fused_layers=fields.get("target_layers") or len(ids) or FUSED_LAYERS,
            markov_rank=block["markov_rank"] if DRAFT_KINDS[kind].corrects else 0,
            source=source,
        )
    except KeyError as missing:
        raise UnsupportedModelError(f"{source}: drafter {named[0]} needs the key {missing}, which is absent") from missing
    except (ValidationError, ValueError, TypeError, AttributeError) as error:
        raise UnsupportedModelError(f"{source}: drafter {named[0]}: {' '.join(str(error).split())[:200]}") from error


@functools.cache
def known_drafters() -> dict[str, Drafter]:
    """Published drafters by name."""
    text = resources.files("cost_models").joinpath("data", "drafters.yaml").read_text(encoding="utf-8")
    found = (
        drafter_from_config(e["config"], name=e["name"], target=e["target"], source=e["source"]) for e in yaml.safe_load(text)
    )
    return {drafter.name: drafter for drafter in found}


def find_drafter(name: str) -> Drafter | None:
    """A published drafter by its exact name (case aside); none for one whose shapes are not at hand."""
    return next((drafter for known, drafter in known_drafters().items() if known.casefold() == name.casefold()), None)

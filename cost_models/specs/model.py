"""Model specification: layers in groups of one kind, each with the matrices of its attention and feed-forward.

One list of matrices serves parameter counts, memory by shard and the GEMMs of a step, so the
three cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator

from cost_models.arrays import Floats, as_floats
from cost_models.attention.base import AttentionKind
from cost_models.attention.registry import Attention
from cost_models.specs.base import Spec
from cost_models.specs.matrix import Matrix
from cost_models.specs.precision import PrecisionRecipe

K = TypeVar("K", bound=Hashable)


class DenseSpec(Spec):
    """A dense feed-forward block; SwiGLU with fused gate and up, or without a gate."""

    kind: Literal["dense"] = "dense"
    intermediate: int = Field(gt=0)
    gated: bool = True

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        return [
            Matrix("ffn_gate_up", "dense_ffn", (1 + self.gated) * self.intermediate, hidden, layers, "column"),
            Matrix("ffn_down", "dense_ffn", hidden, self.intermediate, layers, "row"),
        ]

    def vector_parameters(self, hidden: int, layers: int) -> int:  # noqa: ARG002
        return 0


class MoeSpec(Spec):
    """Routed and shared experts; SwiGLU with fused gate and up, or without a gate."""

    kind: Literal["moe"] = "moe"
    experts: int = Field(gt=0)
    top_k: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    shared_intermediate: int = Field(default=0, ge=0)
    """Width of all shared experts together; 0 where there are none."""
    groups: int = Field(default=1, gt=0)
    top_k_groups: int = Field(default=1, gt=0)
    """Group-limited routing: the top_k experts come from this many of the groups."""
    bias: bool = False
    correction_bias: bool = False
    latent: int | None = Field(default=None, gt=0)
    """Width that routed experts read and write, and that is dispatched, where it is not the hidden size."""
    gated: bool = True
    """SwiGLU; otherwise one matrix up and one down (squared ReLU)."""
    router_fp32: bool = False
    """The router is multiplied in FP32, without tensor cores (vLLM 0.12 to 0.33, SGLang 0.5.9)."""
    shared_gate: bool = False
    """The shared expert's output is scaled by a learned number per token."""

    def routed_hidden(self, hidden: int) -> int:
        """Width that is dispatched and that routed experts work in."""
        return self.latent or hidden

    @property
    def gemm_intermediate(self) -> float:
        """Intermediate width at which a gated expert has the weights and FLOPs of this one: two matrices for three."""
        return self.intermediate if self.gated else self.intermediate * 2 / 3

    def expert_parameters(self, hidden: int) -> int:
        """Parameters of one routed expert."""
        return (3 if self.gated else 2) * self.routed_hidden(hidden) * self.intermediate

    def matrices(self, hidden: int, layers: int) -> list[Matrix]:
        inner, ups = self.routed_hidden(hidden), 2 if self.gated else 1
        found = [
            Matrix("router", "router_fp32" if self.router_fp32 else "router", self.experts, hidden, layers, "replicated"),
            Matrix("expert_gate_up", "experts", ups * self.intermediate, inner, layers, "column", self.experts),
            Matrix("expert_down", "experts", inner, self.intermediate, layers, "row", self.experts),
        ]
        if self.latent:
            found += [
                Matrix("latent_in", "shared_expert", inner, hidden, layers, "replicated"),
                Matrix("latent_out", "shared_expert", hidden, inner, layers, "replicated"),
            ]
        if self.shared_intermediate:
            found += [
                Matrix("shared_gate_up", "shared_expert", ups * self.shared_intermediate, hidden, layers, "column"),
                Matrix("shared_down", "shared_expert", hidden, self.shared_intermediate, layers, "row"),
            ]
        return found

    def vector_parameters(self, hidden: int, layers: int) -> int:
        expert_bias = self.experts * (2 * self.intermediate + hidden) + self.experts if self.bias else 0
        gate = hidden if self.shared_gate else 0
        return layers * (expert_bias + (self.experts if self.correction_bias else 0) + gate)


FeedForward = DenseSpec | MoeSpec


class LayerGroup(Spec):
    """Layers that are alike: priced once, counted often."""

    positions: tuple[int, ...] = Field(min_length=1)
    """Where in the model they are, counted from 0."""
    attention: Attention | None = Field(default=None, discriminator="kind")
    """None: a block without token mixing."""
    ffn: FeedForward | None = Field(default=None, discriminator="kind")
    """None: a block without a feed-forward part."""

    @property
    def count(self) -> int:
        return len(self.positions)

    @property
    def kind(self) -> str:
        """What its time is listed under."""
        return f"{self.ffn.kind}_layers" if self.ffn else "mixer_layers"


class PublishedCount(Spec):
    """A parameter count to check the specification against: exact, or as the model card rounds it."""

    parameters: int
    elsewhere: int = 0
    """Of these, outside the model that is priced: a vision tower, draft modules."""
    source: str


class ModelSpec(Spec):
    """A decoder-only transformer as the cost models see it."""

    name: str
    title: str
    source: str
    architecture: str = ""
    """As engines know it, by config.json; empty where no config was read."""
    hidden: int = Field(gt=0)
    groups: tuple[LayerGroup, ...] = Field(min_length=1)
    """Every layer is in one of them; `ModelSpec.of_layers` makes them from a list of layers."""
    vocab: int = Field(gt=0)
    tied_embeddings: bool = False
    mtp_layers: int = Field(default=0, ge=0)
    """Multi-token-prediction modules in the checkpoint (not part of the main model)."""
    max_context_tokens: int = Field(gt=0)
    attention_output_bias: bool = False
    residual_streams: int = Field(default=1, ge=1)
    """Hyper-connections keep several residual streams."""
    checkpoints: dict[str, str] = Field(default_factory=dict)
    """Precision recipe -> published checkpoint."""
    stored: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Precision recipe -> dtypes of the fields that its checkpoint stores otherwise than the recipe says."""
    published: PublishedCount | None = None
    flags: tuple[str, ...] = ()
    """What the cost models leave out for this model, said by name."""

    @model_validator(mode="after")
    def _layers_are_whole(self) -> ModelSpec:
        placed = sorted(position for group in self.groups for position in group.positions)
        if placed != list(range(len(placed))):
            raise ValueError(f"groups: their positions must be every layer from 0 to {len(placed) - 1} once")
        if not self.attentions:
            raise ValueError("groups: no layer has attention")
        if len({group.ffn for group in self.groups if isinstance(group.ffn, MoeSpec)}) > 1:
            raise ValueError("groups: experts of two shapes are not modelled")
        return self

    @classmethod
    def of_layers(cls, pattern: Sequence[tuple[AttentionKind | None, FeedForward | None]], /, **document: Any) -> ModelSpec:
        """A model from the attention and feed-forward of each layer, in order; equal layers make one group.

        Raises ValueError where `layers` in the document is another number.
        """
        stated = document.pop("layers", len(pattern))
        if stated != len(pattern):
            raise ValueError(f"{len(pattern)} layers are described, {stated} are stated")
        positions: dict[tuple[AttentionKind | None, FeedForward | None], list[int]] = {}
        for number, layer in enumerate(pattern):
            positions.setdefault(layer, []).append(number)
        groups = [
            {"positions": tuple(found), "attention": attention, "ffn": ffn} for (attention, ffn), found in positions.items()
        ]
        return cls.model_validate({**document, "groups": groups})

    @classmethod
    def uniform(
        cls,
        *,
        layers: int,
        attention: AttentionKind,
        moe: MoeSpec | None = None,
        dense_layers: int = 0,
        dense_intermediate: int = 0,
        **document: Any,
    ) -> ModelSpec:
        """A model with one attention kind, whose first `dense_layers` layers have a dense FFN and the others experts."""
        dense = layers if moe is None else dense_layers
        if not 0 <= dense <= layers:
            raise ValueError(f"{dense:,} dense layers of {layers:,}")
        ffns = [DenseSpec(intermediate=dense_intermediate)] * dense if dense else []
        return cls.of_layers([(attention, ffn) for ffn in [*ffns, *[moe] * (layers - dense)]], **document)

    @property
    def layers(self) -> int:
        return sum(group.count for group in self.groups)

    @property
    def moe(self) -> MoeSpec | None:
        """The experts, which are alike in all layers that have any."""
        return next((group.ffn for group in self.groups if isinstance(group.ffn, MoeSpec)), None)

    @property
    def moe_positions(self) -> tuple[int, ...]:
        """Layers with experts, counted from 0."""
        return tuple(sorted(p for group in self.groups if isinstance(group.ffn, MoeSpec) for p in group.positions))

    @property
    def moe_layers(self) -> int:
        return sum(group.count for group in self.groups if isinstance(group.ffn, MoeSpec))

    @property
    def dense_layers(self) -> int:
        """Layers without experts."""
        return self.layers - self.moe_layers

    @property
    def attentions(self) -> dict[AttentionKind, int]:
        """Distinct attention kinds and how many layers have each, in order of appearance."""
        return _counted((group.attention, group.count) for group in self.groups)

    @property
    def ffns(self) -> dict[FeedForward, int]:
        """Distinct feed-forward kinds and how many layers have each, dense ones first."""
        dense = _counted((group.ffn, group.count) for group in self.groups if not isinstance(group.ffn, MoeSpec))
        return dense | _counted((group.ffn, group.count) for group in self.groups if isinstance(group.ffn, MoeSpec))

    @property
    def heads(self) -> int:
        """Attention heads that every layer has: what tensor parallelism must divide."""
        return math.gcd(*(kind.shardable_heads for kind in self.attentions))

    def layer_matrices(self) -> list[Matrix]:
        """Matrices inside the transformer layers."""
        matrices = [m for kind, count in self.attentions.items() for m in kind.matrices(self.hidden, count)]
        return matrices + [m for ffn, count in self.ffns.items() for m in ffn.matrices(self.hidden, count)]

    def head_matrices(self) -> list[Matrix]:
        """Embedding and lm_head; one matrix where they are tied."""
        embedding = Matrix("embedding", "embedding", self.vocab, self.hidden, 1, "column")
        lm_head = Matrix("lm_head", "lm_head", self.vocab, self.hidden, 1, "column")
        return [lm_head] if self.tied_embeddings else [embedding, lm_head]

    def matrices(self) -> list[Matrix]:
        return self.layer_matrices() + self.head_matrices()

    @property
    def draft_layers(self) -> tuple[LayerGroup, ...]:
        """What an MTP module repeats: the last whole layer, with experts where there are any, or the last blocks where
        attention and feed-forward are layers of their own (attention proper before recurrent mixers)."""
        groups = sorted(self.groups, key=lambda group: -max(group.positions))
        ffns = [group for group in groups if isinstance(group.ffn, MoeSpec if self.moe else DenseSpec)]
        whole = [group for group in ffns if group.attention]
        mixers = [(group.attention.fixed_state, number) for number, group in enumerate(groups) if group.attention]
        return tuple(whole[:1]) or (groups[min(mixers)[1]], *ffns[:1])

    def mtp_matrices(self) -> list[Matrix]:
        """One MTP module: a whole MoE layer plus the projection of [hidden; embedding] (arXiv 2412.19437, 2.2)."""
        if not self.mtp_layers or not self.moe:
            return []
        parts = [part for group in self.draft_layers for part in (group.attention, group.ffn) if part is not None]
        layer = [matrix for part in parts for matrix in part.matrices(self.hidden, 1)]
        return [*layer, Matrix("mtp_proj", "attention_in", self.hidden, 2 * self.hidden, 1, "replicated")]

    def vector_parameters(self) -> int:
        """Norms and biases: uncounted in GEMMs, counted in totals."""
        norms = sum(group.count * ((group.attention is not None) + (group.ffn is not None)) for group in self.groups)
        output_bias = sum(self.attentions.values()) * self.hidden if self.attention_output_bias else 0
        ffn = sum(kind.vector_parameters(self.hidden, count) for kind, count in self.ffns.items())
        attention = sum(kind.vector_parameters(count) for kind, count in self.attentions.items())
        outputs = (2 + self.residual_streams) * self.residual_streams
        site = self.residual_streams * self.hidden * outputs + outputs + 3  # hyper_connections.py: two sites a layer
        mixing = 2 * self.layers * site if self.residual_streams > 1 else 0
        return (norms + 1) * self.hidden + output_bias + ffn + attention + mixing

    def parameters(self) -> int:
        """Exact parameter count of the main model."""
        return sum(m.parameters for m in self.matrices()) + self.vector_parameters()

    def active_parameters(self) -> int:
        """Parameters that one token multiplies with (routed experts: top_k of experts; no embedding lookup)."""
        total = 0.0
        for m in self.matrices():
            if m.family == "embedding":
                continue
            share = self.moe.top_k / self.moe.experts if m.family == "experts" and self.moe else 1.0
            total += m.parameters * share
        return round(total)

    def state_bytes(self, context_tokens: ArrayLike, recipe: PrecisionRecipe, tp: ArrayLike = 1, dcp: ArrayLike = 1) -> Floats:
        """Keys, latents and recurrent state of one sequence in all layers on one of tp ranks [B].

        dcp : ranks that share the sequence's tokens, where a kind's ranks can.
        """
        layers = self.attentions.items()
        return as_floats(sum(count * kind.shared_state_bytes(context_tokens, tp, dcp, recipe) for kind, count in layers))

    def context_ranks(self, tp: ArrayLike) -> Floats:
        """Most of tp ranks that can share the tokens of a sequence: as many as in every layer but those with fixed state.

        1 where a layer keeps tokens that its ranks cannot share out, and where none keeps any.
        """
        most = [kind.context_ranks(tp) for kind in self.attentions if not kind.fixed_state]
        return as_floats(np.min(most, axis=0)) if most else np.ones_like(as_floats(tp))

    def in_order(self) -> list[LayerGroup]:
        """The group of each layer."""
        placed = {position: group for group in self.groups for position in group.positions}
        return [placed[position] for position in range(self.layers)]

    def scaled_to_layers(self, layers: int, dense_layers: int | None = None) -> ModelSpec:
        """The same model with another depth: its first layers, repeated beyond the end; at least one keeps experts.

        dense_layers : so many in front are dense and the others have experts, instead of as the model has them. Raises ValueError
        where the model has no such layers.
        """
        pattern = self.in_order()
        if dense_layers is not None:
            dense, sparse = ([g for g in pattern if isinstance(g.ffn, MoeSpec) == kind] for kind in (False, True))
            if dense_layers > layers or (dense_layers and not dense) or (dense_layers < layers and not sparse):
                raise ValueError(
                    f"dense_layers {dense_layers} of {layers}: {self.name} has {len(dense)} dense layers and "
                    f"{len(sparse)} with experts"
                )
            first = [dense[i % len(dense)] for i in range(dense_layers)]
            chosen = first + [sparse[i % len(sparse)] for i in range(layers - dense_layers)]
            return self._of_groups(chosen)
        lead = min(self.moe_positions, default=0)
        chosen = [pattern[i] if i < len(pattern) else pattern[lead + (i - lead) % (len(pattern) - lead)] for i in range(layers)]
        if self.moe and not any(isinstance(group.ffn, MoeSpec) for group in chosen):
            chosen[-1] = pattern[lead]
        return self._of_groups(chosen)

    def _of_groups(self, chosen: Sequence[LayerGroup]) -> ModelSpec:
        """The model with these layers, which nobody published."""
        document = {**self.model_dump(exclude={"groups"}), "published": None}
        return ModelSpec.of_layers([(group.attention, group.ffn) for group in chosen], **document)


def _counted(pairs: Iterable[tuple[K | None, int]]) -> dict[K, int]:
    """Sum of the numbers of equal keys; none is left out."""
    counts: dict[K, int] = {}
    for key, number in pairs:
        if key is not None:
            counts[key] = counts.get(key, 0) + number
    return counts

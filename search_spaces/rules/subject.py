"""What rules look at: an engine version, a model in a precision on hardware, and pools as candidate rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cost_models.arrays import Ints
from cost_models.dispatch import BACKENDS
from cost_models.rows import Rows
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from cost_models.specs.precision import PrecisionRecipe
from search_spaces.schema import Choice, EngineSpec

Bools = NDArray[np.bool_]
Role = Literal["decode", "prefill", "serve"]
"""Of a pool; `serve` prefills and decodes."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Pools of one engine version, model, precision and hardware, as candidate rows."""

    engine: EngineSpec
    version: str
    model: ModelSpec
    recipe: PrecisionRecipe
    hardware: HardwareSpec
    role: Role
    rows: Rows
    options: Mapping[str, str | None] | None = None
    """Of a command line as it was written, by the version's own names; none for a plan, whose scripts are yet to be written."""
    environment: Mapping[str, str] = field(default_factory=dict)
    asked: str | None = None
    """The version as it was asked for: it may lie between two that are known."""

    @property
    def release(self) -> str:
        """The exact release: as asked for, else the one that the version's options were read from."""
        exact = self.asked is not None and self.asked.count(".") > 1
        return self.asked if self.asked and exact else self.engine.release(self.version)

    @property
    def phase(self) -> Literal["decode", "prefill"]:
        """What the pool's steps mainly compute."""
        return "prefill" if self.role == "prefill" else "decode"

    @property
    def experts(self) -> str:
        """Storage dtype of the routed experts; empty for a dense model."""
        return self.recipe.experts if self.model.moe else ""

    @property
    def latent(self) -> bool:
        """Whether attention is latent, as in the DeepSeek family."""
        return any(kind.kind == "mla" for kind in self.model.attentions)

    @property
    def spread(self) -> Bools:
        """Rows whose experts lie on several data-parallel ranks: an all-to-all moves their tokens, (rows,)."""
        return (self.rows.ep > 1) & (self.rows.dp > 1)

    @property
    def tokens(self) -> Ints:
        """Tokens of an attention-DP rank in a step, (rows,)."""
        rows = self.rows
        if self.phase == "prefill":
            return rows.batched_tokens
        return np.asarray(-(-rows.batch // rows.pp) * (1 + rows.drafts), dtype=np.int64)

    def none(self) -> Bools:
        """No row."""
        return np.zeros(len(self.rows), dtype=np.bool_)

    def all(self, holds: bool) -> Bools:
        """Every row, where something holds of them all."""
        return np.full(len(self.rows), holds)

    def at(self, row: int) -> Subject:
        """One of the rows."""
        return dataclasses.replace(self, rows=self.rows.take(np.array([row])))

    def offered(self) -> tuple[Choice, ...]:
        """All-to-all backends of the version that the cost models describe."""
        return self.engine.backend_choices(self.version)

    def name_of(self, choice: Choice) -> str:
        """The cost models' name of a backend in this phase."""
        return choice.model_in(self.phase)

    def by_choice(self) -> Iterator[tuple[Choice, Bools]]:
        """Every backend that some spread rows use, and which, (rows,)."""
        seen: set[str] = set()
        for choice in self.offered():
            name = self.name_of(choice)
            if name in seen:
                continue
            seen.add(name)
            used = self.spread & (self.rows.backend == BACKENDS.index(name))
            if used.any():
                yield choice, used

    def choice(self) -> Choice | None:
        """The backend of a subject of one row; none where it has none, or none that is offered."""
        return next((choice for choice, used in self.by_choice() if used[0]), None)

    def option(self, *names: str) -> str | None:
        """An option's value by any of its names, of a command that was written."""
        given = self.options or {}
        return next((given[name] for name in names if given.get(name) is not None), None)

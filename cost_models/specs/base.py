"""The two bases of every specification: a strict frozen document, and a number with its source."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen document: unknown keys are errors, changes make a new object."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=False,
        allow_inf_nan=False,
        defer_build=True,  # schemas build on first use: --help and short commands stay quick
    )


class Fact(Spec):
    """A datasheet number with where and when it was read; never derated."""

    value: float
    """The number, in the SI unit that the field name states."""
    source: str
    """Document or page the number was read from."""
    accessed: str
    """ISO date on which it was read."""
    note: str | None = None
    """Conflicts between sources, and why this value was taken."""

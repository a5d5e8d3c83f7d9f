"""The calibration document: fitted coefficients with their provenance.

One document per hardware x engine. Coefficients belong to a family (dense_gemm, mla_decode, ...)
and a variant (dtype, backend, ...); each entry says where it comes from and inside which box of
inputs it was measured. Datasheet facts are not in here, nor are safety margins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field

from cost_models.errors import CatalogError, MissingFactError
from cost_models.releases import up_to, version_key
from cost_models.specs.base import Spec
from cost_models.specs.bounds import check_coefficients, check_interval, check_ratios

Status = Literal["measured", "transferred", "assumed", "datasheet"]
"""measured: fitted to timings of this GPU and kernel. transferred: fitted on a sibling GPU or
kernel and scaled by datasheet. assumed: from a published statement or a hand count.
datasheet: no measurement behind it."""

Range = Annotated[tuple[float, float], AfterValidator(check_interval)]
"""Lower and upper end."""
C = TypeVar("C")


class FitReport(Spec):
    """How well the form fitted."""

    method: str
    points: int
    held_out: int
    median_error: float
    """Median absolute relative error of held-out points."""
    p90_error: float
    bias: float | None = None
    """Geometric mean of predicted / measured on held-out rows, minus one."""
    measured_over_predicted_80: Annotated[tuple[float, float], AfterValidator(check_ratios)] | None = None
    """Conformal interval: 80 % of held-out rows lie between these ratios."""


class Entry(Spec):
    """Coefficients of one family and variant."""

    coefficients: Annotated[dict[str, float], AfterValidator(check_coefficients)]
    status: Status
    source: str
    box: dict[str, Range] = Field(default_factory=dict)
    """Range of each input covered by the measurements; empty where there were none."""
    ci95: dict[str, Range] = Field(default_factory=dict)
    """95 % interval of each coefficient, where it was fitted here."""
    fit: FitReport | None = None


class AppliesTo(Spec):
    """Which GPUs and engine the coefficients are for."""

    gpus: tuple[str, ...]
    engine: str


Families = dict[str, dict[str, Entry]]
"""Family -> variant -> coefficients."""


def check_releases(earlier: dict[str, Families]) -> dict[str, Families]:
    """Refuse names that are no releases."""
    for last in earlier:
        if not version_key(last):
            raise ValueError(f"{last!r:.60} is no release, as 0.19 is")
    return earlier


class Calibration(Spec):
    """A calibration document; `autotune schema calibration` publishes its JSON schema."""

    format: Literal["autotune-calibration/1"] = "autotune-calibration/1"
    id: str
    title: str
    applies_to: AppliesTo
    references: tuple[str, ...] = ()
    licence: str = "Apache-2.0"
    date: str
    families: Families = Field(default_factory=dict)
    earlier: Annotated[dict[str, Families], AfterValidator(check_releases)] = Field(default_factory=dict)
    """What held up to and including a release of the engine, by that release: entries that newer ones have otherwise, or lack."""

    def entry(self, family: str, variant: str) -> Entry:
        """The entry of a family and variant; raises MissingFactError naming what is there."""
        variants = self.families.get(family, {})
        if variant not in variants:
            known = ", ".join(sorted(variants)) or "none"
            raise MissingFactError(
                f"calibration {self.id} has no {family} coefficients for {variant} (it has: {known}). "
                "Choose another precision or backend, or calibrate on your hardware"
            )
        return variants[variant]

    def at(self, release: str) -> Calibration:
        """The document as a release of its engine has it, such as 0.14 or 0.14.1; as loaded it is of the newest."""
        return self.with_entries(self.of_earlier_releases(release))

    def of_earlier_releases(self, release: str) -> list[tuple[str, str, Entry]]:
        """(family, variant, entry) that a release has otherwise than the newest; what ended soonest after it comes last."""
        ended = sorted((last for last in self.earlier if up_to(release, last)), key=version_key, reverse=True)
        return [
            (family, variant, entry)
            for last in ended
            for family, variants in self.earlier[last].items()
            for variant, entry in variants.items()
        ]

    def with_entries(self, entries: Iterable[tuple[str, str, Entry]]) -> Calibration:
        """The same document with other (family, variant, entry)."""
        families = {family: dict(variants) for family, variants in self.families.items()}
        for family, variant, entry in entries:
            families.setdefault(family, {})[variant] = entry
        return self.model_copy(update={"families": families})

    def has(self, family: str, variant: str) -> bool:
        return variant in self.families.get(family, {})

    def get(self, family: str, variant: str, kind: type[C]) -> C:
        """Coefficients as the dataclass of their cost model."""
        return self.of(self.entry(family, variant), kind, f"{family}.{variant}")

    def of(self, entry: Entry, kind: type[C], name: str) -> C:
        """An entry's coefficients as a dataclass; raises MissingFactError where they are not its fields."""
        try:
            return kind(**entry.coefficients)
        except TypeError as error:
            raise MissingFactError(f"calibration {self.id}, {name}: {_not_its_fields(entry.coefficients, kind)}") from error


def _not_its_fields(given: Mapping[str, float], kind: type[Any]) -> str:
    """Which coefficients a cost model has that are not given, and which are given that it has not."""
    known = dataclasses.fields(kind)
    needed = [f.name for f in known if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    missing = ", ".join(name for name in needed if name not in given)
    foreign = ", ".join(sorted(set(given) - {field.name for field in known}))
    return " and ".join([f"lacks {missing}"] * bool(missing) + [f"does not know {foreign}"] * bool(foreign))


def _families_of(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The families of a raw document."""
    families, name = document.get("families", {}), f"calibration {document.get('id', '')!s:.80}"
    if not isinstance(families, dict):
        raise CatalogError(f"{name}: families must be a mapping, found {type(families).__name__}")
    for family, variants in families.items():
        if not isinstance(variants, dict):
            kind = type(variants).__name__
            raise CatalogError(f"{name}: family {family!s:.80} must be a mapping of variants, found {kind}")
    return families


def merged(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Raw document `override` on top of `base`, family by family and variant by variant, those of earlier releases too.

    Raises CatalogError where one of them is no mapping.
    """
    older, own = base.get("earlier") or {}, override.get("earlier") or {}
    earlier = {last: _overlaid(older.get(last, {}), own.get(last, {})) for last in {**older, **own}}
    families = _overlaid(_families_of(base), _families_of(override))
    result = {**base, **override, "families": families, "earlier": earlier}
    result.pop("inherits", None)
    return result


def _overlaid(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    families = {family: dict(variants) for family, variants in base.items()}
    for family, variants in override.items():
        families.setdefault(family, {}).update(variants)
    return families

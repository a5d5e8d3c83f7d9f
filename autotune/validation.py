"""Predicted against measured for a file of cases."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from autotune.deployment import Deployment
from autotune.errors import OutputError, ProblemError
from autotune.files import write_whole
from autotune.predicting import predict
from autotune.prediction import Prediction
from autotune.uncertainty import uncertainty
from cost_models.catalog import parse_yaml, read_yaml, validated
from cost_models.specs.base import Spec

MARK_BEGIN = "<!-- autotune validate: begin -->"
MARK_END = "<!-- autotune validate: end -->"


class Measured(Spec):
    """What was measured; at least the throughput."""

    tokens_per_s_per_gpu: float = Field(gt=0)
    tpot_s: float | None = Field(default=None, gt=0)


class Case(Spec):
    """One measured deployment."""

    id: str
    title: str
    source: str
    date: str
    named: bool = True
    """Counts in the headline error; the others are reported beside it."""
    assumptions: tuple[str, ...] = ()
    deployment: Deployment
    measured: Measured


class CaseFile(Spec):
    """A file of cases; `autotune schema case` publishes its JSON schema."""

    format: Literal["autotune-cases/1"] = "autotune-cases/1"
    title: str
    not_expressed: tuple[str, ...] = ()
    cases: tuple[Case, ...] = Field(min_length=1)


class CaseResult(Spec):
    """A case with its prediction."""

    case: Case
    prediction: Prediction

    @property
    def throughput_error(self) -> float:
        """Relative error of tokens/s/GPU; positive when the prediction is high."""
        return self.prediction.tokens_per_s_per_gpu / self.case.measured.tokens_per_s_per_gpu - 1

    @property
    def tpot_error(self) -> float | None:
        measured = self.case.measured.tpot_s
        return None if measured is None else self.prediction.tpot_s / measured - 1

    @property
    def covered(self) -> bool:
        """Whether the measured throughput lies in the 80 % interval."""
        interval = uncertainty(self.prediction).tokens_per_s_per_gpu
        return interval.low <= self.case.measured.tokens_per_s_per_gpu <= interval.high


class Summary(Spec):
    """Errors over a set of cases."""

    cases: int
    mean_absolute_error: float
    median_absolute_error: float
    bias: float
    worst: float
    covered: int
    """Cases whose measured throughput lies in the 80 % interval."""


def load_cases(path: Path | None = None) -> CaseFile:
    """A user's case file, or the published decode cases."""
    if path is not None:
        return validated(CaseFile, read_yaml(path), str(path))
    name = "published_decode.yaml"
    text = resources.files("autotune").joinpath("data", "cases", name).read_text(encoding="utf-8")
    return validated(CaseFile, parse_yaml(text, name), name)


def validate(cases: CaseFile) -> list[CaseResult]:
    """Predict every case."""
    return [CaseResult(case=case, prediction=predict(case.deployment)) for case in cases.cases]


def summarise(results: list[CaseResult]) -> Summary:
    """Errors of tokens/s/GPU over the given results; raises ProblemError when there are none."""
    if not results:
        raise ProblemError("no cases to summarise")
    errors = np.array([result.throughput_error for result in results])
    return Summary(
        cases=len(errors),
        mean_absolute_error=float(np.abs(errors).mean()),
        median_absolute_error=float(np.median(np.abs(errors))),
        bias=float(errors.mean()),
        worst=float(errors[np.argmax(np.abs(errors))]),
        covered=sum(result.covered for result in results),
    )


def markdown_table(cases: CaseFile, results: list[CaseResult]) -> str:
    """The accuracy table of the README."""
    lines = [
        "| measured deployment | tokens/s/GPU predicted | published | error | TPOT predicted | published |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for result in sorted(results, key=lambda r: not r.case.named):
        case, prediction = result.case, result.prediction
        tpot = f"{case.measured.tpot_s * 1e3:.1f} ms" if case.measured.tpot_s else "-"
        title = f"[{case.title}]({case.source})" + ("" if case.named else " *")
        lines.append(
            f"| {title} | {prediction.tokens_per_s_per_gpu:,.0f} | {case.measured.tokens_per_s_per_gpu:,.0f} "
            f"| {result.throughput_error:+.1%} | {prediction.tpot_s * 1e3:.1f} ms | {tpot} |"
        )
    named = summarise([r for r in results if r.case.named])
    lines += [
        "",
        f"Over the {named.cases} cases named beforehand: mean absolute error {named.mean_absolute_error:.1%}, median "
        f"{named.median_absolute_error:.1%}, bias {named.bias:+.1%}, worst {named.worst:+.1%}; {named.covered} of "
        f"{named.cases} lie in their 80 % interval. Rows marked * are reported "
        "but not counted: their set-up is not fully published, or the hardware has no measured kernels yet.",
    ]
    lines += [f"Not expressed: {text}." for text in cases.not_expressed]
    return "\n".join(lines)


def update_between_marks(path: Path, table: str) -> None:
    """Replace the table between the marks of a Markdown file, in one rename."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if MARK_BEGIN not in text or MARK_END not in text:
        raise OutputError(f"{path} lacks the marks {MARK_BEGIN} and {MARK_END}")
    head, rest = text.split(MARK_BEGIN, 1)
    _, tail = rest.split(MARK_END, 1)
    write_whole(path, f"{head}{MARK_BEGIN}\n{table}\n{MARK_END}{tail}")

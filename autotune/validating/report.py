"""Tables of a validation, and the results folder with csv, README and plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from autotune.documents.prediction import ServicePrediction
from autotune.errors import OutputError
from autotune.files import whole_folder, write_whole
from autotune.validating.cases import CaseFile, CaseResult
from autotune.validating.statistics import Summary, decisions, summarise
from cost_models.reading import read_text

TABLES = ("cases.csv", "README.md")
PICTURES = ("predicted_against_measured.png", "residuals.png")
MARK_BEGIN = "<!-- autotune validate: begin -->"
MARK_END = "<!-- autotune validate: end -->"
CSV_COLUMNS = (
    "id", "phase", "named", "source", "hardware", "engine", "measured_tokens_per_s_per_gpu", "predicted_tokens_per_s_per_gpu",
    "error", "low_80", "high_80", "measured_tpot_s", "predicted_tpot_s", "measured_ttft_s",
    "predicted_ttft_s", "largest_operator", "calibration",
)  # fmt: skip


def markdown(validated: Sequence[tuple[CaseFile, list[CaseResult]]]) -> str:
    """One table per case file with its summary in words."""
    return "\n\n".join(_section(cases, results) for cases, results in validated)


def _section(cases: CaseFile, results: list[CaseResult]) -> str:
    decode = any(r.predicted_tpot_s is not None for r in results)
    tpot = (" TPOT predicted | published |", "---:|---:|") if decode else ("", "")
    head = "| measured deployment | tokens/s/GPU predicted | published | error |" + tpot[0]
    lines = [f"{cases.title}:", "", head, "|---|---:|---:|---:|" + tpot[1]]
    lines += [_row(result, decode) for result in sorted(results, key=lambda r: not r.case.named)]
    lines += ["", summary_text(results)]
    lines += [f"Not expressed: {text}." for text in cases.not_expressed]
    return "\n".join(lines)


def _row(result: CaseResult, decode: bool) -> str:
    case, prediction = result.case, result.prediction
    title = f"[{case.title}]({case.source})" + ("" if case.named else " *")
    row = (
        f"| {title} | {prediction.tokens_per_s_per_gpu:,.0f} | {case.measured.tokens_per_s_per_gpu:,.0f} "
        f"| {result.throughput_error:+.1%} |"
    )
    if not decode:
        return row
    published = f"{case.measured.tpot_s * 1e3:.1f} ms" if case.measured.tpot_s else "-"
    predicted = f"{result.predicted_tpot_s * 1e3:.1f} ms" if result.predicted_tpot_s else "-"
    return f"{row} {predicted} | {published} |"


def summary_text(results: list[CaseResult]) -> str:
    """The errors in words."""
    named = summarise([r for r in results if r.case.named])
    noun = "case" if named.cases == 1 else f"{named.cases} cases"
    text = f"Over the {noun} named beforehand: {errors_text(named)}."
    if len(results) > named.cases:
        text += (
            " Rows marked * are reported but not counted: their set-up is not fully published, or the hardware has no measured"
            " kernels yet."
        )
    chosen = decisions(results)
    if chosen:
        right = sum(d.right for d in chosen)
        worst = max(d.regret for d in chosen)
        text += f" Of {len(chosen)} choices between measured alternatives {right} would be right (worst regret {worst:.1%})."
    return text


def errors_text(summary: Summary) -> str:
    """One line of statistics."""
    ranked = "" if summary.rank_correlation is None else f", rank correlation {summary.rank_correlation:.2f}"
    covered = (
        f"; {summary.covered} of {summary.cases} lie in their 80 % interval "
        f"({summary.coverage_low:.0%}-{summary.coverage_high:.0%})"
    )
    first = "" if summary.ttft_median_absolute_error is None else f"; TTFT median {summary.ttft_median_absolute_error:.1%}"
    if first:
        first = f"; TPOT mean {summary.tpot_mean_absolute_error:.1%}, median {summary.tpot_median_absolute_error:.1%}" + first
    return (
        f"mean absolute error {summary.mean_absolute_error:.1%}, median {summary.median_absolute_error:.1%}, bias "
        f"{summary.bias:+.1%}, worst {summary.worst:+.1%}{ranked}{covered}{first}"
    )


def update_between_marks(path: Path, table: str) -> None:
    """Replace the table between the marks of a Markdown file, in one rename."""
    text = read_text(path)
    if MARK_BEGIN not in text or MARK_END not in text:
        raise OutputError(f"{path} lacks the marks {MARK_BEGIN} and {MARK_END}")
    head, rest = text.split(MARK_BEGIN, 1)
    _, tail = rest.split(MARK_END, 1)
    write_whole(path, f"{head}{MARK_BEGIN}\n{table}\n{MARK_END}{tail}")


def csv_text(results: Sequence[CaseResult]) -> str:
    """One row per case."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for result in results:
        case, prediction = result.case, result.prediction
        interval = result.interval
        deployment = case.deployment
        writer.writerow(
            [
                case.id, deployment.phase, case.named, case.source, deployment.hardware, deployment.engine.name,
                f"{case.measured.tokens_per_s_per_gpu:.6g}", f"{prediction.tokens_per_s_per_gpu:.6g}",
                f"{result.throughput_error:.4f}", f"{interval.low:.6g}",
                f"{interval.high:.6g}", case.measured.tpot_s or "",
                f"{result.predicted_tpot_s:.6g}" if result.predicted_tpot_s else "", case.measured.ttft_s or "",
                f"{prediction.ttft_s.mean:.6g}" if isinstance(prediction, ServicePrediction) else "",
                "" if isinstance(prediction, ServicePrediction) else prediction.bottleneck, prediction.calibration,
            ]
        )  # fmt: skip
    return out.getvalue()


def write_folder(folder: Path, validated: Sequence[tuple[CaseFile, list[CaseResult]]], date: str, version: str) -> list[Path]:
    """cases.csv, README.md and, where matplotlib is installed, plots; returns what was written."""
    results = [result for _, group in validated for result in group]
    with whole_folder(folder, lambda path: path.name in (*TABLES, *PICTURES)) as scratch:
        plots = _plots(scratch, results)
        images = "\n".join(f"![{path.stem.replace('_', ' ')}]({path.name})" for path in plots)
        parts = [
            f"# Validation\n\nCreated {date} by `autotune validate --out` of autotune {version}; "
            "one row per case in `cases.csv`.",
            markdown(validated),
            "## By source\n\n| source | cases | mean absolute error | bias |\n|---|---:|---:|---:|\n"
            + "\n".join(_source_rows(results)),
            *([f"## Plots\n\n{images}"] if images else []),
        ]
        write_whole(scratch / TABLES[0], csv_text(results))
        write_whole(scratch / TABLES[1], "\n\n".join(parts) + "\n")
    return [folder / name for name in (*TABLES, *(path.name for path in plots))]


def _source_rows(results: Sequence[CaseResult]) -> list[str]:
    groups: dict[str, list[CaseResult]] = {}
    for result in results:
        groups.setdefault(result.case.source, []).append(result)
    rows = []
    for source, group in sorted(groups.items()):
        errors = [r.throughput_error for r in group]
        mean = sum(abs(e) for e in errors) / len(errors)
        rows.append(f"| {source} | {len(group)} | {mean:.1%} | {sum(errors) / len(errors):+.1%} |")
    return rows


def _plots(folder: Path, results: Sequence[CaseResult]) -> list[Path]:
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        return []
    from autotune.validating.plots import residual_plot, scatter_plot

    paths = [folder / name for name in PICTURES]
    scatter_plot(results, paths[0])
    residual_plot(results, paths[1])
    return paths

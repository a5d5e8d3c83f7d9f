"""Trials of `autotune tune` on a real vLLM 0.24 (one and two H100), and what was learned from them for loads that it never ran.

usage, in the project's root: PYTHONPATH=. python results/2026-11-26_h100_tuning_study/study.py
Reads trials_*.jsonl (as `tune` wrote them) and ../2026-11-25_vllm_h100_study/measured.csv (another day's machines); writes
trials.csv, unmeasured.csv and unmeasured.png beside it, and prints the README's tables.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean

from autotune.calibrating.document import new_document, write_document
from autotune.calibrating.service_trials import fit_service
from autotune.documents.deployment import CalibrationChoice, Deployment
from autotune.documents.tuned import RATE, read_trials
from autotune.files import save_figure
from autotune.serving.predicting import predict_service
from cost_models.catalog import calibration_for

HERE = Path(__file__).parent
MEASURED = HERE.parent / "2026-11-25_vllm_h100_study" / "measured.csv"
TRIALS = {"llama-3.1-8b": ["llama_1gpu"], "qwen3-30b-a3b": ["qwen_1gpu", "qwen_2gpu", "qwen_2gpu_second"]}
QUANTITIES = {"tokens_per_s": "output_tokens_per_s", "tpot_ms": "tpot_mean_ms", "ttft_p50_ms": "ttft_p50_ms"}
LAYOUTS = {
    "tp1": {"tp": 1},
    "tp2": {"tp": 2},
    "dp2_ep2": {"tp": 1, "dp": 2, "ep": 2, "all2all_backend": "allgather_reducescatter"},
}
FEWEST_OUTPUT = 64


def predicted(deployment: Deployment, calibration: Path | None) -> dict[str, float]:
    """What the model says of a deployment under its load."""
    choice = CalibrationChoice(file=str(calibration)) if calibration else CalibrationChoice()
    found = predict_service(deployment.model_copy(update={"calibration": choice}))
    return {
        "tokens_per_s": found.tokens_per_s,
        "tpot_ms": found.tpot_s.mean * 1e3,
        "ttft_p50_ms": found.ttft_s.p50 * 1e3,
    }


def recalibrated(model: str, folder: Path) -> Path:
    """The calibration that the trials of a model give, as a user would make it."""
    tables = [str(HERE / f"trials_{name}.jsonl") for name in TRIALS[model]]
    out = folder / f"{model}.yaml"
    subprocess.run(
        [sys.executable, "-m", "autotune", "calibrate", *tables, "--hw", "hgx-h100", "--out", str(out)],
        check=True,
        stdout=sys.stderr,
    )
    return out


def tried() -> list[dict[str, object]]:
    """One row per trial: the mean of its runs beside the prediction made without them."""
    rows = []
    for name in (name for names in TRIALS.values() for name in names):
        for line in (HERE / f"trials_{name}.jsonl").read_text().splitlines():
            record = json.loads(line)
            deployment = Deployment.model_validate(record["deployment"])
            pool, loads = deployment.pools["serve"], record["loads"]
            before = predicted(deployment, None)
            measured = {
                "tokens_per_s": mean(x["tokens_per_s"] for x in loads),
                "tpot_ms": mean(x["tpot_s"] for x in loads) * 1e3,
                "ttft_p50_ms": mean(x["ttft_s"]["p50"] for x in loads) * 1e3,
                "ttft_p99_ms": mean(x["ttft_s"]["p99"] for x in loads) * 1e3,
            }
            row: dict[str, object] = {
                "study": name, "layout": pool.layout.label(), "in_flight": deployment.load.concurrency,  # type: ignore[union-attr]
                "budget_tokens": pool.max_batched_tokens, "max_num_seqs": pool.batch_per_dp_rank, "runs": len(loads),
            }  # fmt: skip
            row |= {f"measured_{k}": round(v, 1) for k, v in measured.items()}
            rows.append(row | {f"predicted_{k}": round(v, 1) for k, v in before.items()})
    return rows


def unmeasured(calibrations: dict[str, Path]) -> list[dict[str, object]]:
    """Services of another day that no trial ran: predicted before and after."""
    rows = []
    with MEASURED.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            closed = row["load"][0] == "c"
            at_once = closed and int(row["load"][1:]) >= int(row["requests"])
            if int(row["osl"]) < FEWEST_OUTPUT or at_once:
                continue
            load = {"concurrency": int(row["load"][1:])} if closed else {"rate_per_s": float(row["load"][1:])}
            deployment = Deployment.model_validate({
                "hardware": "hgx-h100", "model": row["model"], "precision": "bf16", "engine": {"name": "vllm", "version": "0.24"},
                "phase": "serve", "load": {**load, "requests": int(row["requests"])},
                "workload": {"isl_tokens": int(row["isl"]), "osl_tokens": int(row["osl"]), "popularity_sigma": 0},
                "pools": {"serve": {**LAYOUTS[row["layout"]], "max_batched_tokens": int(row["chunk_tokens"]),
                                    "batch_per_dp_rank": 256, "memory_fraction": 0.92}},
            })  # fmt: skip
            before, after = predicted(deployment, None), predicted(deployment, calibrations[row["model"]])
            out: dict[str, object] = {k: row[k] for k in ("model", "layout", "chunk_tokens", "load", "isl", "osl", "requests")}
            for name, column in QUANTITIES.items():
                measured = float(row[column])
                out |= {f"{name}_measured": measured, f"{name}_before": round(before[name] / measured - 1, 4)}
                out[f"{name}_after"] = round(after[name] / measured - 1, 4)
            rows.append(out)
    return rows


def left_out(model: str, folder: Path) -> dict[str, tuple[float, float]]:
    """Quantity -> mean absolute error of trials, before and by a calibration from all trials but the one predicted."""
    records = [record for name in TRIALS[model] for record in read_trials(HERE / f"trials_{name}.jsonl")]
    base = calibration_for("H100", "vllm")
    errors: dict[str, list[tuple[float, float]]] = {}
    for at, record in enumerate(records):
        entries = fit_service([*records[:at], *records[at + 1 :]], base, "trials").entries
        path = folder / f"{model}-{at}.yaml"
        document = new_document(base.id, list(entries), name=path.stem, gpu="H100", engine="vllm", date=base.date)
        write_document(document, path)
        both = (predicted(record.deployment, calibration) for calibration in (None, path))
        before, after = both
        pool = record.deployment.pool
        seen = [load.quantities(pool.layout.gpus * pool.instances) for load in record.loads]
        measured = {
            "tokens_per_s": mean(x[RATE] for x in seen) * pool.layout.gpus * pool.instances,
            "tpot_ms": mean(x["tpot_s"] for x in seen) * 1e3,
            "ttft_p50_ms": mean(x["ttft_p50_s"] for x in seen) * 1e3,
        }
        for name, value in measured.items():
            errors.setdefault(name, []).append((abs(before[name] / value - 1), abs(after[name] / value - 1)))
    return {name: (mean(b for b, _ in pairs), mean(a for _, a in pairs)) for name, pairs in errors.items()}


def table(rows: list[dict[str, object]]) -> None:
    """Mean absolute errors by model and quantity."""
    print("| model | loads | quantity | before | after |\n|---|---:|---|---:|---:|")
    for model in TRIALS:
        mine = [row for row in rows if row["model"] == model]
        for name in QUANTITIES:
            errors = [mean(abs(float(str(row[f"{name}_{when}"]))) for row in mine) for when in ("before", "after")]
            print(f"| {model} | {len(mine)} | {name} | {errors[0]:.1%} | {errors[1]:.1%} |")


def picture(rows: list[dict[str, object]]) -> None:
    """Errors of the loads never measured, before and after, one panel a quantity."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, len(QUANTITIES))
    for axis, name in zip(axes, QUANTITIES, strict=True):
        for model, marker in zip(TRIALS, "os", strict=True):
            mine = [row for row in rows if row["model"] == model]
            pairs = [[100 * float(str(row[f"{name}_{when}"])) for row in mine] for when in ("before", "after")]
            axis.plot(*pairs, marker, label=model, alpha=0.7)
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set(title=name, xlabel="error before [%]", ylabel="error after [%]")
    axes[0].legend(fontsize=8)
    save_figure(figure, HERE / "unmeasured.png", 120)


def write(name: str, rows: list[dict[str, object]]) -> None:
    with (HERE / name).open("w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


def main() -> None:
    """Write the tables and the picture."""
    write("trials.csv", tried())
    with tempfile.TemporaryDirectory() as folder:
        rows = unmeasured({model: recalibrated(model, Path(folder)) for model in TRIALS})
        print("| model | quantity | before | left out of the fit |\n|---|---|---:|---:|")
        for model in TRIALS:
            for quantity, (before, after) in left_out(model, Path(folder)).items():
                print(f"| {model} | {quantity} | {before:.1%} | {after:.1%} |")
    write("unmeasured.csv", rows)
    table(rows)
    picture(rows)


if __name__ == "__main__":
    main()

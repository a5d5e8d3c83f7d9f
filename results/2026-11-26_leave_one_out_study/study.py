"""Each measured source predicted by what never saw it: another engine's constants, another GPU's, another page's; bands of other engines.

    python study.py          (writes errors.csv, bands.csv, constants.csv, and prints the README's tables; five minutes)
    python picture.py        (left_out.png from errors.csv)

engine : every coefficient of the engine's document on that GPU (kernels, links, host, element-wise traffic, overlap, serving) is dropped and
another engine's on the same GPU stands in. gpu : the document of a sibling GPU of the same engine stands in. page : what the page set is
replaced by entries of other pages (pages.py). Schedulers are code, not constants, and stay.
"""

from __future__ import annotations

import csv
import dataclasses
import runpy
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from autotune.documents.deployment import CalibrationChoice
from autotune.predicting.step import predict_decode, predict_prefill, resolve
from autotune.validating.cases import Case, load_cases, predict_any, published
from cost_models.calibration import Calibration
from cost_models.catalog import calibration_names, load_calibration, load_hardware, raw_calibration
from cost_models.errors import AutotuneError

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent
OTHER_ENGINE = {"sglang": "trtllm", "trtllm": "sglang", "vllm": "sglang"}
SIBLING = {"GB200": "b200", "GB300": "gb200", "B200": "gb200", "B300": "b200", "H200": "h100", "H100": "h200", "H800": "h200"}
STEPS = RESULTS / "2026-11-21_inferencex_decode_study" / "cases.yaml"
SERVICES = RESULTS / "2026-11-21_inferencex_serving_study"
Errors = dict[str, float]
"""What was compared (tokens_per_s, tpot, ttft) -> predicted / measured - 1."""


def step_error(case: Case, calibration: Calibration | None) -> Errors:
    """Error of a step's throughput, with the shipped calibration or with another."""
    resolved = resolve(case.deployment)
    if calibration is not None:
        resolved = dataclasses.replace(resolved, machine=dataclasses.replace(resolved.machine, calibration=calibration))
    run = predict_prefill if case.deployment.phase == "prefill" else predict_decode
    return {"tokens_per_s": run(resolved).tokens_per_s_per_gpu / case.measured.tokens_per_s_per_gpu - 1}


def service_error(case: Case, engine: str | None) -> Errors:
    """Errors of a service's means, priced with its own constants or another engine's."""
    deployment = case.deployment
    if engine:  # a kernel that only the left-out engine is told is the other's own
        pools = {name: pool.model_copy(update={"expert_kernel": "auto"}) for name, pool in deployment.pools.items()}
        deployment = deployment.model_copy(update={"calibration": CalibrationChoice(engine=engine), "pools": pools})
    found = predict_any(deployment)
    measured = case.measured
    errors = {"tokens_per_s": found.tokens_per_s_per_gpu / measured.tokens_per_s_per_gpu - 1}
    if measured.tpot_s:
        errors["tpot"] = found.tpot_s.mean / measured.tpot_s - 1
    if measured.ttft_s:
        errors["ttft"] = found.ttft_s.mean / measured.ttft_s - 1
    return errors


def engine_of(case: Case) -> str:
    return case.deployment.calibration.engine or case.deployment.engine.name


def gpu_of(case: Case) -> str:
    return load_hardware(case.deployment.hardware).gpu.name


def steps() -> list[tuple[str, Case]]:
    """Measured steps by source."""
    shipped = [(case.source, case) for file in published()[:2] for case in file.cases]
    return shipped + [("InferenceX decode points", case) for case in load_cases(STEPS).cases]


def pairs() -> Iterator[tuple[str, str, str, str, Errors, Errors]]:
    """(what is left out, its name, source, case, errors as shipped, errors without)."""
    known = set(calibration_names())
    for source, case in steps():
        engine, gpu = engine_of(case), gpu_of(case)
        own = step_error(case, None)
        other = f"{gpu.lower()}-{OTHER_ENGINE.get(engine, '')}"
        if other in known:
            yield from attempt("engine", engine, source, case, own, lambda c: step_error(c, load_calibration(other)))  # noqa: B023
        sibling = f"{SIBLING.get(gpu, '')}-{engine}"
        if sibling in known:
            yield from attempt("gpu", gpu, source, case, own, lambda c: step_error(c, load_calibration(sibling)))  # noqa: B023
    for case in load_cases(SERVICES / "cases.yaml").cases:
        if case.named:
            other = OTHER_ENGINE[engine_of(case)]
            own = service_error(case, None)
            yield from attempt("engine", engine_of(case), "InferenceX services", case, own, lambda c: service_error(c, other))  # noqa: B023


def attempt(
    kind: str, name: str, source: str, case: Case, own: Errors, without: Callable[[Case], Errors]
) -> Iterator[tuple[str, str, str, str, Errors, Errors]]:
    """The comparison; nothing where what stands in lacks a kernel."""
    try:
        yield kind, name, source, case.id, own, without(case)
    except AutotuneError:
        return


def page_rows() -> Iterator[tuple[str, str, str, str, Errors, Errors]]:
    """The same with a page's own numbers replaced."""
    module = runpy.run_path(str(HERE / "pages.py"))
    for page, case, own, without in module["errors"]():
        yield "page", page, page, case, {"tokens_per_s": own}, {"tokens_per_s": without}


def write_errors() -> list[dict[str, str]]:
    rows = []
    for kind, name, source, case, own, without in (*pairs(), *page_rows()):
        for metric, error in own.items():
            rows.append(
                {"left_out": kind, "name": name, "source": source, "case": case, "metric": metric,
                 "error": f"{error:+.4f}", "error_without": f"{without[metric]:+.4f}"}
            )  # fmt: skip
    write("errors.csv", rows)
    return rows


def bands() -> list[dict[str, str]]:
    """Share of a left-out engine's runs inside the 80 % band of the other engines' runs."""
    module = runpy.run_path(str(SERVICES / "fit_errors.py"))
    ratios = module["collected"](*(str(SERVICES / name) for name in ("errors.csv", "percentiles.csv", "vllm.csv")))
    rows = []
    for (kind, engine, metric), found in sorted(ratios.items()):
        others = [pair for (k, e, m), pairs in ratios.items() if (k, m) == (kind, metric) and e != engine for pair in pairs]
        if len(found) < module["NEEDED"] or len(others) < module["NEEDED"]:
            continue
        low, high, _ = module["band"](others)
        own = module["band"](found)[2]
        inside = float(np.mean([low <= ratio <= high for _, ratio in found]))
        rows.append(
            {"kind": kind, "engine": engine, "metric": metric, "runs": str(len(found)),
             "inside_own_band_run_left_out": f"{own:.2f}", "inside_band_of_other_engines": f"{inside:.2f}"}
        )  # fmt: skip
    write("bands.csv", rows)
    return rows


def constants() -> list[dict[str, str]]:
    """Every shipped entry that no kernel table set, and what it says it saw."""
    rows = []
    for name in calibration_names():
        for family, variants in raw_calibration(name).get("families", {}).items():
            for variant, entry in variants.items():
                if "fit" not in entry or "aiconfigurator" not in entry["source"] and "aisimulate" not in entry["source"]:
                    rows.append(
                        {"document": name, "family": family, "variant": variant, "status": entry["status"],
                         "coefficients": " ".join(entry["coefficients"]), "saw": " ".join(entry["source"].split())}
                    )  # fmt: skip
    write("constants.csv", rows)
    return rows


def write(name: str, rows: list[dict[str, str]]) -> None:
    with (HERE / name).open("w", newline="") as file:
        out = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        out.writeheader()
        out.writerows(rows)


def table(rows: list[dict[str, str]]) -> None:
    """Mean and median absolute error as shipped and without."""
    groups: dict[tuple[str, str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        source = row["source"] if row["source"].startswith("InferenceX") else "published steps"
        if row["left_out"] == "page":
            source = ""
        groups[row["left_out"], row["name"], source, row["metric"]].append((float(row["error"]), float(row["error_without"])))
    print("| left out | measured by | | points | mean, median as shipped | without | bias without |\n|---|---|---|---:|---:|---:|---:|")
    for (kind, name, source, metric), found in groups.items():
        own, without = np.array(found).T
        middle = [f"{np.mean(np.abs(e)):.1%}, {np.median(np.abs(e)):.1%}" for e in (own, without)]
        print(f"| {kind} {name} | {source} | {metric} | {len(found)} | {middle[0]} | {middle[1]} | {np.median(without):+.1%} |")


def main() -> None:
    table(write_errors())
    print("\n| kind | engine | | runs | inside their own band, run left out | inside the other engines' band |\n|---|---|---|---:|---:|---:|")
    for row in bands():
        print("| " + " | ".join(row.values()) + " |")
    counts: dict[str, int] = defaultdict(int)
    for row in constants():
        counts[row["status"]] += 1
    print("\nentries that no table of kernels set:", dict(counts))


if __name__ == "__main__":
    main()

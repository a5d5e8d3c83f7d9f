"""Placements of recorded DeepSeek-R1 expert loads beside EPLB's; prints the README's tables.

usage: python study.py load_1k1k.npz load_8k1k.npz
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from autotune.placement.eplb import global_placement
from autotune.placement.loads import Loads, read_loads
from autotune.placement.placing import balancedness, place, place_again
from autotune.placement.solve import normalised, place_layer
from cost_models.arrays import Floats
from cost_models.catalog import load_model

SIZES = ((32, 288), (72, 360), (72, 288))
RESAMPLED_TOKENS = 50_000
DRIFT_SIGMA = 0.2
SEED = 0


def part(loads: Loads, *scenarios: int) -> Loads:
    """Some of the scenarios."""
    return Loads(tuple(loads.names[i] for i in scenarios), loads.counts[list(scenarios)])


def fitted(loads: Loads, gpus: int, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """Our placement and EPLB's (on the sum of equally weighted scenarios), (layers, gpus, slots per GPU)."""
    layers = range(loads.counts.shape[1])
    ours = np.stack([place_layer(loads.layer(i), slots, gpus) for i in layers])
    theirs = np.stack([global_placement(normalised(loads.layer(i)).sum(axis=0), slots, gpus) for i in layers])
    return ours, theirs


def resampled(loads: Loads, rng: np.random.Generator) -> Loads:
    """What RESAMPLED_TOKENS tokens of each scenario would have recorded (independent choices of single experts)."""
    shares = loads.counts / loads.counts.sum(axis=2, keepdims=True)
    return Loads(loads.names, rng.multinomial(RESAMPLED_TOKENS * 8, shares).astype(float))


def drifted(loads: Loads, rng: np.random.Generator) -> Loads:
    """Synthetic: every expert's load times a log-normal factor."""
    return Loads(loads.names, loads.counts * np.exp(rng.normal(0, DRIFT_SIGMA, loads.counts.shape)))


def difference(ours: Floats, theirs: Floats) -> str:
    """Paired over layers, worst scenario, with a 95 % interval."""
    paired = ours.min(axis=0) - theirs.min(axis=0)
    half = 1.96 * paired.std(ddof=1) / np.sqrt(len(paired))
    return f"{paired.mean():+.3f} +- {half:.3f}"


def in_sample(loads: Loads) -> None:
    """Fitted on both workloads."""
    model = load_model("deepseek-v3")
    print("| GPUs / slots | balanced, worst workload | worst layer | EPLB | EPLB hierarchical | gap to the bound, median | time |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for gpus, slots in SIZES:
        start = time.perf_counter()
        found = place(loads, model, gpus, slots - 256, 8 if gpus == 32 else 4)
        seconds = time.perf_counter() - start
        hierarchical = f"{found.eplb_hierarchical.worst_scenario:.4f}" if found.eplb_hierarchical else "-"
        print(
            f"| EP{gpus} / {slots} | {found.balance.worst_scenario:.4f} | {found.balance.worst_layer:.4f} | "
            f"{found.eplb.worst_scenario:.4f} | {hierarchical} | {found.median_gap:.2%} | {seconds:.1f} s |"
        )


def left_out(loads: Loads) -> None:
    """Fitted on something else than what is balanced."""
    rng = np.random.default_rng(SEED)
    first, second = part(loads, 0), part(loads, 1)
    splits = [
        ("1k/1k predicts 8k/1k", first, second),
        ("8k/1k predicts 1k/1k", second, first),
        (f"{RESAMPLED_TOKENS:,} tokens of each predict both", resampled(loads, rng), loads),
        (f"both predict a synthetic drift (log-normal, {DRIFT_SIGMA})", loads, drifted(loads, rng)),
    ]
    print("| GPUs / slots | fitted on -> balanced on | balanced | EPLB | difference, paired over layers |")
    print("|---|---|---:|---:|---:|")
    for gpus, slots in SIZES:
        for name, seen, judged in splits:
            ours, theirs = (balancedness(judged, placed) for placed in fitted(seen, gpus, slots))
            worst = [values.mean(axis=1).min() for values in (ours, theirs)]
            print(f"| EP{gpus} / {slots} | {name} | {worst[0]:.4f} | {worst[1]:.4f} | {difference(ours, theirs)} |")


def few_moves(loads: Loads) -> None:
    """A placement for one workload, changed for the other."""
    model = load_model("deepseek-v3")
    held = place(part(loads, 0), model, 32, 32, 8)
    print("| replicas moved | balanced |\n|---:|---:|")
    for moves in (0, 58, 232, 1000):
        changed = place_again(part(loads, 1), model, held, moves, 8)
        print(f"| {changed.moves:,} | {changed.balance.worst_scenario:.4f} |")
    fresh = place(part(loads, 1), model, 32, 32, 8)
    pairs = zip(np.array(held.experts).reshape(-1, 9), np.array(fresh.experts).reshape(-1, 9), strict=True)
    moved = sum(9 - (Counter(a.tolist()) & Counter(b.tolist())).total() for a, b in pairs)
    print(f"| {moved:,} (afresh) | {fresh.balance.worst_scenario:.4f} |")


def main() -> None:
    """All tables."""
    loads = read_loads([Path(name) for name in sys.argv[1:]], load_model("deepseek-v3"))
    in_sample(loads)
    print()
    left_out(loads)
    print()
    few_moves(loads)


if __name__ == "__main__":
    main()

"""Placements of recorded DeepSeek-R1 expert loads beside EPLB's; prints the README's tables.

usage: python study.py load_1k1k.npz load_8k1k.npz
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import numpy as np

from autotune.placement.eplb import global_placement
from autotune.placement.drifting import Wandering, simulated_max_over_mean
from autotune.placement.loads import Choices, Loads, read_loads
from autotune.placement.placing import balancedness, described_placement, place, place_again, place_gathered
from autotune.placement.repack import moves_between
from autotune.placement.solve import normalised, place_layer
from cost_models.arrays import Floats
from autotune.placement.synthetic import synthetic_choices
from cost_models.balance import combined_max_over_mean
from cost_models.catalog import load_model
from cost_models.rebalancing import EplbDynamics, stale_max_over_mean

SIZES = ((32, 288), (72, 360), (72, 288))
RESAMPLED_TOKENS = 50_000
DRIFT_SIGMA = 0.2
SIMULATED = 30
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
    moved = sum(moves_between(a, b) for a, b in zip(np.array(held.experts), np.array(fresh.experts), strict=True))
    print(f"| {moved:,} (afresh) | {fresh.balance.worst_scenario:.4f} |")


def refined(loads: Loads) -> None:
    """CP-SAT on the layers furthest above their bound."""
    model = load_model("deepseek-v3")
    print("| GPUs / slots | seconds of CP-SAT | balanced | worst layer |\n|---|---:|---:|---:|")
    for gpus, slots in SIZES[1:]:
        for seconds in (0, 10, 30):
            found = place(loads, model, gpus, slots - 256, 4, refine_s=seconds).balance
            print(f"| EP{gpus} / {slots} | {seconds} | {found.worst_scenario:.4f} | {found.worst_layer:.4f} |")


def by_node() -> None:
    """Synthetic co-activation with known communities: placed on 4,000 tokens, nodes counted on 2,000 others."""
    model = load_model("deepseek-v3").scaled_to_layers(9)
    print("| communities | own community | nodes per token | balanced | EPLB | EPLB hierarchical | EPLB balanced |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for communities in (4, 8, 16):
        for together in (0.5, 0.9):
            chosen = synthetic_choices(model, 6000, communities, together, 0.7).chosen
            seen, later = Choices(chosen[:, :4000]), Choices(chosen[:, 4000:])
            counts = np.stack([np.bincount(layer.ravel(), minlength=256) for layer in seen.chosen])[None]
            loads = Loads(("synthetic",), counts.astype(float))
            placed = np.array(place_gathered(loads, seen, model, 32, 32, 8).experts)
            found = described_placement(loads, model, placed, 8, choices=later)
            nodes = found.nodes_per_token
            assert nodes is not None
            print(
                f"| {communities} | {together:.0%} | {nodes.placed:.2f} | {found.balance.worst_scenario:.4f} | {nodes.eplb:.2f} | "
                f"{nodes.eplb_hierarchical:.2f} | {found.eplb.worst_scenario:.4f} |"
            )


def rebalanced() -> None:
    """Synthetic drift (log-normal, correlated over 10,000 steps): the closed form beside simulated rebalancing."""
    rng = np.random.default_rng(SEED)
    print("| drift | GPUs / slots | tokens per step | window | interval | simulated | closed form |")
    print("|---:|---|---:|---:|---:|---:|---:|")
    errors = []
    cases = ((2048, 100, 1000), (2048, 1000, 3000), (2048, 1000, 10_000), (64, 100, 1000))
    for sigma, (gpus, slots), (tokens, window, interval) in itertools.product((0.2, 0.4), SIZES, cases):
        dynamics = EplbDynamics(sigma, 10_000, 0.9, 6e-6, 9e-3, 1.5e-3, 2.0)
        drawn = [Wandering.drawn(256, 1.7, 8, dynamics, rng) for _ in range(SIMULATED)]
        runs = [simulated_max_over_mean(one, gpus, slots, tokens * 8, window, interval, 0, rng) for one in drawn]
        simulated, known = np.mean(runs, axis=0)
        stale = stale_max_over_mean(
            gpus, slots, tokens * 8, window, interval, 0, experts=256, top_k=8, sigma=1.7, dynamics=dynamics
        )[0]
        closed = float(combined_max_over_mean(known, stale))
        errors.append((closed - 1) / (simulated - 1) - 1)
        print(f"| {sigma} | EP{gpus} / {slots} | {tokens:,} | {window:,} | {interval:,} | {simulated:.3f} | {closed:.3f} |")
    print(f"\nExcess off by {np.abs(errors).mean():.0%} on average, {min(errors):+.0%} to {max(errors):+.0%}.")


def main() -> None:
    """All tables."""
    loads = read_loads([Path(name) for name in sys.argv[1:]], load_model("deepseek-v3"))
    in_sample(loads)
    print()
    left_out(loads)
    print()
    few_moves(loads)
    for table in (lambda: refined(loads), by_node, rebalanced):
        print()
        table()


if __name__ == "__main__":
    main()

"""Which aggregated points of later imports may have run with drafts, by the history of the benchmark's own configurations.

usage: python drafts.py CHECKOUT inferencex_dsr1.csv > drafts.csv

CHECKOUT: a clone of SemiAnalysisAI/InferenceX (Apache-2.0) with its history; read to 843c6254f (2026-08-22). Its file
.github/configs/nvidia-master.yaml lists, per framework and with or without drafts, the images and what is swept: lengths, TP, EP,
attention DP and requests in flight. The table does not say whether drafts ran. `without` and `with`: the days on which a
configuration without and with drafts had the point's deployment and image; empty where none ever had.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import yaml

CONFIGURATIONS = ".github/configs/nvidia-master.yaml"
FRAMEWORKS = {"trtllm": "trt", "sglang": "sglang"}
Days = dict[tuple[Any, ...], list[tuple[str, str]]]
"""(configuration, isl, osl, GPUs, EP, attention DP, in flight) -> (image's tag, day)."""


def git(checkout: str, *words: str) -> str:
    return subprocess.run(["git", "-C", checkout, *words], capture_output=True, text=True, check=True).stdout


def in_flight(swept: dict[str, Any]) -> list[int]:
    """What a configuration sweeps: a list, or doubling between two bounds."""
    if "conc-list" in swept:
        return swept["conc-list"]
    counts, count = [], swept.get("conc-start", 1)
    while count <= swept.get("conc-end", 0):
        counts.append(count)
        count *= 2
    return counts


def points(name: str, entry: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """The points of one configuration."""
    for lengths in entry.get("seq-len-configs", ()):
        for swept in lengths["search-space"]:
            own = bool(swept.get("dp-attn", False))
            for count in in_flight(swept):
                yield name, lengths["isl"], lengths["osl"], swept["tp"], swept.get("ep", 1), own, count


def history(checkout: str) -> Days:
    """Every point that was ever swept on one node."""
    found: Days = defaultdict(list)
    log = git(checkout, "log", "--first-parent", "--reverse", "--diff-filter=AM", "--format=%h %as", "--", CONFIGURATIONS)
    for commit, day in (line.split() for line in log.splitlines()):
        entries = yaml.safe_load(git(checkout, "show", f"{commit}:{CONFIGURATIONS}")) or {}
        for name, entry in entries.items():
            if name.startswith("dsr1") and not entry.get("multinode"):
                for point in points(name, entry):
                    found[point].append((entry["image"].split(":")[-1].removeprefix("v"), day))
    return found


def days(found: Days, row: dict[str, str], suffix: str) -> str:
    """First and last day on which a configuration had the row's deployment and image."""
    tp, dp, ep = (int(float(row[f"d_{name}"] or row[f"p_{name}"])) for name in ("tp", "dp", "ep"))
    name = f"dsr1-{row['precision']}-{row['system'].removesuffix('_sxm')}-{FRAMEWORKS[row['engine']]}{suffix}"
    point = (name, int(row["isl"]), int(row["osl"]), tp * dp, ep, dp > 1, int(float(row["concurrency"])))
    seen = [day for tag, day in found.get(point, ()) if tag.startswith(row["engine_version"])]
    return f"{seen[0]} to {seen[-1]}" if seen else ""


def main() -> None:
    """Print the table of the rows whose ids do not begin with the first import's prefix."""
    found = history(sys.argv[1])
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["id", "without", "with"])
    with open(sys.argv[2], newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["id"].startswith("2026_"):
                out.writerow([row["id"], days(found, row, ""), days(found, row, "-mtp")])


if __name__ == "__main__":
    main()

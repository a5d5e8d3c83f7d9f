"""Print the README's tables from errors.csv.

    python table.py
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

GPUS = ("GB200", "H200")


def percent(values: list[str]) -> str:
    """Different values of TensorRT-LLM's and SGLang's rows, as percentages."""
    return " / ".join(dict.fromkeys(f"{float(value):.1%}".replace("%", "") for value in values)) + " %" if values else "-"


def main() -> None:
    rows = defaultdict(list)
    tests: dict[tuple[str, str, str], None] = {}
    for row in csv.DictReader((Path(__file__).resolve().parent / "errors.csv").open()):
        key = (row["operator"], row["variant"] if not row["operator"].endswith(row["variant"]) else "", row["test"])
        tests[key] = None
        rows[key, row["gpu"]].append(row["median_error"])
    for title, chosen in (("Held out", lambda test: test == "held out"), ("Extrapolated", lambda test: test != "held out")):
        print(f"\n**{title}**\n\n| operator | variant | test | GB200 | H200 |\n|---|---|---|---:|---:|")
        for key in sorted(key for key in tests if chosen(key[2])):
            name = " | ".join((key[0], key[1], key[2]))
            print(f"| {name} | {percent(rows[key, 'GB200'])} | {percent(rows[key, 'H200'])} |")


if __name__ == "__main__":
    main()

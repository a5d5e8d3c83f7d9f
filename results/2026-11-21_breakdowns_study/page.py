"""Write docs/operators.md from breakdowns.csv and silicon.csv.

    python page.py [PAGE]
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "operators.md"
LARGE = 0.15
INTRODUCTION = """# Operators, one by one

Every operator of every published breakdown beside its measurement, and every operator of a wide-EP decode step beside the public silicon
tables. Made by `python page.py` in [the study](../results/2026-11-21_breakdowns_study) from what `breakdowns.py` and `silicon.py` compute there.
"""
WHY = """
What is further off than 15 %, and why it stays:

- **Waiting** (vLLM's trace): all-gather and reduce-scatter take 383 ms, 148 by NCCL's own timings; the rest waits for the other rank, which the model charges to the experts of the busiest
  rank. With the experts together -29 %: the page's own microbenchmark of the NVFP4 experts is 4 to 26 % slower than the kernel of half a year later that the tables time, and
  both ranks are more unequal (1.27 by the trace) than recorded loads of random tokens make them (1.2).
- **NVFP4 experts from 16,384 tokens on**: that same microbenchmark. Rows of the newer tables at 16,384 tokens are met within 5 %; beyond is extrapolated.
- **Norms and copies** (-16 %): the activation of shared experts (silu, 31 ms) has no family of its own.
- **Attention of DeepSeek's prefill** (+20 %): ours holds rope, concatenation and cache write, theirs does not; with SGLang, whose profile holds them, +1 %. **Combine** there: DeepSeek's own
  DeepEP of the time, SGLang's build is met within 2 %. **Dispatch of SGLang with even experts**: -27 %, where DeepSeek's profile of the same library is met; the tables' run alone.
- **DeepGEMM alone, 64 and 128 rows**: the H800 tables carry a launch of 4 us that a captured graph does not have; inside SGLang's captured steps the same GEMMs are 3 to 8 % slow.
- **FlashMLA alone** (-21 %): 660 TFLOPS are its kernel of April 2025; the tables of H800 time the one before, which DeepSeek's and SGLang's profiles ran (+5 %, -2 %).
- **One-sided, 64 tokens**: the blog's build starts 3 to 5 us earlier than the table's.
- **Whole attention modules** of vLLM on GB200 (0.81-0.85): its table runs rope, quantise, concatenation and cache write as kernels of their own, 0.2-0.3 us a token and layer; the published steps
  fuse them (325 to 73 us, says vLLM's page). TensorRT-LLM's modules (1.09-1.12) fuse nearly all of it, where 0.11 us a token are charged to every engine on Blackwell.
- **o_proj in low precision** (1.6 times faster than FP8 at 768 sequences): the page says "up to 1.9"; with the older releases' NVFP4 tables it was 1.13.
- **Absorption of few tokens on GB200**: the tables' loop runs out of L2 (10-18 % of 64 to 512 tokens); at 1,024 and more it is met within 4 %.

Not in the table, because it cannot be expressed: SGLang's simulated MTP (attention slowed by hand), barriers and bubbles of the prefill profiles, DeepEP's normal kernels as GB/s of a bottleneck.
"""


def read(name: str) -> list[dict[str, str]]:
    with (HERE / name).open() as file:
        return list(csv.DictReader(file))


def share(text: str) -> str:
    value = float(text)
    return f"**{value:+.0%}**" if abs(value) > LARGE else f"{value:+.0%}"


def breakdowns() -> list[str]:
    lines = ["", "## Published breakdowns", "", "`seen`: what the measured number has set; nothing: the row is independent of the prediction.", ""]
    lines += ["| step | operator | predicted | published | error | seen |", "|---|---|---:|---:|---:|---|"]
    for row in read("breakdowns.csv"):
        values = f"{row['predicted']} | {row['published']} {row['unit']} | {share(row['error'])} | {row['seen']} |"
        lines.append(f"| {row['step']} | {row['operator']} | {values}")
    return lines


def tables() -> list[str]:
    lines = ["", "## A wide-EP decode step beside the silicon tables", ""]
    lines += ["Predicted over timed, median and the range of 80 % of the rows of 64 to 2,048 tokens a rank at DeepSeek-V3's shapes.", ""]
    lines += ["| GPU | engine | operator | dtype | tables | rows | median | 80 % |", "|---|---|---|---|---|---:|---:|---:|"]
    for row in read("silicon.csv"):
        middle = float(row["median"])
        text = f"**{middle:.2f}**" if abs(middle - 1) > LARGE else f"{middle:.2f}"
        spread = f"{float(row['low_80']):.2f}-{float(row['high_80']):.2f}"
        names = " | ".join(row[column] for column in ("gpu", "engine", "operator", "dtype", "tables", "rows"))
        lines.append(f"| {names} | {text} | {spread} |")
    return lines


def page() -> str:
    """The page as text."""
    return "\n".join([INTRODUCTION.rstrip(), *breakdowns(), WHY.rstrip(), *tables(), ""])


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE).write_text(page())

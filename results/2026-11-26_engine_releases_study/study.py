"""Expert kernels of older vLLM releases on Hopper, written into the calibrations.

usage (from the repository's root; scripts/refit runs it):
  PYTHONPATH=. python results/2026-11-26_engine_releases_study/study.py FOLDER     calibrations that it changes
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from autotune.documents.results import dump_yaml
from cost_models.catalog import read_yaml
from cost_models.expert_kernels import PADDED

HOPPER = ("h100-vllm", "h200-vllm")
LAST_PADDED = "0.14"
"""Last release that gives decoding to DeepGEMM: vllm 0.14.1, fused_moe/oracle/fp8.py."""
SPARE_ROWS = 127.0
"""Most that padding one expert's tokens to 128 rows adds (fused_moe/deep_gemm_utils.py, compute_aligned_M)."""


def padded(contiguous: dict[str, Any]) -> dict[str, Any]:
    """DeepGEMM's contiguous kernel over the most rows that padding can come to; nothing is fitted."""
    source = f"the contiguous kernel's coefficients, over the rows that vLLM 0.12 to 0.14 hand it: {contiguous['source']}"
    return {"coefficients": {**contiguous["coefficients"], "spare_rows": SPARE_ROWS}, "status": "transferred", "source": source}


def apply(folder: Path) -> None:
    """Write the entries of older releases."""
    for name in HOPPER:
        document = read_yaml(folder / f"{name}.yaml")
        entry = padded(document["families"]["grouped_gemm"]["fp8_block.contiguous"])
        families = document.pop("families")
        document["earlier"] = {LAST_PADDED: {"grouped_gemm": {f"fp8_block.{PADDED}": entry}}}
        document["families"] = families  # last: readers of headers stop there
        (folder / f"{name}.yaml").write_text(dump_yaml(document))


if __name__ == "__main__":
    apply(Path(sys.argv[1]))

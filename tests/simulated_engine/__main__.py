"""`python -m tests.simulated_engine serve ...` or `bench serve ...`: what the `vllm` beside this file runs."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["serve"]:
        from tests.simulated_engine.server import serve

        serve(words[1:])
    elif words[:2] == ["bench", "serve"]:
        from tests.simulated_engine.client import bench

        bench(words[2:])
    else:
        sys.exit(f"simulated vllm: error: invalid choice: {' '.join(words[:2])}")

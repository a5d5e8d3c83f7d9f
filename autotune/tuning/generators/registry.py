"""All load generators: one entry per tool."""

from __future__ import annotations

import importlib.util
import shutil
import sys

from autotune.errors import ProblemError
from autotune.tuning.generators.aiperf import AIPERF
from autotune.tuning.generators.base import LoadGenerator
from autotune.tuning.generators.guidellm import GUIDELLM
from autotune.tuning.generators.sglang import SGLANG_BENCH
from autotune.tuning.generators.vllm import VLLM_BENCH
from autotune.tuning.outcomes import TuningError
from cost_models.errors import unknown_name

GENERATORS = {tool.name: tool for tool in (VLLM_BENCH, GUIDELLM, AIPERF, SGLANG_BENCH)}


def load_generator(name: str) -> LoadGenerator:
    """A tool by its name; raises ProblemError with near matches."""
    if name not in GENERATORS:
        raise ProblemError(unknown_name("load generator", name, list(GENERATORS)))
    return GENERATORS[name]


def check_installed(tool: LoadGenerator) -> None:
    """Raise TuningError, before a server is started, where a tool is not there."""
    program, *rest = tool.program
    if shutil.which(program) is None:
        raise TuningError(
            f"no `{program}` on the PATH: {tool.title} sends the load. {tool.install}, or choose another with --load"
        )
    same_python = shutil.which(program) == sys.executable
    if rest and same_python and importlib.util.find_spec(rest[-1].partition(".")[0]) is None:
        raise TuningError(f"no module {rest[-1]}: {tool.title} sends the load. {tool.install}, or choose another with --load")

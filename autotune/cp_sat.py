"""OR-Tools' CP-SAT without pandas.

Its Python layer imports pandas at its top, for variables in series that nothing here has, and that takes longer than the solver.
Here pandas is loaded when something does ask for it, which users of the same process may.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

MODULE = "ortools.sat.python.cp_model"
NAMED_IN_SIGNATURES = ("Index", "Series")


def load_cp_model() -> Any:
    """The module `ortools.sat.python.cp_model`; pandas comes with it where it was there before."""
    if MODULE in sys.modules or "pandas" in sys.modules:
        return importlib.import_module(MODULE)
    later = _PandasLater("pandas")
    sys.modules["pandas"] = later
    try:
        return importlib.import_module(MODULE)
    except AttributeError:  # a version that needs more of pandas than two names
        del sys.modules["pandas"]
        return importlib.import_module(MODULE)
    finally:
        if sys.modules.get("pandas") is later:
            del sys.modules["pandas"]


class _PandasLater(ModuleType):
    """Stands for pandas: what signatures name while a module is imported, and the real one from then on."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get("pandas") is not self:
            return getattr(importlib.import_module("pandas"), name)
        if name in NAMED_IN_SIGNATURES:
            return object
        raise AttributeError(f"pandas.{name} while {MODULE} is imported")

"""The solver without the tables that it is shipped with."""

from __future__ import annotations

import subprocess
import sys

PROBE = """
import sys
from autotune.cp_sat import load_cp_model
cp_model = load_cp_model()
assert "pandas" not in sys.modules
model = cp_model.CpModel()
x = model.new_int_var(0, 7, "x")
model.add(3 * x <= 14)
model.maximize(x)
solver = cp_model.CpSolver()
assert solver.solve(model) == cp_model.OPTIMAL and solver.value(x) == 4
import pandas
assert load_cp_model() is cp_model
series = model.new_bool_var_series("y", pandas.Index([1, 2, 3]))
assert isinstance(series, pandas.Series) and list(series.index) == [1, 2, 3]
"""


def test_the_solver_comes_without_pandas_and_takes_it_when_it_is_asked_for():
    # in a process of its own: 3 x <= 14 gives x = 4; variables in series work as they do for everyone
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""axe-core over the page that a browser shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def serious_faults(browser: Any) -> list[tuple[str, int]]:
    """Rules that are broken seriously, with how many elements break each."""
    axe = pytest.importorskip("axe_core_python.base", reason="needs axe-core-python")
    browser.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = browser.execute_async_script("const done = arguments[0]; axe.run().then(r => done(r.violations));")
    return [(v["id"], len(v["nodes"])) for v in found if v["impact"] in ("serious", "critical")]

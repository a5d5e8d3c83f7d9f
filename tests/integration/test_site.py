"""The docs as a site: built without a warning, with a page for every model, asking nothing of another machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.cli.published import ENTRIES
from autotune.validating.cases import published, try_cases
from autotune.validating.statistics import summarise
from cost_models.catalog import model_names

pytest.importorskip("mkdocs", reason="needs the extra `docs`")
pytest.importorskip("material", reason="needs the extra `docs`")
pytest.importorskip("mkdocstrings", reason="needs the extra `docs`")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LOADED = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"]+)"|<link\b[^>]*\brel="(?:stylesheet|icon|preconnect)"[^>]*>'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def text_of(page: Path) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8")).split())


def test_every_model_command_and_schema_has_its_place(site: Path) -> None:
    for name in model_names():
        assert f"--model {name}" in text_of(site / "catalogue" / f"{name}.html")
    assert "autotune ui" in text_of(site / "reference" / "commands.html")
    schemas = text_of(site / "reference" / "schemas.html")
    assert all(entry.name in schemas for entry in ENTRIES)
    assert "Best plans for a problem." in text_of(site / "reference" / "python.html")  # the docstring of autotune.search


def test_a_models_page_says_how_far_its_predictions_lie(site: Path) -> None:
    (decode, *_) = [file for file in published() if "decode" in file.title]
    found = [
        result
        for result in try_cases(decode)[0]
        if (result.case.deployment.model, result.case.deployment.hardware) == ("deepseek-r1", "gb200-nvl72")
    ]
    errors = summarise(found)
    row = f"deepseek-r1 gb200-nvl72 decode {errors.cases} {errors.mean_absolute_error:.1%} {errors.bias:+.1%}"
    assert row in text_of(site / "catalogue" / "deepseek-r1.html")
    assert row in text_of(site / "catalogue" / "deepseek-v3.html")  # the same architecture
    assert row in text_of(site / "accuracy.html")
    assert "is not known here" not in text_of(site / "catalogue" / "deepseek-r1.html")


def test_a_model_without_measurements_says_so(site: Path) -> None:
    assert "No published measurement of this architecture" in text_of(site / "catalogue" / "hunyuan-a13b.html")
    index = text_of(site / "catalogue" / "index.html")
    assert "none published here" in index


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        for match in LOADED.finditer(page.read_text(encoding="utf-8")):
            assert "//" not in match[0], (page.name, match[0])

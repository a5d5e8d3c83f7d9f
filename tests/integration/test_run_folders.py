"""Run folders that are not what a search wrote: older, half there, somebody else's. One message, and what lies there stays."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autotune.cli.main import main

pytestmark = pytest.mark.slow
Change = Callable[[Path], object]
MARKUP = "<script>alert(1)<img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["autotune", "search", "--hw", "hgx-h200", "--gpus", "8", "--json", "--out", str(out)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == 0
    (folder,) = out.iterdir()
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / run.name))


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["autotune", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def half(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def replaced(name: str, old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def without_scripts(page: Path) -> str:
    return re.sub(r"<(script|style)\b.*?</\1>", "", page.read_text(), flags=re.DOTALL)


BROKEN: dict[str, tuple[Change, str]] = {
    "older format": (
        replaced("plan.yaml", "autotune-plan/2", "autotune-plan/1"),
        "'autotune-plan/1' of another version of autotune",
    ),
    "newer format": (replaced("plan.yaml", "autotune-plan/2", "autotune-plan/99"), "another version of autotune"),
    "half a plan": (lambda folder: half(folder / "plan.yaml"), "plan.yaml: "),
    "empty plan": (lambda folder: (folder / "plan.yaml").write_text(""), "it has no `format`"),
    "plan of bytes": (lambda folder: (folder / "plan.yaml").write_bytes(bytes(range(256)) * 40), "plan.yaml"),
    "a manifest": (lambda folder: (folder / "plan.yaml").write_text("apiVersion: v1\nkind: Pod\n"), "it has no `format`"),
    "no record": (lambda folder: (folder / "run.json").unlink(), "is no run folder: it has no plan.yaml and run.json"),
    "half a record": (lambda folder: half(folder / "run.json"), "run.json: not valid JSON"),
    "another's record": (
        lambda folder: (folder / "run.json").write_text('{"run": 7}'),
        "it was not written by `autotune search`",
    ),
    "a problem of fields unknown": (replaced("run.json", '"top_k"', '"top_kk"'), "run.json: top_kk: unknown key"),
    "half the candidates": (lambda folder: half(folder / "candidates.json"), "candidates.json: not valid JSON"),
    "candidates of another shape": (lambda folder: (folder / "candidates.json").write_text("{}"), "candidates.json: "),
    "a list of candidates": (
        lambda folder: (folder / "candidates.json").write_text("[1, 2]"),
        "candidates.json: expected a mapping",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_that_is_broken_is_named_with_its_file(
    what: str, copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = BROKEN[what]
    change(copy)
    page = (copy / "report.html").read_bytes()
    for words in (
        ("report", str(copy)),
        ("compare", str(copy), str(copy)),
        ("explain", str(copy), "--why", "tp8"),
    ):
        code, _, err = said(capsys, monkeypatch, *words)
        assert code == 1, (words, err)
        assert err.startswith("error: ")
        assert message in err
        assert "fault of autotune" not in err
    assert (copy / "report.html").read_bytes() == page


def test_a_folder_of_a_version_without_candidates_still_has_a_page(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "candidates.json").unlink()
    replaced("run.json", '"best"', '"was_best"')(copy)
    code, _, err = said(capsys, monkeypatch, "report", str(copy))
    assert (code, err) == (0, "")
    html = without_scripts(copy / "report.html")
    assert 'data-chart="breakdown"' in html
    assert 'data-chart="candidates"' not in html


def test_markup_in_a_folder_stays_text(copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads((copy / "run.json").read_text())
    record["problem"]["hardware"] = record["problem"]["model"] = MARKUP
    record["command"] = ["autotune", MARKUP]
    (copy / "run.json").write_text(json.dumps(record))
    hostile = copy.rename(copy.parent / "<img src=x onerror=alert(3)>")
    out = copy.parent / "ab.html"
    assert said(capsys, monkeypatch, "report", str(hostile))[0] == 0
    assert said(capsys, monkeypatch, "compare", str(hostile), str(hostile), "--out", str(out))[0] == 0
    for page in (hostile / "report.html", out):
        assert "<script>alert(1)" not in page.read_text()
        html = without_scripts(page)
        assert "<img" not in html
        assert "&lt;script&gt;alert(1)" in html


@pytest.mark.parametrize("command", ["report", "compare"])
def test_no_browser_is_one_message_and_the_page_is_there(
    command: str, copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import webbrowser

    def none(*_: object) -> None:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    page = copy.parent / "page.html"
    words = [str(copy)] if command == "report" else [str(copy), str(copy)]
    code, _, err = said(capsys, monkeypatch, command, *words, "--out", str(page), "--open")
    assert (code, err) == (1, "error: no browser was found here: leave --open out and open it yourself\n")
    assert page.is_file()

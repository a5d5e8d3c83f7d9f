"""`autotune ui` over HTTP: who is answered, what searches do, what is left on the disk."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import socket
import stat
import sys
import webbrowser
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autotune.cli.main import main
from tests.integration.serving import Served, served, until

pytest.importorskip("starlette", reason="needs the extra `ui`")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's /proc")]
PROBLEM = {"hardware": "hgx-h200", "gpus": 8, "trials": 0}
LONG = {"hardware": "hgx-h200", "gpus": 8, "trials": 10_000}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Served]:
    with served(runs) as found:
        yield found


@pytest.fixture(scope="module")
def run(server: Served) -> str:
    """A run folder that the server made."""
    job = server.ended(server.search(PROBLEM))
    assert job["state"] == "done", job["message"]
    return str(job["run"])


def test_a_form_becomes_a_run_folder_with_what_was_found_on_the_way(server: Served, runs: Path, run: str) -> None:
    assert {"plan.yaml", "run.json", "report.html", "launch"} <= {path.name for path in (runs / run).iterdir()}
    job = next(job for job in server.json("searches") if job["run"] == run)
    assert job["found"]
    assert "tokens/s/GPU" in job["found"][-1]
    (row,) = [row for row in server.json("runs")["runs"] if row["run"] == run]
    assert row["asked"] == "hgx-h200, deepseek-v3, decode"
    assert row["rate"] > 0
    assert server.json(f"runs/{run}/problem")["gpus"] == 8


def test_no_state_lies_outside_of_run_folders(server: Served, runs: Path, run: str) -> None:
    assert server.job(server.json("searches")[0]["id"])
    assert all((path / "plan.yaml").is_file() for path in runs.iterdir() if not path.name.startswith(".autotune-"))
    status, body, _ = server.ask("searches", {**PROBLEM, "storage": "sqlite:///elsewhere.db"}, "POST")
    assert (status, b"use `autotune search --storage`" in body) == (400, True)


def test_the_archive_holds_the_files_that_the_run_folder_has(server: Served, runs: Path, run: str) -> None:
    status, body, headers = server.ask(f"runs/{run}/export?format=bash&rank=1")
    assert status == 200
    assert headers["content-disposition"].endswith('_plan-1_bash.zip"')
    archive = zipfile.ZipFile(io.BytesIO(body))
    launch = runs / run / "launch" / "plan-1"
    assert {name: archive.read(name) for name in archive.namelist()} == {p.name: p.read_bytes() for p in launch.iterdir()}
    for entry in archive.infolist():
        assert bool(entry.external_attr >> 16 & stat.S_IXUSR) == os.access(launch / entry.filename, os.X_OK)


def test_a_question_is_answered_as_on_the_command_line(
    server: Served, runs: Path, run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["autotune", "explain", str(runs / run), "--why", "tp8"])
    with pytest.raises(SystemExit):
        main()
    status, body, _ = server.ask(f"runs/{run}/why?layout=tp8")
    assert (status, body.decode()) == (200, capsys.readouterr().out.rstrip("\n"))


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("runs/{run}/export?format=tar", "no target 'tar'; known: bash"),
        ("runs/{run}/export?rank=9", "has plans 1..3, not '9'"),
        ("runs/..%2f..%2fetc/export", "answers that"),
        ("runs/nothing", "no run 'nothing'"),
        ("runs/{run}/why?layout=pp99", "no layout with pp99"),
        ("runs/{run}/why", "cannot read '' as a layout"),
        ("compare?run={run}", "compare takes 2 to 8 runs, not 1"),
        ("compare?run={run}&run=..", "no run '..'"),
        ("static/../../app.py", "answers that"),
        ("elsewhere", "answers that"),
    ],
)
def test_what_is_not_there_is_one_message(server: Served, run: str, where: str, says: str) -> None:
    status, body, headers = server.ask(where.format(run=run))
    assert status in (400, 404)
    assert says in body.decode()
    assert headers["content-type"].startswith("text/plain")


def test_a_report_and_a_comparison_may_load_nothing(server: Served, run: str) -> None:
    for where in (f"runs/{run}", f"compare?run={run}&run={run}"):
        status, body, headers = server.ask(where)
        assert status == 200
        assert b"<!doctype html>" in body[:20].lower()
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["referrer-policy"] == "no-referrer"  # the token stays here


def test_only_the_link_is_answered(server: Served) -> None:
    for path in ("/", "/form", f"/{'x' * 32}/form", "/%00/form", "//form"):
        status, body, _ = server.ask(path)
        assert (status, b"open the link" in body) == (403, True), path


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]:{port}", ""])
def test_another_name_for_this_machine_is_refused(server: Served, host: str) -> None:
    # a page at evil.example whose name is made to point at 127.0.0.1 is of the same origin, to a browser
    status, body, _ = server.ask("form", headers={"Host": host.format(port=server.port)})
    assert status in (400, 403)
    assert b'"schema"' not in body


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1:1"])
def test_another_origin_is_refused_even_with_the_token(server: Served, origin: str) -> None:
    before = len(server.json("searches"))
    headers = {"Origin": origin.format(port=server.port), "Content-Type": "text/plain"}
    assert server.ask("searches", PROBLEM, "POST", headers)[0] == 403
    assert server.ask("searches", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})[0] == 403
    assert len(server.json("searches")) == before


def test_a_socket_from_elsewhere_is_refused(server: Served) -> None:
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "eA==" * 6}
    assert server.ask("searches", headers={**headers, "Origin": "http://evil.example"})[0] == 403
    with socket.socket() as other, pytest.raises(OSError, match="refused"):
        other.connect(("127.0.0.2", server.port))  # it listens on one address alone


TEXTS = (
    "", " ", "\0", "\n", "\u202e", "\ud800", "é" * 300, "x" * 5000, "../../etc/passwd", "/etc/passwd", "/dev/zero",
    "~/.ssh/id_rsa", "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "${jndi:ldap://x}",
    "'; DROP TABLE runs; --", "$(reboot)", "`id`", "%s%n", "file:///etc/passwd", "http://127.0.0.1:1/", "-1", "NaN", "con",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *TEXTS, -1, 0, 1e308, -1e308, 10**400, 2**63, 1.5, True, False, None, [], [None], [[]], ["x"] * 999, {}, {"x": 1}, {"": {}},
    {"isl_tokens": "x"}, {"isl_tokens": 10**9, "osl_tokens": -1},
)  # fmt: skip


def test_a_thousand_hostile_values_are_answered_in_words(server: Served, run: str) -> None:
    fields = [*server.json("form")["schema"]["properties"], "storage", "__class__", "x" * 200]
    asked = list(itertools.product(fields, VALUES))
    assert len(asked) >= 1000
    for name, value in asked:
        status, body, _ = server.ask("searches", {**PROBLEM, name: value}, "POST")
        assert status in (201, 400), (name, value, body[:300])
        if status == 201:
            assert server.ask(f"searches/{json.loads(body)['id']}", method="DELETE")[0] == 200
        else:
            assert body
            assert b"fault of autotune" not in body, (name, value, body)
    until(lambda: not server.children())
    assert server.ended(server.search(PROBLEM))["state"] == "done"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 60_000, b'{"hardware": NaN}', b'{"gpus": ' + b"9" * 60_000 + b"}"]
)
def test_a_body_that_is_no_form_is_one_message(server: Served, body: bytes) -> None:
    status, said, _ = server.ask("searches", body, "POST")
    assert status == 400
    assert said.startswith(b"form: ")


def test_a_form_beyond_all_bounds_is_not_read(server: Served) -> None:
    status, said, _ = server.ask("searches", b"x" * 100_000, "POST")
    assert (status, b"65,536 bytes" in said) == (400, True)


def test_no_plan_is_an_answer_in_words(server: Served) -> None:
    job = server.ended(server.search({**PROBLEM, "tpot_limit_s": 1e-6}))
    assert job["state"] == "failed"
    assert "no feasible plan" in job["message"].lower()


def test_a_search_that_is_killed_says_so(server: Served, runs: Path) -> None:
    before = {path.name for path in runs.iterdir()}
    key = server.search(LONG)
    until(lambda: server.job(key)["trials"] > 0)
    (child,) = server.children()
    os.kill(child, signal.SIGKILL)
    job = server.ended(key)
    assert job["state"] == "failed"
    assert "ended from outside (SIGKILL)" in job["message"]
    assert "nothing was written" in job["message"]
    assert {path.name for path in runs.iterdir()} == before


def test_a_search_that_is_cancelled_ends_its_process(server: Served) -> None:
    key = server.search(LONG)
    until(lambda: server.job(key)["trials"] > 0)
    assert server.job(key)["trials_asked"] == 10_000
    server.ask(f"searches/{key}", method="DELETE")
    assert server.job(key)["state"] == "cancelled"
    until(lambda: not server.children())
    server.ask(f"searches/{key}", method="DELETE")
    assert server.job(key)["state"] == "cancelled"
    assert server.ask("searches/none", method="DELETE")[0] == 400


def test_searches_wait_for_each_other_up_to_a_number(server: Served) -> None:
    keys, refused = [], b""
    while not refused and len(keys) < 100:
        status, body, _ = server.ask("searches", LONG, "POST")
        keys += [json.loads(body)["id"]] if status == 201 else []
        refused = b"" if status == 201 else body
    assert refused.decode().startswith("20 searches wait already")
    assert len(server.children()) <= max(1, (os.cpu_count() or 2) // 2)
    for key in keys:
        server.ask(f"searches/{key}", method="DELETE")
    until(lambda: not server.children())


def test_folders_that_cannot_be_read_are_listed_with_the_reason(server: Served, runs: Path, run: str) -> None:
    half, foreign = runs / "half-written", runs / "foreign"
    for folder in (half, foreign):
        folder.mkdir()
        (folder / "plan.yaml").write_text("format: autotune-plan/0\n")
    (foreign / "run.json").write_text('{"problem": 1}')
    try:
        rows = {row["run"]: row for row in server.json("runs")["runs"]}
        assert "no plan.yaml and run.json" in rows["half-written"]["fault"]
        assert "not written by `autotune search`" in rows["foreign"]["fault"]
        assert rows[run]["fault"] == ""
        assert server.ask("runs/foreign")[0] == 400
        (foreign / "run.json").write_text(json.dumps({"problem": PROBLEM}))
        assert "of another version of autotune" in server.ask("runs/foreign")[1].decode()
    finally:
        for path in (*half.iterdir(), *foreign.iterdir(), half, foreign):
            path.rmdir() if path.is_dir() else path.unlink()


def test_stopping_the_server_ends_its_searches(tmp_path: Path) -> None:
    with served(tmp_path) as found:
        key = found.search(LONG)
        until(lambda: found.job(key)["trials"] > 0)
        (child,) = found.children()
    assert found.process.returncode == 0
    until(lambda: not Path(f"/proc/{child}").exists())
    assert not list(tmp_path.glob("*/plan.yaml"))


def failing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["autotune", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    return capsys.readouterr().err


def test_a_port_in_use_is_one_message(
    server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = failing(capsys, monkeypatch, "ui", "--out", str(tmp_path), "--port", str(server.port))
    assert said == f"error: cannot listen on port {server.port}: Address already in use; --port 0 takes a free one\n"
    assert "--port 0 takes a free one" in failing(capsys, monkeypatch, "ui", "--out", str(tmp_path), "--port", "99999")


def test_no_browser_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    said = failing(capsys, monkeypatch, "ui", "--out", str(tmp_path), "--port", "0", "--open")
    assert said == "error: no browser was found here: leave --open out and open it yourself\n"


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    said = failing(capsys, monkeypatch, "ui", "--out", str(tmp_path))
    assert said == "error: autotune ui needs the extra: pip install 'moe-autotune[ui]'\n"

"""No network while it runs, and nothing of the user's machine in what is passed on."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.records import shown_command

SHORT = 5
"""A host's name of so few letters is found by chance in any long text."""
NO_NETWORK = """
import socket, sys
def refused(*words, **named):
    raise SystemExit(f"network: {words[1:]}")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = socket.socket.bind = refused
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refused
import json
from autotune.cli.main import main
for words in json.loads(sys.stdin.read()):
    sys.argv = ["autotune", *words]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise SystemExit(f"{words}: {stop.code}")
    print(end="\\0")
"""
"""Runs commands one after the other, with a NUL after what each prints."""


def outputs_of(folder: Path, *commands: tuple[str, ...]) -> list[str]:
    """Outputs of commands that cannot reach any network."""
    words = [sys.executable, "-c", NO_NETWORK]
    done = subprocess.run(words, cwd=folder, input=json.dumps(commands), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A run of a model and hardware of the user's, given by paths that are relative."""
    from cost_models.catalog import _packaged, load_hardware

    folder = tmp_path_factory.mktemp("alice")
    (folder / "mine").mkdir()
    (folder / "mine" / "config.json").write_text(json.dumps(_packaged("models", "qwen3-235b-a22b")["config"]))
    (folder / "hw.yaml").write_text(load_hardware("hgx-h200").model_dump_json())
    words = ["--hw", "./hw.yaml", "--model", "./mine/config.json", "--precision", "bf16", "--gpus", "16", "--trials", "4"]
    outputs_of(folder, ("search", *words, "--storage", "sqlite:///s.db"))
    return folder


@pytest.fixture(scope="module")
def passed_on(run_folder) -> Path:
    """What every other command writes of that run, none of which may reach a network."""
    (run,) = (run_folder / "results").iterdir()
    out = run_folder / "passed_on"
    folder = str(run)
    image = ("--image", "registry.example/vllm:v0.33.0", "--router-image", "registry.example/router:1")
    problem = {"hardware": "./hw.yaml", "model": "./mine/config.json", "precision": "bf16", "gpus": 16, "trials": 0}
    (run_folder / "sweep.yaml").write_text(json.dumps([problem]))
    *_, explained, sensitivity, placed = outputs_of(
        run_folder,
        ("export", folder, "--out", "passed_on/bash"),
        ("export", folder, "--format", "sbatch", "--out", "passed_on/sbatch"),
        ("export", folder, "--format", "lws", *image, "--out", "passed_on/lws"),
        ("report", folder, "--out", "passed_on/page.html"),
        ("compare", folder, folder, "--out", "passed_on/both.html"),
        ("sweep", "sweep.yaml", "--workers", "1", "--format", "csv", "--out", "passed_on/sweep"),
        ("explain", folder, "--why", "tp1"),
        ("sensitivity", folder),
        ("place", "--synthetic", "1", "--gpus", "8", "--model", "qwen3-235b-a22b"),
    )
    for name, text in (("explained", explained), ("sensitivity", sensitivity), ("placed", placed)):
        assert text
        (out / f"{name}.txt").write_text(text)
    return out


@pytest.mark.slow
def test_commands_reach_no_network_and_nothing_says_where_they_ran(run_folder, passed_on):
    """No folder above what was typed, no host, no user: in a run folder, and in what is made from it."""
    files = [path for folder in (run_folder / "results", passed_on) for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".yaml", ".json", ".html", ".sh", ".csv", ".txt", ".sbatch"}
    user = getpass.getuser()
    foreign = [str(run_folder), str(Path.home()) + "/", sys.prefix, f"/home/{user}/", f"{user}@"]
    foreign += [host for host in [socket.gethostname()] if len(host) > SHORT]
    for path in files:
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not [word for word in foreign if word in text], path
    scripts = [path.read_text() for path in files if path.suffix == ".sh"]
    assert all("MODEL=${MODEL:-./mine}" in text for text in scripts if "MODEL=" in text)
    assert not any("hw.yaml" in text for text in scripts)


def test_a_command_is_recorded_without_the_home_and_passwords():
    words = ["/usr/local/bin/autotune", "search", "--hw", f"{Path.home()}/hw.yaml", "--storage", "mysql://me:secret@db/x"]
    assert shown_command(words) == ["autotune", "search", "--hw", "~/hw.yaml", "--storage", "mysql://db/x"]

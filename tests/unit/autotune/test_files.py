"""What is written is whole or not there, and nothing lies beside it afterwards."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest

from autotune import files
from autotune.errors import OutputError
from autotune.files import SCRATCH, check_writable, claim, save_figure, scratch_folder, sweep_scratch, whole_folder, write_whole


@pytest.fixture
def full_disk():
    """No file longer than 20,000 bytes: writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, full_disk):
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    with pytest.raises(OutputError, match=r"cannot write .*a\.txt: File too large"):
        write_whole(path, "x" * 30_000)
    assert path.read_text() == "old"
    write_whole(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.slow
def test_pictures_are_written_whole_and_named_where_they_are_none(tmp_path, full_disk):
    from matplotlib.figure import Figure  # a second to import, which every worker would spend

    figure = Figure()
    figure.add_subplot().plot([1, 2])
    save_figure(figure, tmp_path / "p.png", 40)
    good = (tmp_path / "p.png").read_bytes()
    with pytest.raises(OutputError, match="cannot write"):
        save_figure(figure, tmp_path / "p.png", 1000)
    assert (tmp_path / "p.png").read_bytes() == good
    with pytest.raises(OutputError, match=r"pictures are written as .*png"):
        save_figure(figure, tmp_path / "p.xyz", 40)
    assert names(tmp_path) == ["p.png"]


def test_a_link_is_followed_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_whole(tmp_path / "pipe", "through")
    reader.join()
    assert got == ["through"]


def test_a_folder_is_replaced_as_one_and_keeps_what_is_not_ours(tmp_path):
    own = {"a", "b", "c"}.__contains__
    for new in ({"a": "1", "b": "1"}, {"b": "2", "c": "2"}):
        with whole_folder(tmp_path / "out", lambda path: own(path.name)) as scratch:
            for name, text in new.items():
                (scratch / name).write_text(text)
        assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == new
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with whole_folder(tmp_path / "out", lambda path: own(path.name)) as scratch:
        (scratch / "a").write_text("3")
    assert names(tmp_path / "out") == ["a", "notes.txt"]
    assert names(tmp_path) == ["out"]


def test_a_folder_that_fails_half_way_is_as_it_was(tmp_path, full_disk):
    with whole_folder(tmp_path / "out", lambda _: True) as scratch:
        (scratch / "a").write_text("1")

    def fail() -> None:
        with whole_folder(tmp_path / "out", lambda _: True) as scratch:
            (scratch / "b").write_text("2")
            (scratch / "c").write_text("x" * 30_000)

    with pytest.raises(OutputError, match="File too large"):
        fail()
    assert names(tmp_path / "out") == ["a"]
    assert names(tmp_path) == ["out"]


def test_without_an_exchange_of_names_files_go_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for new in ("a", "b"):
        with whole_folder(tmp_path / "out", lambda _: True) as scratch:
            (scratch / new).write_text(new)
    assert names(tmp_path / "out") == ["b"]
    assert names(tmp_path) == ["out"]


def test_a_name_is_taken_by_renaming_to_it(tmp_path):
    """Eight at once: each finds a name of its own."""
    folders: list[Path] = []

    def finish() -> None:
        with scratch_folder(tmp_path) as scratch:
            (scratch / "plan").write_text("x")
            folders.append(claim(scratch, tmp_path, "run"))

    threads = [threading.Thread(target=finish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folder.name for folder in folders) == ["run", *(f"run_{i}" for i in range(2, 9))]
    assert all((folder / "plan").read_text() == "x" for folder in folders)
    assert names(tmp_path) == sorted(folder.name for folder in folders)


def test_a_name_in_use_by_a_file_is_passed_over(tmp_path):
    (tmp_path / "run").write_text("a file")
    with scratch_folder(tmp_path) as scratch:
        assert claim(scratch, tmp_path, "run").name == "run_2"


def test_scratch_of_the_dead_is_removed_and_of_the_living_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "YOUNGEST_S", -1.0)
    (tmp_path / f"{SCRATCH}dead").mkdir()
    (tmp_path / f"{SCRATCH}dead" / "a").write_text("half")
    (tmp_path / f"{SCRATCH}file").write_text("half")
    with scratch_folder(tmp_path) as scratch:
        assert names(tmp_path) == [scratch.name]
        sweep_scratch(tmp_path)
        assert scratch.exists()
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["a\0b", "n" * 300, "\udcff", "file/inside"])
def test_names_that_cannot_be_written_are_one_message(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_whole(tmp_path / name / "x", "text")
    with pytest.raises(OutputError):
        check_writable(tmp_path / name)

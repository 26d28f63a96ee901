"""A folder appears whole or not at all, and nothing of others is lost for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from qvec_cli.export.staging import check_folder, staging

from qvec_cli.checkpoint.replace import SUFFIX, lock
from qvec_cli.errors import CheckpointError, SpecError

NAMES = ("a", "b")


def fill(out: Path, text: str, *, force: bool = False) -> None:
    with staging(out, NAMES, force=force) as folder:
        for name in NAMES:
            (folder / name).write_text(text)
            assert not (out / name).exists() or (out / name).read_text() != text


def break_off(out: Path) -> None:
    with staging(out, NAMES, force=True) as folder:
        (folder / "a").write_text("2")
        raise RuntimeError


def held(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*/*")}


def test_a_new_folder_and_an_empty_one_are_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        fill(tmp_path / name, "1")
        assert held(tmp_path)[f"{name}/b"] == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]


def test_a_fault_leaves_what_was_there(tmp_path: Path) -> None:
    fill(tmp_path / "old", "1")
    for name in ("old", "new"):
        with pytest.raises(RuntimeError):
            break_off(tmp_path / name)
    assert held(tmp_path) == {"old/a": "1", "old/b": "1"}
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_an_old_folder_is_replaced_only_by_force_and_as_a_whole(tmp_path: Path) -> None:
    fill(tmp_path / "out", "1")
    with pytest.raises(CheckpointError, match="out: exists"):
        fill(tmp_path / "out", "2")
    assert held(tmp_path)["out/a"] == "1"
    fill(tmp_path / "out", "2", force=True)
    assert held(tmp_path) == {"out/a": "2", "out/b": "2"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_holds_anything_else_is_never_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "out", "1")
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=r"out: holds thesis\.tex"):
        fill(tmp_path / "out", "2", force=True)
    assert held(tmp_path) == {"out/a": "1", "out/b": "1", "out/thesis.tex": "mine"}


def test_a_file_that_comes_meanwhile_is_not_lost(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def race() -> None:
        with staging(out, NAMES, force=True) as folder:
            (folder / "a").write_text("1")
            out.mkdir()
            (out / "late").write_text("mine")

    with pytest.raises(CheckpointError, match="holds late"):
        race()
    assert held(tmp_path) == {"out/late": "mine"}


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    fill(tmp_path / "link", "1")
    assert (tmp_path / "link").is_symlink()
    assert held(tmp_path)["real/a"] == "1"


def test_what_a_killed_writer_left_is_removed_and_what_a_live_one_fills_is_not(
    tmp_path: Path,
) -> None:
    dead, live, other = (
        tmp_path / f"{name}{SUFFIX}" for name in (".out.1-aa", ".out.2-bb", ".outer.3-cc")
    )
    for folder in (dead, live, other):
        folder.mkdir()
        (folder / "a").write_text("half")
    fd = os.open(live, os.O_RDONLY)
    try:
        assert lock(fd)
        fill(tmp_path / "out", "1")
    finally:
        os.close(fd)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [live.name, other.name, "out"]
    )


def test_targets_that_cannot_be_folders_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = {"file": "is a file", "nowhere/out": "its folder does not exist"}
    for name, reason in refused.items():
        with pytest.raises(CheckpointError, match=reason):
            check_folder(tmp_path / name, NAMES, force=True)
    with pytest.raises(SpecError, match="no stream can take"):
        check_folder(Path("-"), NAMES, force=False)

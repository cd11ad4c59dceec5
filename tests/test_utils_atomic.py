"""Files that are written: the mode of the umask, errors of the disk in one sentence, nothing lost."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.errors import explain_os_error
from lightning_guide.utils.files import atomic, make_folder, remove_temporary, write_numbers
from tests.disks import forked, mount


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_files_and_folders_have_the_mode_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        for name in ("tensors", "text"):
            (tmp_path / name).write_text("an old file")
            (tmp_path / name).chmod(0o600)
        with atomic(tmp_path / "tensors") as temporary:
            save_file({"x": torch.ones(2)}, temporary)
        with atomic(tmp_path / "text") as temporary:
            temporary.write_text("new")
        with atomic(tmp_path / "new/folder/weights") as temporary:
            torch.save({"x": torch.ones(2)}, temporary)
        write_numbers(tmp_path / "numbers/a.npz", {"x": 1.0})
        SnapshotStore(tmp_path / "snapshots").save({"x": torch.ones(2)}, images=8, sigma_rel=0.1, recipe={})
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert len(modes) == 10
    expected = {path: (0o777 if path.is_dir() else 0o666) & ~mask for path in modes}
    assert modes == expected


def test_each_process_has_a_temporary_file_of_its_own(tmp_path: Path) -> None:
    with atomic(tmp_path / "a.json") as temporary:
        temporary.write_text("first")
        child = os.fork()
        if child == 0:
            with atomic(tmp_path / "a.json") as other:
                other.write_text("second")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert (tmp_path / "a.json").read_text() == "second" and temporary.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "first"


def test_a_full_disk_ends_in_one_sentence_and_keeps_the_old_file(tmp_path: Path) -> None:
    content = torch.ones(100_000)

    def act() -> None:
        mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path))
        for write in (
            lambda path: save_file({"x": content}, path),
            lambda path: torch.save({"x": content}, path),
            lambda path: path.write_bytes(content.numpy().tobytes()),
        ):
            (tmp_path / "file").write_text("old")
            with pytest.raises(OSError) as failed, atomic(tmp_path / "file") as temporary:
                write(temporary)
            sentence = explain_os_error(failed.value)
            assert str(tmp_path / "file") in sentence and "\n" not in sentence
            assert (tmp_path / "file").read_text() == "old"
            assert [path.name for path in tmp_path.iterdir()] == ["file"]

    forked(act)


def test_errors_name_the_file_or_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    for place in (tmp_path / "file/a", tmp_path / "file/b/a"):
        with pytest.raises(OSError) as failed, atomic(place):
            pass
        assert explain_os_error(failed.value) == f"{tmp_path / 'file'}: is a file; expected a folder"
    with pytest.raises(OSError, match="is a file; expected a folder"):
        make_folder(tmp_path / "file")
    with pytest.raises(OSError) as failed, atomic(tmp_path / ("a" * 300)) as temporary:
        temporary.write_text("")
    assert "a" * 300 in explain_os_error(failed.value) and "name too long" in explain_os_error(failed.value)
    with atomic(tmp_path / ("a" * 250)) as temporary:
        temporary.write_text("a long name")
    (tmp_path / "folder/inside").mkdir(parents=True)
    with pytest.raises(OSError) as failed, atomic(tmp_path / "folder") as temporary:
        temporary.write_text("")
    assert "folder: is a directory" in explain_os_error(failed.value)
    assert (tmp_path / "file").read_text() == "old"


def test_temporary_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    for name in (".a.tar.tmp", ".a.tar.01234567.tmp", ".b.json.01234567.tmp", "c.tmp"):
        (tmp_path / name).touch()
    remove_temporary(tmp_path, "*.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.01234567.tmp", "c.tmp"]

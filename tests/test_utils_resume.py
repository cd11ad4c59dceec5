"""Folders that are only resumed with the same settings: `ResumableFolder` and its one error message."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lightning_guide.utils.resume import ResumableFolder, check_same_settings, plain_data

SETTINGS: dict[str, Any] = {"size": 8, "grid": {"steps": (1, 2), "limit": math.inf}, "seed": None}


def folder(path: Path, **changed: Any) -> ResumableFolder:
    return ResumableFolder(path / "record.json", SETTINGS | changed, results="*.tar")


def test_content_is_returned_for_same_settings(tmp_path: Path) -> None:
    assert folder(tmp_path / "new").read() == {}
    folder(tmp_path / "new").write({"shards": {"a": (1, math.nan)}})
    written = json.loads((tmp_path / "new/record.json").read_text())
    assert written == {"settings": plain_data(SETTINGS), "shards": {"a": [1, None]}}
    (tmp_path / "new/a.tar").touch()
    assert folder(tmp_path / "new").read() == {"shards": {"a": [1, None]}}


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    folder(tmp_path).write({})
    (tmp_path / "a.tar").touch()
    message = (
        r"record.json was made with other settings: size was 8 and is now 9; expected the same settings or another"
    )
    with pytest.raises(ValueError, match=message):
        folder(tmp_path, size=9).read()
    with pytest.raises(ValueError, match=r"grid.steps was \[1, 2\] and is now \[1, 3\]"):
        folder(tmp_path, grid={"steps": [1, 3], "limit": math.inf}).read()


def test_settings_without_results_do_not_bind(tmp_path: Path) -> None:
    folder(tmp_path).write({"note": 1})
    assert folder(tmp_path).read() == {"note": 1} and folder(tmp_path, size=9).read() == {}
    by_content = ResumableFolder(tmp_path / "record.json", {"size": 9}, results=lambda content: "note" in content)
    with pytest.raises(ValueError, match="other settings: size was 8 and is now 9"):
        by_content.read()


@pytest.mark.parametrize("content", ["{broken", "[]", "{}", '{"settings": 1}', "3"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "record.json").write_text(content)
    with pytest.raises(ValueError, match="record.json does not record 'settings' of earlier results"):
        folder(tmp_path).read()


def test_results_without_record_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    with pytest.raises(ValueError, match=r"a.tar exists without record.json; expected a folder without \*.tar"):
        folder(tmp_path).read()


def test_missing_keys_equal_none_and_values_are_shortened() -> None:
    check_same_settings({"a": 1}, {"a": 1, "b": None}, place="here")
    with pytest.raises(
        ValueError, match=r"^here was made with other settings: b was None and is now 'x{96}\.\.\.; exp"
    ):
        check_same_settings({"a": 1}, {"a": 1, "b": "x" * 200}, place="here")

"""Errors on one line: nested parser reports, other exceptions, runtime errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch._inductor.exc import InvalidCxxCompiler

from datamodules.shards import shard_paths
from datamodules.storage.captions import captioned_images
from datamodules.storage.image_files import image_files
from lightning_guide.evaluation import RawPixels
from lightning_guide.evaluation.reference.statistics import read_statistics
from lightning_guide.runs.models import open_snapshots
from lightning_guide.runs.run import Run
from lightning_guide.utils.errors import (
    as_value_error,
    did_you_mean,
    explain_os_error,
    explain_runtime_error,
    one_line,
)
from lightning_guide.utils.files import read_yaml

REPORT = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'LightningModule'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'DiffusionModule':
        Parser key "denoiser":
          Expected a dot import path string: LogDensityMPL
    - Expected a <class 'NoneType'>. Got value: {'auto': Evaluation(
        (positive): Main()
      )}
  Given value type: <class 'dict'>
  Given value: {'class_path': 'DiffusionModule'}"""


def test_nested_report_is_reduced_to_keys_and_error() -> None:
    line = "model.denoiser: Expected a dot import path string: LogDensityMPL"
    assert one_line(REPORT) == line
    assert one_line(REPORT, ["Points", "LogDensityMLP"]) == f"{line} (no such class; did you mean LogDensityMLP?)"


UNKNOWN = """Parser key "evaluation":
  Problem with given class_path 'lightning_guide.evaluation.Evaluation':
    Parser key "guidance":
      Does not validate against any of the Union subtypes
      Subtypes: [<class 'lightning_guide.denoiser.Denoiser'>, <class 'NoneType'>]
      Errors:
        - Problem with given class_path 'lightning_guide.guidance.Autoguidance':
            Option 'wight' is not accepted
        - Problem with given class_path 'lightning_guide.guidance.Autoguidance':
            Parser key "weight":
              Expected a <class 'float'>. Got value: big"""


def test_statements_without_keys_name_the_class() -> None:
    assert one_line(UNKNOWN) == (
        "evaluation.guidance (Autoguidance): Option 'wight' is not accepted; weight: Expected float. Got value: big"
    )


def test_vague_statement_is_kept_only_alone() -> None:
    vague = 'Parser key "guider":\n  Not a valid subclass of Denoiser. Got value: 3\n  Subclass types expect one of:\n'
    vague += "  - a class path (str)\n  - a dict with class_path entry"
    assert one_line(vague) == "guider: Not a valid subclass of Denoiser. Got value: 3"
    assert one_line(f"{vague}\n- Expected a <class 'float'>") == "guider: Expected float"


def test_other_exceptions_become_value_errors_with_their_type() -> None:
    with pytest.raises(ValueError, match="^KeyError: 'age'$"), as_value_error():
        raise KeyError("age")
    with pytest.raises(ValueError, match="^weights are negative$"), as_value_error():
        raise ValueError("weights are negative")
    with pytest.raises(SystemExit), as_value_error():
        raise SystemExit(3)


def test_ordinary_message_is_unchanged() -> None:
    assert one_line("no snapshot of images=7; available: images 16, 32") == (
        "no snapshot of images=7; available: images 16, 32"
    )
    assert one_line("Errors:\n  Subtypes: x") == "Errors: Subtypes: x"


def test_missing_compiler_is_explained() -> None:
    message = explain_runtime_error(f"InvalidCxxCompiler: {InvalidCxxCompiler()}\nSet TORCHDYNAMO_VERBOSE=1")
    assert message is not None and message.startswith("compile: true needs a compiler (No working C++ compiler found")
    assert "TORCHDYNAMO" not in message


def test_the_most_similar_place_that_exists_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("runs/digits/main/config.yaml", "data/images/1.png"):
        Path(place).parent.mkdir(parents=True)
        Path(place).touch()
    expected = {
        "runs/digit/main": "runs/digits/main",
        "run/digits/mian/config.yml": "runs/digits/main/config.yaml",
        "dta/imags/*.tar": "data/images/*.tar",
        "data/images/other/x.tar": "",
        "runs/digits/main/snapshots": "",
        "data/images": "",
        str(tmp_path / "runs/digtis"): str(tmp_path / "runs/digits"),
    }
    for wrong, right in expected.items():
        assert did_you_mean(wrong) == (f" (did you mean {right}?)" if right else "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert did_you_mean("~/dta") == f" (did you mean {tmp_path}/data?)"


def test_places_of_runs_configs_and_data_that_do_not_exist_have_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("place/snapshots").mkdir(parents=True)
    readers: dict[str, Callable[[str], Any]] = {
        "a run": Run,
        "snapshots": open_snapshots,
        "a config": lambda place: read_yaml(f"{place}/a.yaml"),
        "images": image_files,
        "captions": captioned_images,
        "shards": lambda place: shard_paths(f"{place}/{{0..3}}.tar"),
        "a pattern of shards": lambda place: shard_paths(f"{place}/*.tar"),
        "statistics": lambda place: read_statistics(f"{place}/s.npz", RawPixels()),
    }
    for what, read in readers.items():
        with pytest.raises(ValueError, match=r"\(did you mean place(/snapshots|/\*.tar)?\?\)"):
            raise AssertionError(f"{what} was read: {read('palce')}")
    with pytest.raises(FileNotFoundError) as missing:
        Path("palce/a.npy").open()
    assert explain_os_error(missing.value) == "palce/a.npy: no such file or directory (did you mean place?)"

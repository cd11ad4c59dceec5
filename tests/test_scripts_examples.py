"""Examples run and show what they document."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.examples.bad_version import guide
from scripts.examples.tiny_pipeline import tiny_pipeline
from scripts.lib.command_line import run_script


def test_autoguidance_narrows_the_modes_and_keeps_their_weights(capsys: pytest.CaptureFixture[str]) -> None:
    guide([1.0, 2.0, 3.0], count=64)
    lines = capsys.readouterr().out.splitlines()
    spreads = [float(line.split("spread ")[1].split(",")[0]) for line in lines]
    assert spreads == sorted(spreads, reverse=True) and spreads[2] < 0.6 * spreads[0]
    plain, *guided = ([float(share) for share in line.split("modes ")[1].split(", ")] for line in lines)
    assert all(shares == pytest.approx(plain, abs=0.05) for shares in guided)


def test_a_tiny_pipeline_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
    tiny_pipeline("ddpm", str(tmp_path / "tiny"))
    assert "written to" in capsys.readouterr().out
    assert diffusers.DDPMPipeline.from_pretrained(tmp_path / "tiny").unet.config.in_channels == 3
    with pytest.raises(ValueError, match="is not empty; expected a new folder"):
        tiny_pipeline("ddpm", str(tmp_path / "tiny"))
    with pytest.raises(ValueError, match="there is no tiny pipeline 'sd4'; expected sd, "):
        tiny_pipeline("sd4", str(tmp_path / "other"))


def test_mistakes_of_a_script_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["tiny_pipeline.py", "sd4", "folder"])
    with pytest.raises(
        SystemExit, match="^tiny_pipeline.py: error: there is no tiny pipeline 'sd4'; expected sd, [^\n]*$"
    ):
        run_script(tiny_pipeline, as_positional=True)
    monkeypatch.setattr("sys.argv", ["tiny_pipeline.py", "sd"])
    with pytest.raises(SystemExit):
        run_script(tiny_pipeline, as_positional=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "error: the following arguments are required: folder (" in line

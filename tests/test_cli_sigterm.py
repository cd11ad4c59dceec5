"""SIGTERM or Ctrl-C in the middle of a command: it ends in one sentence, and the same command completes its results."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from datamodules.commands import convert
from lightning_guide.cli import main
from lightning_guide.evaluation import FrechetDistance
from lightning_guide.evaluation.sampling_loop import SamplingLoop
from lightning_guide.search.blocks import BlockEvaluations
from scripts.robustness.command_results import differences, read_results
from tests.test_datamodules_latents import Halves

PREDICT = ["--trainer.default_root_dir", "out", "--model.prediction.num_samples", "12"]
CASES: dict[str, tuple[list[str], Any, str]] = {
    "predict": (["run", *PREDICT, "--model.prediction.batch_size", "2"], SamplingLoop, "draw"),
    "tune": (["run", "search.yaml", "--budget", "320", "--out", "out"], BlockEvaluations, "step"),
    "convert": (["images", "out", "--records_per_shard", "2"], convert, "decode_image"),
    "encode": (["shards/*.tar", "out", "--vae", "tests.test_datamodules_latents.Halves"], Halves, "posterior"),
    "statistics": (["out/s.npz", "--data", "Digits", "--extractor", "RawPixels"], FrechetDistance, "_add"),
}


@pytest.fixture
def folder(search_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a finished run, a search, images and shards of them."""
    for name in ("run", "search.yaml"):
        (tmp_path / name).symlink_to(search_folder / name)
    for i in range(8):
        path = tmp_path / "images" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def ctrl_c_interrupts() -> Iterator[None]:
    """A background job starts with SIGINT ignored."""
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, outside)


def stopping(call: Callable[..., Any], number: signal.Signals, *, at: int) -> Callable[..., Any]:
    """The same function, which receives the signal in its call number `at`."""
    calls = [0]

    def stopped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            signal.raise_signal(number)
        return call(*args, **kwargs)

    return stopped


@pytest.mark.parametrize(
    ("command", "number"),
    [
        *((name, signal.SIGTERM) for name in CASES),
        *(pytest.param(name, signal.SIGINT, marks=pytest.mark.slow) for name in ("predict", "convert")),
    ],
)
def test_it_ends_at_once_and_the_same_command_completes_it(
    command: str, number: signal.Signals, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, owner, name = CASES[command]
    if command == "encode":
        main(["convert", "images", "shards", "--records_per_shard", "2"])
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(owner, name, stopping(getattr(owner, name), number, at=1 if command == "statistics" else 4))
        main([command, *words])
    what = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    assert left.value.code == f"lightning-guide: {command} was stopped by {what}; rerun the same command to resume"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not [path for path in (folder / "out").rglob(".*") if path.name == ".lock" or path.suffix == ".tmp"]
    main([command, *words])
    completed = read_results(folder / "out")
    (folder / "out").rename(folder / "stopped")
    main([command, *words])
    assert not differences(completed, read_results(folder / "out"))


@pytest.mark.parametrize("command", ["validate", "test"])
def test_finished_evaluations_of_a_command_that_is_left_are_kept(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluations = {name: {"num_samples": 4, "batch_size": 2, "metrics": {}} for name in ("first", "second", "third")}
    settings = {"trainer": {"limit_val_batches": 2}, "model": {"init_args": {"evaluations": evaluations}}}
    Path("three.yaml").write_text(yaml.safe_dump(settings))
    words = [command, "run", "-c", "three.yaml", "--trainer.default_root_dir", "out"]
    said = {}
    for at in (2, 6):  # in the first evaluation, in the third
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
            patch.setattr(SamplingLoop, "draw", stopping(SamplingLoop.draw, signal.SIGTERM, at=at))
            main(words)
        said[at] = str(left.value.code).partition("start again; ")[2]
        assert (folder / "out/report/metrics.json").is_file() == (at == 6)
    assert said == {2: "no evaluation was finished", 6: "results of first, second are in out/report/metrics.json"}
    kept = json.loads((folder / "out/report/metrics.json").read_text())
    main(words)
    whole = json.loads((folder / "out/report/metrics.json").read_text())
    assert list(kept) == ["first", "second"] and list(whole) == ["first", "second", "third"]
    for name in kept:
        assert not {key for key in kept[name].keys() | whole[name].keys() if kept[name][key] != whole[name][key]} - {
            "seconds"
        }

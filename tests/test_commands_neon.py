"""Neon as a command: merged weights as the snapshot of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from callbacks import PostHocEMA
from lightning_guide.cli import main
from lightning_guide.commands.averages import neon
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.runs.models import finished_model, open_snapshots, pretrained
from lightning_guide.training.losses import EDMLoss
from tests.runs import TinyImages, TinyNetwork, tiny_module, tiny_trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A base, and a model that began as its average."""
    folder = tmp_path_factory.mktemp("runs")
    base, auxiliary = folder / "base", folder / "auxiliary"
    tiny_trainer(base, PostHocEMA(16), steps=8).fit(tiny_module(average=None), datamodule=TinyImages())
    module = DiffusionModule(pretrained(base), EDMLoss(), average=None)  # type: ignore[arg-type]
    tiny_trainer(auxiliary, PostHocEMA(8), steps=4).fit(module, datamodule=TinyImages())
    return str(base), str(auxiliary)


def test_merged_weights(runs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, auxiliary = runs
    main(["neon", base, auxiliary, "--weight", "1.75", "--auxiliary_images", "8", "--out", str(tmp_path / "neon")])
    (entry,) = open_snapshots(tmp_path / "neon").entries()
    assert (entry.images, entry.sigma_rel) == (32, 0.05) and str(entry.path) in capsys.readouterr().out
    assert open_snapshots(tmp_path / "neon").planned_images == 32
    merged = finished_model(tmp_path / "neon", None, 0.05)
    one, other = finished_model(base, None, 0.05), finished_model(auxiliary, 8, 0.05)
    assert merged.recipe == one.recipe
    pairs = zip(merged.parameters(), one.parameters(), other.parameters(), strict=True)
    for found, theta, theta_aux in pairs:
        torch.testing.assert_close(found, 1.75 * theta - 0.75 * theta_aux)
        assert not torch.equal(found, theta)
    assert merged.network.calls == one.network.calls != other.network.calls  # buffers are those of the base
    written = json.loads((tmp_path / "neon/neon.json").read_text())
    assert written["weight"] == 1.75 and written["auxiliary"] == {"run": auxiliary, "images": 8, "sigma_rel": 0.05}


def test_ends(runs: tuple[str, str], tmp_path: Path) -> None:
    for weight, run in ((1.0, runs[0]), (0.0, runs[1])):
        neon(*runs, weight=weight, out=str(tmp_path / str(weight)))
        merged, expected = finished_model(tmp_path / str(weight), None, 0.05), finished_model(run, None, 0.05)
        assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), expected.parameters(), strict=True))


def test_the_base_is_never_written_to(runs: tuple[str, str], tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in Path(runs[0]).rglob("*.safetensors")}
    for out in runs:
        with pytest.raises(ValueError, match=f"{out} has snapshots already; expected a folder without them"):
            neon(*runs, out=out)
    assert {path: path.read_bytes() for path in Path(runs[0]).rglob("*.safetensors")} == before


def test_mistakes(runs: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Neon needs a finite weight"):
        neon(*runs, weight=float("inf"), out=str(tmp_path))
    with pytest.raises(ValueError, match="images=9, sigma_rel=0.05 cannot be rebuilt well enough"):
        neon(*runs, auxiliary_images=9, out=str(tmp_path))
    other = tmp_path / "other"
    module = tiny_module(TinyNetwork((1, 6, 6)), average=None)
    tiny_trainer(other, PostHocEMA(8), steps=2).fit(module, datamodule=TinyImages(shape=(1, 6, 6)))
    with pytest.raises(ValueError, match="Neon merges models of one architecture"):
        neon(runs[0], str(other), out=str(tmp_path / "new"))
    assert not (tmp_path / "new/snapshots").exists()

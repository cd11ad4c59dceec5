"""Where evaluations find models: main, snapshots of this and other runs, each loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from callbacks import PostHocEMA
from lightning_guide.runs.models import LiveAverages, RunModels, finished_model, open_snapshots
from lightning_guide.snapshots import SnapshotMissing, SnapshotStore
from tests.runs import TinyImages, assert_same, tiny_module, tiny_trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Averages at 8, 16 and 24 images of 24."""
    folder = tmp_path_factory.mktemp("runs") / "main"
    tiny_trainer(folder, PostHocEMA(8), steps=6).fit(tiny_module(average=None), datamodule=TinyImages())
    return folder


def test_snapshots_of_the_run_itself_until_now(run: Path) -> None:
    main = tiny_module().denoiser
    models = RunModels(main, run=run, device=CPU, until=16)
    assert models.main is main
    guider = models.snapshot(run=None, images=8, sigma_rel=0.1)
    assert_same(dict(guider.state_dict()), SnapshotStore(run / "snapshots").tensors(images=8, sigma_rel=0.1))
    assert models.snapshot(run=None, images=8, sigma_rel=0.1) is guider  # loaded once
    assert models.snapshot(run=None, images=8, sigma_rel=0.05) is not guider
    with pytest.raises(SnapshotMissing, match="yet at images=16") as missing:
        models.snapshot(run=None, images=24, sigma_rel=0.1)
    assert missing.value.not_yet
    assert RunModels(main, run=run, device=CPU).snapshot(run=None, images="1/1", sigma_rel=0.1) is not guider


def test_snapshots_of_another_run_are_all_there(run: Path, tmp_path: Path) -> None:
    models = RunModels(tiny_module().denoiser, run=tmp_path, device=CPU, until=4)
    other = models.snapshot(run=str(run), images="1/1", sigma_rel=0.1)
    assert_same(dict(other.state_dict()), dict(finished_model(run, None, 0.1).state_dict()))
    with pytest.raises(SnapshotMissing) as missing:  # of its own folder there is nothing yet
        models.snapshot(run=None, images="1/1", sigma_rel=0.1)
    assert missing.value.not_yet


def test_a_finished_model_is_that_of_the_newest_snapshot_or_of_a_given_age(run: Path) -> None:
    store = SnapshotStore(run / "snapshots")
    for images, count in ((None, 24), (8, 8), ("1/3", 8), (1.0, 24)):
        model = finished_model(run, images, 0.05)
        assert_same(dict(model.state_dict()), store.tensors(images=count, sigma_rel=0.05))
        assert not model.training


def test_a_run_that_is_not_there_is_named_with_those_that_are(run: Path) -> None:
    for folder in (run.parent / "typo", run.parent):
        with pytest.raises(ValueError, match=f"has no snapshots: .* runs with snapshots: {run}"):
            open_snapshots(folder)
    with pytest.raises(ValueError, match="does not exist; runs with snapshots: none"):
        RunModels(tiny_module().denoiser, run=run, device=CPU).snapshot(run="/nowhere/run", images="1/1", sigma_rel=0.1)


def test_a_run_without_averages_yet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(ValueError, match="has no averaged snapshots yet"):
        finished_model(tmp_path, None, 0.1)


def test_callbacks_that_hold_averages_are_recognized() -> None:
    assert isinstance(PostHocEMA(8), LiveAverages) and not isinstance(object(), LiveAverages)

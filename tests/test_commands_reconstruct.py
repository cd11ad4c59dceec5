"""The command `reconstruct`: averages out of a real run, as a run of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from callbacks import EarlySnapshots, PostHocEMA
from lightning_guide.commands.averages import reconstruct
from lightning_guide.runs.models import finished_model
from lightning_guide.snapshots import SnapshotMissing, SnapshotStore
from tests import runs
from tests.runs import TinyImages, assert_same, evaluation, tiny_module, tiny_trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PostHocEMA]:
    """A run of 64 steps that tracks sigma_rel 0.05 and 0.1 on disk and 0.07, 0.15 in memory."""
    folder = tmp_path_factory.mktemp("runs") / "main"
    tracked = PostHocEMA(10**9, sigma_rels=[0.07, 0.15])
    trainer = tiny_trainer(folder, PostHocEMA(16), EarlySnapshots(["1/2"]), tracked, steps=64)
    trainer.fit(tiny_module(average=None), datamodule=TinyImages())
    for entry in SnapshotStore(folder / "snapshots").entries():
        if entry.sigma_rel in (0.07, 0.15):
            entry.path.unlink()  # as if they had never been tracked
    (folder / "snapshots" / "index.json").unlink()
    return folder, tracked


def test_averages_of_other_widths_are_those_that_were_tracked(
    run: tuple[Path, PostHocEMA], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, tracked = run
    files = reconstruct(str(folder), [0.07, 0.15, 0.1], out=str(tmp_path))
    assert [Path(file).name for file in files] == [
        f"images-000000000256-sigma_rel-0.{w}00.safetensors" for w in ("07", "15", "10")
    ]
    said = zip(("0.07", "0.15", "0.1"), files, strict=True)
    assert capsys.readouterr().out.splitlines() == [f"sigma_rel {w} after 256 images: {file}" for w, file in said]
    for width in (0.07, 0.15):
        rebuilt = dict(finished_model(tmp_path, None, width).named_parameters())
        for name, live in tracked.live(width).named_parameters():
            assert (rebuilt[name] - live).norm() <= 0.005 * live.norm()
    stored = finished_model(folder, None, 0.1).state_dict()
    assert_same(dict(finished_model(tmp_path, None, 0.1).state_dict()), dict(stored))


def test_the_result_is_a_run_that_can_be_evaluated(run: tuple[Path, PostHocEMA]) -> None:
    folder, _ = run
    before = runs.snapshots(folder)
    files = reconstruct(str(folder), [0.08], images=["1/2", 192, 1.0])
    assert all(Path(file).parent == folder / "reconstructed" / "snapshots" for file in files)
    store = SnapshotStore(folder / "reconstructed" / "snapshots")
    assert [(e.images, e.sigma_rel) for e in store.entries()] == [(128, 0.08), (192, 0.08), (256, 0.08)]
    assert store.planned_images == 256
    assert_same(runs.snapshots(folder), before)
    module = tiny_module(evaluations={"plain": evaluation()}, average=0.08, images="1/2")
    (result,) = tiny_trainer(folder / "reconstructed").test(module, datamodule=TinyImages(), verbose=False)
    assert result["plain/samples"] == 5


def test_what_cannot_be_rebuilt_is_said(run: tuple[Path, PostHocEMA], tmp_path: Path) -> None:
    folder, _ = run
    with pytest.raises(ValueError, match=f"has no snapshots: .* runs with snapshots: {folder}"):
        reconstruct(str(folder.parent / "typo"), [0.1])
    with pytest.raises(SnapshotMissing, match=r"images=20\b.*available: images 8, 16"):
        reconstruct(str(folder), [0.1], images=[20], out=str(tmp_path))
    with pytest.raises(SnapshotMissing, match="sigma_rel=0.28 cannot be rebuilt well enough"):
        reconstruct(str(folder), [0.28], images=[16], out=str(tmp_path))
    with pytest.raises(ValueError, match="sigma_rel must lie between 0 and"):
        reconstruct(str(folder), [0.4], out=str(tmp_path))
    assert not list(tmp_path.iterdir())
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(ValueError, match="has no averaged snapshots"):
        reconstruct(str(tmp_path), [0.1])

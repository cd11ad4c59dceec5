"""Going back to an earlier checkpoint: a branch that continues, and the run as it was in a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from callbacks import EarlySnapshots, GracefulStop, HalfLifeEMA, PostHocEMA, RunCheckpoint, SampleGrid
from lightning_guide.runs import branches
from lightning_guide.runs.checkpoints import newest_checkpoint, recorded_checkpoints
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.training.learning_rate import InverseSqrtRate
from tests.runs import TinyImages, assert_same, checkpoint, evaluation, snapshots, tiny_module, tiny_trainer

IMAGES = 4  # in a step


def fit(folder: Path, steps: int, *, ckpt_path: Path | None = None, peak: float = 0.01) -> None:
    """Train in `folder` for `steps`, by default from the newest checkpoint."""
    module = tiny_module(evaluations={"plain": evaluation()}, learning_rate=InverseSqrtRate(peak))
    callbacks = (PostHocEMA(2 * IMAGES), HalfLifeEMA(4 * IMAGES), EarlySnapshots(["1/8"], rebuildable=1), SampleGrid(4))
    trainer = tiny_trainer(
        folder, *callbacks, RunCheckpoint(4), GracefulStop(), steps=steps, limit_val_batches=1.0, val_check_interval=8
    )
    trainer.fit(module, datamodule=TinyImages(), ckpt_path=ckpt_path or newest_checkpoint(folder), weights_only=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def gone_back(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to step 16 that went back to step 4 and on to step 10 with another learning rate."""
    folder = tmp_path_factory.mktemp("branches")
    run = folder / "run"
    fit(run, 4)
    shutil.copy(newest_checkpoint(run) or "", folder / "step4.ckpt")
    fit(run, 16)
    shutil.copytree(run, folder / "before")
    fit(run, 10, ckpt_path=folder / "step4.ckpt", peak=0.05)
    return folder


def test_the_branch_is_kept_and_continued(gone_back: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(gone_back / "run", tmp_path / "run"))
    assert names(run) == ["step-000000008.ckpt", "step-000000010.ckpt"]
    assert newest_checkpoint(run) == run / "checkpoints" / "step-000000010.ckpt"
    assert max(entry.images for entry in SnapshotStore(run / "snapshots").entries()) == 10 * IMAGES
    assert max(entry.images for entry in SnapshotStore(run / "half_life/snapshots").entries()) == 10 * IMAGES
    fit(run, 12, peak=0.05)
    straight = tmp_path / "straight"
    straight.mkdir()
    fit(straight, 12, ckpt_path=gone_back / "step4.ckpt", peak=0.05)
    one, other = checkpoint(run), checkpoint(straight)
    assert one.pop("branch") == 1
    assert_same(one, other)
    found = snapshots(run)
    for name, each in snapshots(straight).items():
        assert_same(each, found[name], name)


def test_the_run_as_it_was_is_a_run_of_its_own(gone_back: Path, tmp_path: Path) -> None:
    aside, before = gone_back / "run" / "branches" / "1", gone_back / "before"
    assert names(aside) == names(before) == ["step-000000012.ckpt", "step-000000016.ckpt"]
    assert_same(snapshots(aside), snapshots(before))
    assert_same(snapshots(aside / "half_life"), snapshots(before / "half_life"))
    run = Path(shutil.copytree(aside, tmp_path / "run"))
    fit(run, 20)
    fit(before, 20)
    assert_same(checkpoint(run), checkpoint(before))


def test_grids_of_the_two_do_not_mix(gone_back: Path) -> None:
    grids = {path.name for path in (gone_back / "run" / "grids").iterdir()}
    assert grids == {f"fit-{8 * IMAGES}-plain.png"}  # drawn by the branch
    aside = {path.name for path in (gone_back / "run" / "branches" / "1" / "grids").iterdir()}
    assert aside == {f"fit-{step * IMAGES}-plain.png" for step in (8, 16)}
    one, other = (gone_back / part / f"grids/fit-{8 * IMAGES}-plain.png" for part in ("run", "run/branches/1"))
    assert one.read_bytes() != other.read_bytes()


def test_a_checkpoint_of_the_other_branch_is_refused_with_its_folder(gone_back: Path) -> None:
    later = gone_back / "run/branches/1/checkpoints/step-000000016.ckpt"
    with pytest.raises(ValueError, match=r"belongs to what the run was before it went back to step 4.*branches/1"):
        fit(gone_back / "run", 20, ckpt_path=later)


def test_resuming_from_the_newest_is_no_branch(tmp_path: Path) -> None:
    fit(tmp_path, 6)
    newest = newest_checkpoint(tmp_path)
    fit(tmp_path, 8, ckpt_path=newest)
    fit(tmp_path, 10)
    assert not (tmp_path / "branches").exists()


def test_a_kill_while_files_are_removed_is_made_up_for(gone_back: Path, tmp_path: Path) -> None:
    run, copy = gone_back / "before", tmp_path / "run"
    shutil.copytree(run, copy)
    calls, unlink = [0], Path.unlink

    def dies(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".safetensors":
            calls[0] += 1
            if calls[0] == 3:
                raise KeyboardInterrupt
        unlink(path, missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", dies)
        with pytest.raises(KeyboardInterrupt):
            branches.set_aside(copy, checkpoint=gone_back / "step4.ckpt", step=4, images=4 * IMAGES)
    assert newest_checkpoint(copy) == copy / "checkpoints" / "step-000000004.ckpt"
    branches.finish_branch(copy)
    assert branches.later_files(copy, step=4, images=4 * IMAGES) == []
    assert {p.name for p in recorded_checkpoints(copy)} == set(names(copy)) == {"step-000000004.ckpt"}
    assert max(entry.images for entry in SnapshotStore(copy / "branches/1/snapshots").entries()) >= 16 * IMAGES


def test_files_of_the_user_stay_where_they_are(tmp_path: Path) -> None:
    fit(tmp_path, 4)
    shutil.copy(newest_checkpoint(tmp_path) or "", tmp_path / "step4.ckpt")
    fit(tmp_path, 8)
    own = ["checkpoints/step-000000008-best.ckpt", "checkpoints/step-000000099.ckpt", "snapshots/notes.txt"]
    own += ["grids/fit-99-mine.txt", "notes.md", "snapshots/images-000000000032-copy.safetensors"]
    for file in own:
        (tmp_path / file).write_bytes(b"mine")
    fit(tmp_path, 6, ckpt_path=tmp_path / "step4.ckpt")
    fit(tmp_path, 16)
    assert all((tmp_path / file).read_bytes() == b"mine" for file in own)
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "step-000000016.ckpt"

"""Synthetic sets: drawn by seed, once, by any number of processes, resumable; mismatches are refused."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks import PostHocEMA
from datamodules import Points, SelfSynthesized, Shards
from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.distributions.gaussian_mixture import gaussian
from lightning_guide.guidance import Autoguidance, Guidance, Main, Snapshot
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.runs.models import finished_model, pretrained
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds, mix
from lightning_guide.training.losses import EDMLoss
from lightning_guide.utils.distributed import run_on_all_ranks
from tests.processes import Processes, kill
from tests.ranks import options
from tests.runs import SAMPLER, TinyImages, TinyNetwork, tiny_module, tiny_trainer

COUNT, CHUNK = 11, 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: averages after 16 and 32 images."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    tiny_trainer(folder, PostHocEMA(16), steps=8).fit(tiny_module(average=None), datamodule=TinyImages())
    return folder


def synthetic(base: Path | str, folder: Path | str, **changed: Any) -> SelfSynthesized:
    settings: dict[str, Any] = {"data": TinyImages(), "sampler": SAMPLER, "chunk_size": CHUNK, "num_samples": COUNT}
    return SelfSynthesized(**{"run": str(base), "folder": str(folder), **settings, **changed})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "log"}


# Content of a set


def test_samples_follow_seeds_and_are_read_back(base: Path, tmp_path: Path) -> None:
    data = synthetic(base, tmp_path, classes="equal", sampling_seed=7)
    data.setup("fit")
    assert sorted(files(tmp_path)) == [*(f"synthetic-{c:06d}.tar" for c in range(3)), "synthetic.json"]
    examples = data.training()
    x, labels = examples.take(torch.arange(COUNT))
    assert labels is not None and torch.bincount(labels).tolist() == [4, 4, 3]
    seeds = SampleSeeds(mix(7, "synthesis"), range(4, 8))
    drawn = SAMPLER.sample(finished_model(base, None, 0.05), seeds=seeds, condition=labels[4:8]).x
    assert torch.equal(x[4:8], ((drawn + 1) * 127.5).round().clip(0, 255).to(torch.uint8)) and x.float().std() > 20
    assert torch.equal(data.heldout().take(torch.arange(5)).x, TinyImages().heldout().x[:5])
    real = torch.cat([batch.x for batch in data.reference(torch.device("cpu"))])
    assert torch.equal(real, TinyImages().training().x)
    description = json.loads((tmp_path / "synthetic.json").read_text())
    assert description["counts"] == [4, 4, 3]
    assert description["settings"]["model"] == finished_model(base, None, 0.05).recipe
    assert description["settings"]["sampler"]["init_args"]["grid"]["init_args"]["num_steps"] == 3


def test_noise_differs_from_that_of_evaluations(base: Path, tmp_path: Path) -> None:
    one = SampleSeeds(mix(0, "synthesis"), range(50)).normal("initial", (1,))
    other = SampleSeeds(0, range(50)).normal("initial", (1,))
    assert not bool((one == other.T).any())


@pytest.mark.parametrize(("classes", "counts"), [([1, 0, 3], [3, 0, 8]), ("data", None), ([2.0, 1.0, 1.0], [5, 3, 3])])
def test_class_mix(base: Path, tmp_path: Path, classes: Any, counts: list[int] | None) -> None:
    data = synthetic(base, tmp_path, classes=classes)
    data.setup("fit")
    labels = data.training().take(torch.arange(COUNT)).condition
    if counts is None:
        shares = torch.bincount(TinyImages().training().labels) / 40  # type: ignore[arg-type]
        assert ((torch.bincount(labels, minlength=3) - COUNT * shares).abs() < 1).all()  # type: ignore[arg-type]
    else:
        assert torch.bincount(labels, minlength=3).tolist() == counts  # type: ignore[arg-type]


def test_guided_model_draws(base: Path, tmp_path: Path) -> None:
    guidance = Autoguidance(Snapshot(16, 0.1), 3.0)
    data, plain = synthetic(base, tmp_path / "guided", guidance=guidance), synthetic(base, tmp_path / "plain")
    for each in (data, plain):
        each.setup("fit")
    assert not torch.equal(data.training().take(torch.arange(4)).x, plain.training().take(torch.arange(4)).x)


def test_points_are_stored_exactly(tmp_path: Path) -> None:
    points = Points(gaussian([0.2, 0.1], [[0.3, 0.0], [0.0, 0.2]]), batch_size=4)
    module = DiffusionModule(_points_model(), EDMLoss(), average=None)
    tiny_trainer(tmp_path / "base", PostHocEMA(16), steps=4).fit(module, datamodule=points)
    data = synthetic(tmp_path / "base", tmp_path / "set", data=points)
    data.setup("fit")
    x, labels = data.training().take(torch.arange(COUNT))
    assert labels is None and x.shape == (COUNT, 2) and x.dtype == torch.float32
    model = finished_model(tmp_path / "base", None, 0.05)
    drawn = SAMPLER.sample(model, seeds=SampleSeeds(mix(0, "synthesis"), range(CHUNK))).x
    assert torch.equal(x[:CHUNK], drawn)
    with pytest.raises(ValueError, match=r"classes are the shares \[1.0\], but the model in .* has no labels"):
        synthetic(tmp_path / "base", tmp_path / "other", data=points, classes=[1.0]).setup("fit")


def _points_model() -> Denoiser:
    return tiny_module(TinyNetwork((2,), 0)).denoiser


def test_color_images_are_read_by_shards(tmp_path: Path) -> None:
    images = TinyImages(shape=(3, 4, 4))
    module = tiny_module(TinyNetwork((3, 4, 4)), average=None)
    tiny_trainer(tmp_path / "base", PostHocEMA(16), steps=4).fit(module, datamodule=images)
    data = synthetic(tmp_path / "base", tmp_path / "set", data=images)
    data.setup("fit")
    pattern = str(tmp_path / "set/synthetic-*.tar")
    shards = Shards(train=pattern, heldout=pattern, num_classes=3)
    one, other = (each.training().take(torch.arange(COUNT)) for each in (shards, data))
    assert torch.equal(one.x, other.x) and torch.equal(one.condition, other.condition)  # type: ignore[arg-type]


def test_gray_images_are_read_by_shards(base: Path, tmp_path: Path) -> None:
    data = synthetic(base, tmp_path)
    data.setup("fit")
    shards = Shards(train=str(tmp_path / "*.tar"), heldout=str(tmp_path / "*.tar"), num_classes=3)
    one, other = (each.training().take(torch.arange(COUNT)) for each in (shards, data))
    assert torch.equal(one.x, other.x.expand(-1, 3, -1, -1)) and torch.equal(one.condition, other.condition)


# Resumption and refusal


def test_existing_shards_are_kept_and_missing_or_damaged_ones_redrawn(base: Path, tmp_path: Path) -> None:
    synthetic(base, tmp_path).setup("fit")
    complete = files(tmp_path)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    (tmp_path / "synthetic-000000.tar").unlink()
    (tmp_path / "synthetic-000002.tar").write_bytes(complete["synthetic-000002.tar"][:700])
    flipped = bytearray(kept_bytes := complete["synthetic-000001.tar"])
    flipped[kept_bytes.find(b"IDAT") + 8] ^= 0xFF
    with pytest.raises(ValueError, match="truncated or damaged"):
        synthetic(base, tmp_path).training()
    synthetic(base, tmp_path).setup("fit")
    assert files(tmp_path) == complete
    kept = tmp_path / "synthetic-000001.tar"
    assert kept.stat().st_mtime_ns == times[kept.name]
    kept.write_bytes(flipped)  # all records exist, one image is damaged
    synthetic(base, tmp_path).setup("fit")
    assert files(tmp_path) == complete


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_only_training_draws(base: Path, tmp_path: Path, stage: str) -> None:
    data = synthetic(base, tmp_path / "none")
    data.setup(stage)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="holds no synthetic set yet"):
        data.training()


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"sampling_seed": 1}, "sampling_seed was 0 and is now 1"),
        ({"num_samples": 12}, "num_samples was 11 and is now 12"),
        ({"classes": "equal"}, "classes was 'data' and is now 'equal'"),
        ({"images": 16}, "weights_sha256 was "),
        ({"sampler": Euler()}, "sampler.init_args.grid was "),
        ({"guidance": Autoguidance(Main(), 2.0)}, "guidance.class_path was "),
    ],
)
def test_set_with_other_settings_is_refused(base: Path, tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    synthetic(base, tmp_path).setup("fit")
    before = files(tmp_path)
    with pytest.raises(ValueError, match=f"made with other settings: {named}"):
        synthetic(base, tmp_path, **changed).setup("fit")
    assert files(tmp_path) == before


def test_set_of_another_architecture_is_refused(base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    network = TinyNetwork(dropout=0.5)
    tiny_trainer(other, PostHocEMA(16), steps=4).fit(tiny_module(network, average=None), datamodule=TinyImages())
    synthetic(base, tmp_path / "set").setup("fit")
    with pytest.raises(ValueError, match=r"model.init_args.network.init_args.dropout was 0.25 and is now 0.5"):
        synthetic(other, tmp_path / "set").setup("fit")


def test_foreign_shards_are_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "train-00000.tar").touch()
    with pytest.raises(ValueError, match="train-00000.tar exists without synthetic.json; expected a folder without"):
        synthetic(base, tmp_path).setup("fit")


def test_model_of_other_data_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"draws x of shape \(1, 4, 4\), the data have \(3, 4, 4\)"):
        synthetic(base, tmp_path, data=TinyImages(shape=(3, 4, 4))).setup("fit")
    with pytest.raises(ValueError, match="has 3 classes, the data have 5"):
        synthetic(base, tmp_path, data=TinyImages(classes=5)).setup("fit")
    with pytest.raises(ValueError, match="run 'elsewhere' has no snapshots"):
        synthetic("elsewhere", tmp_path).setup("fit")
    assert not files(tmp_path)


def test_samples_out_of_bounds_are_refused(base: Path, tmp_path: Path) -> None:
    data = synthetic(base, tmp_path, guidance=Autoguidance(Snapshot(16, 0.1), 1e6))
    with pytest.raises(ValueError, match="of the samples 0 to 3 of seed 0 are not finite .* may be too large"):
        data.setup("fit")
    assert list(files(tmp_path)) == ["synthetic.json"]
    synthetic(base, tmp_path, guidance=Autoguidance(Snapshot(16, 0.1), 1.5)).setup("fit")  # the same folder is accepted


def test_set_with_other_labels_is_refused(base: Path, tmp_path: Path) -> None:
    """`classes: data` is unchanged, but the data have changed."""
    synthetic(base, tmp_path).setup("fit")
    (tmp_path / "synthetic-000001.tar").unlink()
    before = files(tmp_path)
    changed = synthetic(base, tmp_path)
    examples = changed.data.training()
    examples.labels.fill_(1)  # type: ignore[attr-defined]
    changed.data.training = lambda: examples  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"counts was \[.*\] and is now \[0, 11, 0\]"):
        changed.setup("fit")
    assert files(tmp_path) == before


def test_training_does_not_resume_on_another_set(base: Path, tmp_path: Path) -> None:
    def trained(seed: int, steps: int, checkpoint: Path | None) -> Any:
        data = synthetic(base, tmp_path / f"set-{seed}", sampling_seed=seed)
        trainer = tiny_trainer(tmp_path / "run", steps=steps)
        module = DiffusionModule(pretrained(str(base)), EDMLoss(), average=None)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return trainer

    saved = tmp_path / "two.ckpt"
    trained(0, 2, None).save_checkpoint(saved)
    with pytest.raises(ValueError, match="made with other settings: sampling_seed was 0 and is now 1"):
        trained(1, 4, saved)
    assert trained(0, 4, saved).global_step == 4


@pytest.mark.parametrize("failure", [OSError("no space left"), RuntimeError("out of memory"), ValueError("bad")])
def test_error_of_one_process_keeps_its_type_and_reaches_others(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered: list[str] = []

    def gather(errors: list[str | None], error: str | None) -> None:
        gathered.append(str(error))
        errors[:] = [None, error]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)

    def act() -> None:
        raise failure

    with pytest.raises(type(failure), match=str(failure)):
        run_on_all_ranks(act)
    assert len(gathered) == 1 and str(failure) in gathered[0]


# Several and killed processes


class Slow(Euler):
    """Euler with a delay, so that the process can be killed while sampling."""

    def sample(self, *args: Any, **kwargs: Any) -> Trajectory:
        time.sleep(0.15)
        return super().sample(*args, **kwargs)


class Bad(Guidance):
    """Guidance whose sample 5, drawn by rank 1, is not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.positive = Main()

    def start(self, trajectory: Trajectory) -> Predict:
        inner = self.positive.start(trajectory)
        poison = torch.tensor([float("nan") if i == 5 else 0.0 for i in trajectory.seeds.indices])

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            return Prediction(inner(x, sigma, condition).clean + poison[:, None, None, None])

        return predict


def synthesize(base: str, folder: str, world: int, bad: bool = False, slow: bool = False) -> None:
    """Draw a synthetic set and train one step on it."""
    sampler = Slow(SAMPLER.grid) if slow else SAMPLER
    data = synthetic(base, folder, guidance=Bad() if bad else None, sampler=sampler, num_samples=23)
    module = DiffusionModule(pretrained(base), EDMLoss(), average=None)
    tiny_trainer(Path(folder) / "run", steps=1, **options(world)).fit(module, datamodule=data)


SYNTHESIZE = ("tests.test_datamodules_self_synthesized", "synthesize")


def made(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*folder.glob("*.tar"), folder / "synthetic.json"]}


def test_two_processes_write_same_bytes_as_one(processes: Processes, base: Path, tmp_path: Path) -> None:
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        processes.call_ranks(world, SYNTHESIZE, folder / "log", base=str(base), folder=str(folder), world=world)
    assert len(made(tmp_path / "1")) == 7 and made(tmp_path / "1") == made(tmp_path / "2")


def test_invalid_samples_of_one_process_end_both(processes: Processes, base: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"base": str(base), "folder": str(tmp_path), "world": 2, "bad": True}
    pids = processes.start_ranks(2, SYNTHESIZE, tmp_path / "log", **arguments)
    assert [processes.wait(pid) for pid in pids] == [1, 1]
    for number in range(2):
        log = (tmp_path / f"log.{number}").read_text()
        assert "ValueError: 1 of the samples 4 to 7 of seed 0 are not finite or out of bounds, first 5" in log


def test_killed_and_restarted(processes: Processes, base: Path, tmp_path: Path) -> None:
    full, resumed = tmp_path / "full", tmp_path / "resumed"
    arguments: dict[str, Any] = {"base": str(base), "world": 1, "slow": True}
    for folder in (full, resumed):
        folder.mkdir()
    processes.call(SYNTHESIZE, full / "log", folder=str(full), **arguments)
    pid = processes.start(SYNTHESIZE, resumed / "log", folder=str(resumed), **arguments)
    while len(list(resumed.glob("*.tar"))) < 2:
        time.sleep(0.005)
    kill(pid)
    assert processes.wait(pid) == -9
    first = {path.name: path.stat().st_mtime_ns for path in resumed.glob("*.tar")}
    assert 2 <= len(first) < 6
    processes.call(SYNTHESIZE, resumed / "log", folder=str(resumed), **arguments)
    assert made(resumed) == made(full)
    assert all((resumed / name).stat().st_mtime_ns == stamp for name, stamp in first.items())

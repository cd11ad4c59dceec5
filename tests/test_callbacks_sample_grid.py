"""Sample grids: the right samples in the right order, in TensorBoard and in files, for images and for points."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from callbacks.base import EvaluationSamples
from callbacks.sample_grid import SampleGrid
from datamodules.base import DiffusionData
from datamodules.examples import Examples, TensorExamples
from datamodules.points import Points
from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.evaluation.evaluation import Evaluation
from lightning_guide.evaluation.sampling_loop import DrawnSamples
from lightning_guide.guidance import ScoreScaling
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.noise import KarrasGrid
from lightning_guide.samplers import Euler, Heun
from lightning_guide.training.losses import EDMLoss

SAMPLER = Euler(KarrasGrid(3, sigma_max=5.0))


class Pale(Denoiser):
    """Denoiser of white-noise images of standard deviation `scale` / 2."""

    num_classes, sigma_data = 0, 0.5

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.data_shape = shape
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        variance = (self.sigma_data * self.scale) ** 2
        return x * (variance / (variance + sigma.reshape(-1, *[1] * (x.ndim - 1) if sigma.ndim else []) ** 2))


class FourImages(DiffusionData):
    """Four held-out images; samples are stored as uint8, or unchanged."""

    num_classes = 0

    def __init__(self, shape: tuple[int, ...], *, stored: torch.dtype = torch.uint8) -> None:
        super().__init__(batch_size=2)
        self.data_shape, self.stored = shape, stored

    def training(self) -> Examples:
        return TensorExamples(torch.randn(4, *self.data_shape))

    heldout = training

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float()

    def decode(self, x: Tensor) -> Tensor:
        return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8) if self.stored == torch.uint8 else x


class Kept(EvaluationSamples):
    """Keeps the samples instead of drawing them."""

    def draw(self, trainer: pl.Trainer, module: DiffusionModule, samples: dict[str, DrawnSamples]) -> None:
        self.drawn = samples


def trainer(folder: Path, *callbacks: pl.Callback, logger: bool = False, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=str(folder),
        logger=TensorBoardLogger(str(folder), name="", version="events") if logger else False,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        inference_mode=False,
        **options,
    )


def image_module(
    shape: tuple[int, ...] = (1, 8, 8), *, batch: int = 3, count: int = 10, first: int = 0
) -> DiffusionModule:
    common: dict[str, Any] = {"sampler": SAMPLER, "num_samples": count, "batch_size": batch, "first_index": first}
    evaluations = {"plain": Evaluation(**common), "w=2/odd name": Evaluation(guidance=ScoreScaling(2.0), **common)}
    return DiffusionModule(Pale(shape), EDMLoss(), evaluations=evaluations, average=None)


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "events"), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator


def pixels(data: Path | bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data) if isinstance(data, bytes) else data))


@pytest.mark.parametrize("batch", [1, 3, 4, 100])
def test_keeps_the_samples_of_smallest_index_for_any_batch_size(tmp_path: Path, batch: int) -> None:
    kept, everything = Kept(4), Kept(1000)
    trainer(tmp_path, kept, everything).test(image_module(batch=batch, first=20), FourImages((1, 8, 8)), verbose=False)
    assert list(kept.drawn) == ["plain", "w=2/odd name"]
    for name, drawn in kept.drawn.items():
        assert drawn.index.tolist() == [20, 21, 22, 23]
        assert torch.equal(drawn.x, everything.drawn[name].x[:4])
    assert everything.drawn["plain"].index.tolist() == list(range(20, 30))


def test_keeps_the_smallest_indices_in_any_order_of_arrival() -> None:
    kept = Kept(3)
    module = image_module()
    for number in ([5, 9], [7, 1], [8, 6], [0, 2]):
        index = torch.tensor(number)
        kept._keep(module, 0, DrawnSamples(index, -torch.ones_like(index), index[:, None].float() * 10))
    assert kept._kept["plain"].index.tolist() == [0, 1, 2]
    assert kept._kept["plain"].x[:, 0].tolist() == [0, 10, 20]


@pytest.fixture
def grids(tmp_path: Path) -> Iterator[Path]:
    """Folder of a test run with grids of 6 images in 3 columns."""
    run = trainer(tmp_path, SampleGrid(6, columns=3), Kept(6), logger=True)
    run.test(image_module(), FourImages((1, 8, 8)), verbose=False)
    expected = run.callbacks[1].drawn["plain"].x  # type: ignore[attr-defined]
    torch.save(expected, tmp_path / "expected.pt")
    yield tmp_path


def test_tiny_images_are_enlarged_and_laid_out_by_rows(grids: Path) -> None:
    names = sorted(path.name for path in (grids / "grids").iterdir())
    assert names == ["test-0-plain.png", "test-0-w=2_odd_name.png"]
    grid = pixels(grids / "grids" / "test-0-plain.png")
    assert grid.shape == (2 * 66 + 2, 3 * 66 + 2, 3) and grid.dtype == np.uint8
    expected = torch.load(grids / "expected.pt")
    for number, image in enumerate(expected):
        top, left = 2 + 66 * (number // 3), 2 + 66 * (number % 3)
        tile = grid[top : top + 64, left : left + 64]
        assert (tile[::8, ::8, 0] == image[0].numpy()).all()
        assert (tile == np.repeat(np.repeat(tile[::8, ::8], 8, axis=0), 8, axis=1)).all()
    assert (grid[:2] == 255).all()


def test_tensorboard_holds_the_same_image_as_the_file(grids: Path) -> None:
    log = events(grids)
    assert sorted(log.Tags()["images"]) == ["samples/plain", "samples/w=2/odd name"]
    (event,) = log.Images("samples/plain")
    assert event.step == 0
    assert (pixels(event.encoded_image_string) == pixels(grids / "grids" / "test-0-plain.png")).all()


def test_draws_at_each_validation_of_a_fit_at_its_step_but_not_in_the_sanity_check(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    run = trainer(
        tmp_path,
        SampleGrid(2, folder=str(folder)),
        logger=True,
        max_steps=4,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=1,
    )
    run.fit(image_module(count=3), FourImages((1, 8, 8)))
    assert sorted(path.name for path in folder.glob("*plain.png")) == ["fit-4-plain.png", "fit-8-plain.png"]
    assert [event.step for event in events(tmp_path).Images("samples/plain")] == [2, 4]


def test_color_images_of_full_size_are_not_enlarged(tmp_path: Path) -> None:
    trainer(tmp_path, SampleGrid(2)).test(image_module((3, 64, 70), count=2), FourImages((3, 64, 70)), verbose=False)
    assert pixels(tmp_path / "grids" / "test-0-plain.png").shape == (64 + 4, 2 * 72 + 2, 3)


@pytest.mark.parametrize("channels", [2, 4])
def test_latents_show_three_channels_or_one_over_their_full_range(tmp_path: Path, channels: int) -> None:
    shape = (channels, 64, 64)
    data = FourImages(shape, stored=torch.float32)
    trainer(tmp_path, SampleGrid(2)).test(image_module(shape, count=2), data, verbose=False)
    grid = pixels(tmp_path / "grids" / "test-0-plain.png")
    tile = grid[2:66, 2:66]
    assert grid.min() == 0 and tile.std() > 10
    assert (tile[..., 0] == tile[..., 1]).all() == (channels == 2)


def test_points_are_scattered_on_the_axes_of_the_real_data(tmp_path: Path) -> None:
    mixture = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], [[[0.01, 0.0], [0.0, 0.01]]] * 2)
    common: dict[str, Any] = {"sampler": Heun(KarrasGrid(12, sigma_max=5.0)), "num_samples": 200}
    evaluations = {"plain": Evaluation(**common), "far": Evaluation(guidance=ScoreScaling(0.5), **common)}
    module = DiffusionModule(mixture, EDMLoss(), evaluations=evaluations, average=None)
    trainer(tmp_path, SampleGrid(150)).test(module, Points(mixture), verbose=False)
    drawn = {name: pixels(tmp_path / "grids" / f"test-0-{name}.png") for name in evaluations}
    for image in drawn.values():
        assert image.shape == (600, 600, 3)
    dots = _blue(drawn["plain"])
    assert dots.sum() > 1000 and not dots[:, 290:340].any()  # two clusters with a gap between them
    assert np.flatnonzero(dots.any(axis=0)).min() < 150 and np.flatnonzero(dots.any(axis=0)).max() > 480
    assert not dots[:246].any() and _blue(drawn["far"])[:246].any()


def _blue(image: np.ndarray) -> np.ndarray:
    return (image[..., 2].astype(int) - image[..., 0]) > 100


@pytest.mark.parametrize("dimensions", [1, 5])
def test_points_of_other_dimensions_and_points_that_are_not_finite_are_drawn(tmp_path: Path, dimensions: int) -> None:
    data = FourImages((dimensions,), stored=torch.float32)
    module = image_module((dimensions,), count=20)
    run = trainer(tmp_path, SampleGrid(20), Kept(20))
    run.test(module, data, verbose=False)
    drawn = run.callbacks[1].drawn  # type: ignore[attr-defined]
    drawn["plain"].x[3:5] = torch.tensor([[torch.nan], [torch.inf]])
    drawn["w=2/odd name"].x[:] = torch.nan
    SampleGrid(20, folder=str(tmp_path / "damaged")).draw(run, module, drawn)
    for name in ("plain", "w=2_odd_name"):
        whole = _blue(pixels(tmp_path / "grids" / f"test-0-{name}.png"))
        damaged = _blue(pixels(tmp_path / "damaged" / f"test-0-{name}.png"))
        assert whole.any() and damaged.any() == (name == "plain") and whole.sum() > damaged.sum()


@pytest.mark.parametrize(("arguments", "message"), [({"count": 0}, "count >= 1"), ({"columns": 0}, "columns >= 1")])
def test_empty_grids_are_rejected(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleGrid(**arguments)

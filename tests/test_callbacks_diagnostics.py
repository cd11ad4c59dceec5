"""Diagnostics of guidance against exact denoisers: recorded trajectories and the callbacks that draw them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from callbacks import AccumulatedGradients, GradientCosines, LossCurves, PostHocEMA
from callbacks.diagnostics.gradient_cosines import cosines
from callbacks.diagnostics.loss_curves import _numbers
from callbacks.diagnostics.trajectories import GuidedTrajectories, RecordedTrajectory, record_trajectory, save_figure
from datamodules import DigitCaptions
from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import Unconditional
from lightning_guide.guidance.training_free import DPS, AddedNoise, Augmented, ClassifierGuidance, Probe
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.networks import EDM2UNet
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import ClassLabel, SquaredDistance
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import AtLevel
from lightning_guide.samplers import Euler, Heun, TimeTravel
from lightning_guide.seeds import SampleSeeds
from lightning_guide.training.losses import EDMLoss
from tests.energies import mixture
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer

double = torch.float64
GRID = KarrasGrid(8, sigma_min=0.1, sigma_max=5.0)
LABELS = torch.tensor([0, 1, 2, 1, 0])


class Posterior(nn.Module):
    """Exact ln p(y | x, sigma) of the mixture, with one class for each component."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.prior = mixture([0, 1, 2])

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        each = [self.prior.log_density(x, sigma, torch.full((len(x),), y)) for y in range(3)]
        return torch.stack(each, 1).log_softmax(1)


def start(denoiser: Denoiser, seeds: SampleSeeds) -> Tensor:
    return Euler(GRID).initial(denoiser, seeds).double()


def test_exact_classifier_guidance_has_exact_displacements() -> None:
    """D + sigma^2 grad ln p(y | x) is the denoiser of the class: every cosine with it is 1."""
    labeled = mixture([0, 1, 2])
    guide = ClassifierGuidance(Posterior(), positive=Unconditional().resolve(Models(labeled)))
    seeds = SampleSeeds(0, range(5))
    found = record_trajectory(guide, Euler(GRID), seeds=seeds, condition=LABELS, x=start(guide, seeds))
    assert found.states.dtype == double and torch.equal(found.sigmas, GRID.sigmas()[:-1].double())
    for step, sigma in enumerate(found.sigmas.double()):
        exact = labeled(found.states[step], sigma, LABELS)
        torch.testing.assert_close(found.guided[step], exact, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.plain[step], labeled(found.states[step], sigma, None))
        wanted = Posterior()(found.states[step], sigma)[torch.arange(5), LABELS]
        torch.testing.assert_close(found.losses[step].double(), -wanted, rtol=1e-4, atol=1e-4)
    exact = torch.stack([labeled(x, s, LABELS) for x, s in zip(found.states, found.sigmas.double(), strict=True)])
    assert float(cosines(found.pushes, exact - found.plain).min()) > 1 - 1e-6


class Models:
    """Models whose references all resolve to one denoiser."""

    def __init__(self, main: Denoiser) -> None:
        self.main = main

    def snapshot(self, **_: Any) -> Denoiser:
        raise AssertionError


@pytest.mark.parametrize("sampler", [Heun(GRID), TimeTravel(Euler(GRID), 2)], ids=["heun", "time travel"])
def test_recording_changes_neither_samples_nor_nfe(sampler: Any) -> None:
    prior, loss = mixture(), SquaredDistance([0.5, 0.5, 0.5], 0.5)
    guide, ends = DPS(loss, 0.2, positive=prior), []
    for watched in (False, True):
        seeds = SampleSeeds(0, range(5))
        x = start(guide, seeds)
        if watched:
            found = record_trajectory(guide, sampler, seeds=seeds, x=x)
        *_, end = sampler.steps(guide, x, seeds=SampleSeeds(0, range(5)))
        ends.append((end.x, end.evaluations))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1] == ends[1][1]
    torch.testing.assert_close(found.plain[0], prior(x, torch.tensor(5.0, dtype=double)))
    torch.testing.assert_close(found.losses[0].double(), loss(found.plain[0]), rtol=1e-5, atol=1e-5)
    assert guide.positive is prior  # the guidance is unchanged


def test_cosines_of_a_quadratic_loss_around_a_gaussian() -> None:
    """D = x s^2 / (s^2 + sigma^2): the displacement is along target - D, and all cosines are known."""
    prior = GaussianMixture(torch.zeros(1, 3), 0.25 * torch.eye(3)[None])
    target, seeds = torch.tensor([1.0, 0.0, -1.0], dtype=double), SampleSeeds(1, range(4))
    guide = DPS(SquaredDistance(target), 0.3, positive=prior)
    found = record_trajectory(guide, Euler(GRID), seeds=seeds, x=start(guide, seeds))
    shrunk = 0.25 / (0.25 + found.sigmas.double() ** 2)
    toward = target - shrunk[:, None, None] * found.states
    torch.testing.assert_close(cosines(found.pushes, toward), torch.ones(8, 4, dtype=double), rtol=0, atol=1e-6)
    expected = torch.cosine_similarity(toward[1:], toward[:-1], dim=2)
    torch.testing.assert_close(cosines(found.pushes[1:], found.pushes[:-1]), expected, rtol=0, atol=1e-5)
    assert math.isnan(float(cosines(torch.zeros(1, 1, 3), torch.ones(1, 1, 3))))


def test_numbers_of_loss_curves() -> None:
    prior, seeds = mixture(), SampleSeeds(0, range(5))
    guide = DPS(SquaredDistance([1.0, 0.5, -0.3], 0.5), 0.2, positive=prior)
    found = record_trajectory(guide, Euler(GRID), seeds=seeds, x=start(guide, seeds))
    judged = torch.arange(40.0).reshape(8, 5)
    success = torch.tensor([True, False, True, False, False])
    values = _numbers(found, judged, success)
    assert values["success"]["count"] == 2 and values["failure"]["count"] == 3
    assert values["success"]["judge"] == [5 * step + 1.0 for step in range(8)]
    assert values["failure"]["guide"] == pytest.approx(found.losses[:, [1, 3, 4]].mean(1).tolist())
    assert values["gap"] == pytest.approx(37.0 - float(found.losses[-1].mean()), rel=1e-5)
    alone = _numbers(found, judged, torch.ones(5, dtype=torch.bool))["failure"]
    assert alone == {"count": 0}


class LinearClassifier(nn.Module):
    """Logits of three classes: fixed linear functions of an image, at every noise level."""

    num_classes = 3

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("rows", torch.randn(16, 3, generator=generator))

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        logits: Tensor = x.flatten(1) @ self.rows  # type: ignore[operator]
        return logits


def test_callbacks_write_figures_and_numbers_in_a_run(tmp_path: Path) -> None:
    """A validation of a tiny model writes numbers and images that are not blank, and logs both to TensorBoard."""
    judge, guide = ClassLabel(LinearClassifier(1)), ClassLabel(LinearClassifier(0))
    guidances: dict[str, Denoiser] = {
        "dps": DPS(guide, 0.3, positive=Unconditional()),
        "classifier": ClassifierGuidance(LinearClassifier(0), positive=Unconditional()),
    }
    probes = {
        "plain": Probe([guide]),
        "noise": Probe([guide], Augmented([AddedNoise(0.5)], 4)),
        "levels": Probe([ClassLabel(AtLevel(LinearClassifier(0), sigma)) for sigma in (5.0, 0.5)]),
    }
    drawers = [
        LossCurves(judge, count=4),
        GradientCosines("unguided", count=4),
        AccumulatedGradients(probes, judge, labels=[0, 1, 2], steps=6),
    ]
    module = tiny_module(evaluations={"unguided": evaluation()}, guidances=guidances, average=0.05)
    options: dict[str, Any] = {"limit_val_batches": 1.0, "val_check_interval": 2, "steps": 2}
    logger = TensorBoardLogger(str(tmp_path), name="tensorboard")
    trainer = tiny_trainer(tmp_path, PostHocEMA(8), *drawers, logger=logger, **options)
    trainer.fit(module, datamodule=TinyImages())
    found = {}
    for name in ("loss_curves", "gradient_cosines", "accumulated_gradients"):
        image = Image.open(tmp_path / f"report/{name}.png")
        assert len(image.convert("L").getcolors()) > 10, f"{name} is blank"
        found[name] = json.loads((tmp_path / f"report/{name}.json").read_text())
    assert (
        set(found["loss_curves"]) == {"dps", "classifier"} == set(found["gradient_cosines"])
    )  # "unguided" has no loss
    dps = found["loss_curves"]["dps"]
    assert dps["success"]["count"] + dps["failure"]["count"] == 4 and len(dps["sigmas"]) == 3
    # the exact displacement is that of the conditional model: zero before training, and so without a direction
    assert len(found["gradient_cosines"]["dps"]["successive"]) == 2
    assert set(found["accumulated_gradients"]["plain"]) == {"loss", "judge", "smoothness"}
    assert found["accumulated_gradients"]["plain"] == found["accumulated_gradients"]["levels"]
    assert any((tmp_path / "tensorboard").rglob("events.*"))


def test_numbers_that_are_not_finite_are_null_in_the_files(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    numbers = {"dps": {"gap": math.nan, "guide": [1.0, math.inf]}}
    save_figure(tiny_trainer(tmp_path), None, "loss_curves", Figure(figsize=(1, 1)), numbers)
    written = json.loads((tmp_path / "report/loss_curves.json").read_text(), parse_constant=refuse)
    assert written == {"dps": {"gap": None, "guide": [1.0, None]}}


class RecordedWalks(GuidedTrajectories):
    """Keeps the walks instead of drawing them."""

    def draw(self, trainer: pl.Trainer, module: DiffusionModule, walks: dict[str, RecordedTrajectory]) -> None:
        self.walks = walks


def test_walks_of_a_text_conditional_model_use_prompts(tmp_path: Path) -> None:
    """Sample i of an evaluation has prompt i modulo their number, and so does its walk."""
    torch.manual_seed(0)
    network = EDM2UNet((1, 8, 8), token_channels=32, model_channels=8, channel_mult=[1], attention_resolutions=[])
    model = Preconditioned(network).eval()
    for gain in (p for name, p in model.named_parameters() if name.endswith("gain")):
        torch.nn.init.ones_(gain)  # they start at 0, and the output would not depend on the text
    shown, data = RecordedWalks(3, None), DigitCaptions(batch_size=4)
    pulled = evaluation(DPS(SquaredDistance([0.3], 0.5), 0.2), first_index=8)
    module = DiffusionModule(model, EDMLoss(), average=None, heldout_sigmas=(0.3,), evaluations={"pulled": pulled})
    tiny_trainer(tmp_path, shown).test(module, datamodule=data, verbose=False)
    found, prompts = shown.walks["pulled"], data.prompts()[[8, 9, 0]]
    assert found.condition is not None and torch.equal(found.condition, prompts)
    with torch.no_grad():
        expected = [model(x, s.float(), prompts) for x, s in zip(found.states, found.sigmas, strict=True)]
        silent = [model(x, s.float()) for x, s in zip(found.states, found.sigmas, strict=True)]
    torch.testing.assert_close(found.plain, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert float((found.plain - torch.stack(silent)).abs().max()) > 1e-2


def test_invalid_settings_are_rejected(tmp_path: Path) -> None:
    module = tiny_module(evaluations={"plain": evaluation()})
    with pytest.raises(ValueError, match="no evaluation 'exact'; existing: plain"):
        GradientCosines("exact").setup(None, module, "test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count >= 1"):
        LossCurves(ClassLabel(LinearClassifier(0)), count=0)
    with pytest.raises(ValueError, match="needs probes, labels and steps"):
        AccumulatedGradients({})

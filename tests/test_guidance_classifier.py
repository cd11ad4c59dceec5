"""Classifier guidance against exact posteriors, EluCD against its formula, and the training of a noisy classifier."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance.training_free import ClassifierGuidance, EluCD, SigmaWindow, UniversalGuidance
from lightning_guide.networks.classifiers import NoisyClassifier
from lightning_guide.objectives import ClassLabel
from lightning_guide.pretrained import RunNetwork
from lightning_guide.samplers import DPMSolver2M, Euler, Heun, Sampler
from lightning_guide.seeds import SampleSeeds
from tests.energies import GRID, mixture

MIXTURE, LABELS = mixture([0, 1, 2]), torch.tensor([2, 0, 1, 1, -1])


class Exact(nn.Module):
    """ln p(y, x; sigma) of the mixture, so that the softmax is the exact posterior of the label at every level."""

    num_classes = 3

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return MIXTURE._terms(x, sigma, None)[0]


def end(denoiser: GaussianMixture | ClassifierGuidance, sampler: Sampler, labels: Tensor = LABELS) -> Tensor:
    x = 5 * torch.randn(len(labels), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    *_, last = sampler.steps(denoiser, x, seeds=SampleSeeds(0, range(len(labels))), condition=labels)
    return last.x


@pytest.mark.parametrize("sampler", [Euler(GRID), Heun(GRID), DPMSolver2M(GRID)], ids=lambda s: type(s).__name__)
def test_the_exact_classifier_turns_the_unconditional_model_into_the_conditional_one(sampler: Sampler) -> None:
    """D + sigma^2 grad ln p(y | x) = D(x | y); -1 marks unlabeled samples."""
    guide = ClassifierGuidance(Exact(), positive=mixture())
    assert guide.num_classes == 3
    torch.testing.assert_close(end(guide, sampler), end(MIXTURE, sampler), rtol=1e-8, atol=1e-8)
    fixed = ClassifierGuidance(Exact(), label=1, positive=mixture())
    assert fixed.num_classes == 0
    ones = torch.ones(5).long()
    torch.testing.assert_close(end(fixed, sampler), end(MIXTURE, sampler, ones), rtol=1e-8, atol=1e-8)


def test_the_step_is_proportional_to_the_weight_and_zero_outside_the_window() -> None:
    x, level = torch.randn(5, 3, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
    plain, one, three = (ClassifierGuidance(Exact(), w, positive=mixture())(x, level, LABELS) for w in (0.0, 1.0, 3.0))
    torch.testing.assert_close(plain, mixture()(x, level))
    torch.testing.assert_close(three - plain, 3 * (one - plain))
    outside = ClassifierGuidance(Exact(), 3.0, window=SigmaWindow(2.0), positive=mixture())
    assert torch.equal(outside(x, level, LABELS), mixture()(x, level))


def test_a_text_conditional_model_keeps_its_text_under_a_labeled_guide() -> None:
    class Texts(Denoiser):
        data_shape, num_classes, token_channels, sigma_data = (3,), 0, 2, 1.0

        def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
            return x if condition is None else x + condition.sum((1, 2))[:, None]

    x, level = torch.randn(5, 3, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
    texts = torch.randn(5, 4, 2)
    push = ClassifierGuidance(Exact(), label=1, positive=mixture())(x, level) - mixture()(x, level)
    guided = ClassifierGuidance(Exact(), label=1, positive=Texts())(x, level, texts)
    torch.testing.assert_close(guided, Texts()(x, level, texts) + push)


def test_elucd_is_universal_guidance_with_a_sine_schedule() -> None:
    class Linear(nn.Module):
        num_classes = 3

        def forward(self, x: Tensor) -> Tensor:
            return x.tanh() * 2

    x, level = torch.randn(5, 3, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
    loss = ClassLabel(Linear(), marginal=0.5)
    for gamma in (0.0, 0.3):
        elucd = EluCD(Linear(), 0.7, marginal=0.5, gamma=gamma, positive=mixture())
        universal = UniversalGuidance(loss, 0.7, positive=mixture())
        torch.testing.assert_close(elucd(x, level, LABELS), universal(x, level, LABELS))  # the first step: sin(0)
        states, levels = [], GRID.sigmas().tolist()
        for step in Euler(GRID).steps(elucd, x, seeds=SampleSeeds(0, range(5)), condition=LABELS):
            states.append(step.x.clone())
        at = torch.tensor(levels[3], dtype=torch.float64)
        D = mixture()(states[2], at)
        D = D + (1 + gamma * math.sin(math.pi * 3 / 6)) * (universal(states[2], at, LABELS) - D)
        torch.testing.assert_close(states[3], D + levels[4] / levels[3] * (states[2] - D))


def test_a_noisy_classifier_depends_on_the_noise_level() -> None:
    network = NoisyClassifier([1, 8, 8], num_classes=4, widths=[8, 16]).eval()
    x, sigma = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 10.0])
    whole = network(x, sigma)
    torch.testing.assert_close(network(x[1:2], torch.tensor(1.0)), whole[1:2])
    assert (network(x, torch.tensor(1.0))[0] - whole[0]).abs().max() > 1e-3
    assert bool(network(1e4 * x, torch.tensor(1e4)).isfinite().all())
    with pytest.raises(ValueError, match=r"this classifier expects \(1, 8, 8\)"):
        network(x[..., :4], sigma)
    with pytest.raises(ValueError, match="widths in multiples of 8"):
        NoisyClassifier([1, 8, 8], num_classes=4, widths=[12])


@pytest.mark.slow
def test_a_trained_noisy_classifier_is_better_than_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`lightning-guide fit` on the digits gives a run that works as a guide under noise."""
    from lightning_guide.cli import main

    monkeypatch.chdir(tmp_path)
    config = Path(__file__).parent.parent / "configs/digits/noisy_classifier.yaml"
    main(["fit", "-c", str(config), "--trainer.max_steps", "150", "--trainer.default_root_dir", "run"])
    guide = RunNetwork("run")
    assert guide.num_classes == 10
    from datamodules import Digits

    data = Digits(batch_size=64).heldout()
    x, labels = data.take(torch.arange(200))
    clean = x.float() / 127.5 - 1
    right = [
        float((guide(clean + s * torch.randn(clean.shape), torch.tensor(s)).argmax(1) == labels).double().mean())
        for s in (0.1, 1.0, 20.0)
    ]
    assert right[0] > 0.8 and right[0] > right[1] > right[2] - 0.05 and right[1] > 0.25

"""Classifier-free guidance against the density it follows."""

from __future__ import annotations

import pytest
import torch

from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.guidance import ClassifierFreeGuidance, Unconditional
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds

MEANS = torch.tensor([[-1.0, 0.2], [1.0, 0.5], [0.1, -1.0]])
MODEL = GaussianMixture(MEANS, 0.3 * torch.eye(2).expand(3, 2, 2), [1.0, 2.0, 1.0], labels=[0, 1, 2])


@pytest.mark.parametrize("weight", [0.5, 1.5, 4.0])
@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_score_is_that_of_the_sharpened_posterior(weight: float, sigma: float) -> None:
    """Gradient of ln p(x) + w [ln p(x | c) - ln p(x)]."""
    x, level, labels = (
        (2 * torch.randn(9, 2).double()).requires_grad_(),
        torch.tensor(sigma, dtype=torch.float64),
        torch.arange(9) % 3,
    )
    marginal, conditional = MODEL.log_density(x, level), MODEL.log_density(x, level, labels)
    (score,) = torch.autograd.grad((marginal + weight * (conditional - marginal)).sum(), x)
    guided = ClassifierFreeGuidance(weight, positive=MODEL)(x, level, labels)
    torch.testing.assert_close(guided, x + sigma**2 * score, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("labels", [None, torch.full((5,), -1)], ids=["None", "-1"])
def test_without_labels_the_result_is_unguided(labels: torch.Tensor | None) -> None:
    x, level = torch.randn(5, 2), torch.tensor(0.4)
    assert torch.equal(ClassifierFreeGuidance(3.0, positive=MODEL)(x, level, labels), MODEL(x, level))


def test_rows_without_a_label_are_unguided_in_a_mixed_batch() -> None:
    x, level, labels = torch.randn(4, 2).double(), torch.tensor(0.4), torch.tensor([0, -1, 2, -1])
    guided, plain = ClassifierFreeGuidance(3.0, positive=MODEL)(x, level, labels), MODEL(x, level, labels)
    torch.testing.assert_close(guided[1::2], plain[1::2])
    assert not torch.allclose(guided[0::2], plain[0::2])


def test_unconditional_drops_the_label() -> None:
    x, level = torch.randn(3, 2), torch.tensor(0.4)
    unconditional = Unconditional(MODEL)
    assert unconditional.num_classes == 0 and unconditional.data_shape == (2,)
    assert torch.equal(unconditional(x, level, torch.tensor([0, 1, 2])), MODEL(x, level))


def test_a_separate_network_may_be_the_unconditional_one() -> None:
    x, level, labels = torch.randn(3, 2).double(), torch.tensor(0.4), torch.tensor([0, 1, 2])
    other = gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    guided = ClassifierFreeGuidance(2.0, unconditional=other, positive=MODEL)(x, level, labels)
    torch.testing.assert_close(guided, 2 * MODEL(x, level, labels) - other(x, level))


def test_guided_samples_have_higher_class_probability_at_twice_the_cost() -> None:
    labels = torch.arange(300) % 3

    def class_probability(weight: float) -> tuple[float, int]:
        guided = ClassifierFreeGuidance(weight, positive=MODEL)
        end = Heun().sample(guided, seeds=SampleSeeds(0, range(300)), condition=labels)
        zero = torch.tensor(0.0)
        ratio = MODEL.log_density(end.x, zero, labels) - MODEL.log_density(end.x, zero)
        return float(ratio.mean()), end.evaluations

    (weak, once), (strong, twice) = class_probability(1.0), class_probability(3.0)
    assert strong > weak + 0.05 and (once, twice) == (63, 126)

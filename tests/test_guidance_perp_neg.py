"""Perp-Neg against its formula, where it is plain guidance, and negatives with another condition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import ClassifierFreeGuidance, Guided
from lightning_guide.guidance.combinations import PerpendicularNegatives, Plain
from lightning_guide.guidance.negatives import FixedCondition, Unconditional
from lightning_guide.samplers import Euler
from tests.branches import GRID, combined, guided, mixtures, start, walk

SIGMA = 0.6


def labeled() -> GaussianMixture:
    return GaussianMixture(mixtures()[0].means, 0.2 * torch.eye(2).expand(3, 2, 2), labels=[0, 1, 2])


def guidance(model: GaussianMixture, weight: float, *others: tuple[int, float]) -> Guided:
    negatives = [Unconditional(model), *(FixedCondition(number, model) for number, _ in others)]
    weights = [weight, *(each for _, each in others)]
    return Guided(negatives, weights, positive=model, combination=PerpendicularNegatives())


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_formula_in_the_noise(weight: float) -> None:
    """As published, with the paper's weights of 0.5 and 2 for two negatives."""
    x, pos, base, *negs = torch.randn(5, 4, 3, 5, dtype=torch.float64)
    rows = []
    for row in range(4):
        eps_pos, eps, *others = ((x[row] - D[row]) / SIGMA for D in (pos, base, *negs))
        total = eps_pos - eps
        for strength, other in zip((0.5, 2.0), others, strict=True):
            along = ((other - eps) * (eps_pos - eps)).sum() / (eps_pos - eps).square().sum()
            total = total - strength * (other - eps - along * (eps_pos - eps))
        rows.append(x[row] - SIGMA * (eps + weight * total))
    out = combined(PerpendicularNegatives(), x, SIGMA, pos, (weight, base), (1.5, negs[0]), (3.0, negs[1]))
    torch.testing.assert_close(out, torch.stack(rows))


def test_parallel_negatives_change_nothing_and_orthogonal_ones_count_whole() -> None:
    x, base, along = torch.randn(3, 4, 6, dtype=torch.float64)
    pos = base + along
    across = torch.roll(along, 1, 0)
    across = across - (across * along).sum(1, keepdim=True) / along.square().sum(1, keepdim=True) * along
    plain = combined(Plain(), x, SIGMA, pos, (3.0, base))
    for factor in (-2.0, 0.5, 1.0):
        out = combined(PerpendicularNegatives(), x, SIGMA, pos, (3.0, base), (2.0, base + factor * along))
        torch.testing.assert_close(out, plain)
    out = combined(PerpendicularNegatives(), x, SIGMA, pos, (3.0, base), (2.0, base + across))
    torch.testing.assert_close(out, plain - 3 * across)


def test_without_other_negatives_it_is_classifier_free_guidance() -> None:
    model, x, labels = labeled(), start(2), torch.tensor([0, 1, 2])
    plain = walk(Euler(GRID), ClassifierFreeGuidance(2.5, positive=model), x, labels)
    for others in ([], [(1, 1.0)]):
        same = walk(Euler(GRID), guidance(model, 2.5, *others), x, labels)
        torch.testing.assert_close(same.x, plain.x)
        assert same.evaluations == plain.evaluations
    end = walk(Euler(GRID), guidance(model, 2.5, (1, 2.0)), x, labels)
    torch.testing.assert_close(end.x[1], plain.x[1])  # its own class is parallel to itself
    assert end.evaluations == 18 and (end.x - plain.x)[[0, 2]].abs().min() > 1e-3


def test_joint_calls_give_what_separate_calls_give() -> None:
    model, x, labels = labeled(), start(2), torch.tensor([0, 1, 2])
    rule = PerpendicularNegatives()
    assert [rule.called(weights, None) for weights in ([1.0, 1.0], [1.0, 2.0], [3.0, 1.0])] == [  # type: ignore[arg-type]
        [False, False],
        [True, True],
        [True, False],
    ]

    class Apart(GaussianMixture):
        """Another class under the label 2."""

        def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
            return super().forward(x, sigma, torch.full((len(x),), 2))

    other = Apart(model.means, 0.2 * torch.eye(2).expand(3, 2, 2), labels=[0, 1, 2])
    separate = guided([model, Unconditional(model), other], [2.0, 1.5], rule)
    x_separate = walk(Euler(GRID), separate, x, labels).x
    torch.testing.assert_close(walk(Euler(GRID), guidance(model, 2.0, (2, 1.5)), x, labels).x, x_separate)


class Tokens(GaussianMixture):
    """D plus the mean of the embedding."""

    token_channels = 2

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return super().forward(x, sigma) + (0 if condition is None else condition.mean((1, 2))[:, None])


def test_fixed_conditions_of_classes_and_prompts() -> None:
    model, x = labeled(), start(2)
    sigma = torch.tensor(SIGMA, dtype=torch.float64)
    out = FixedCondition(2, model)(x, sigma, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(out, model(x, sigma, torch.tensor([2, 2, 2])))
    reader = Tokens(model.means, 0.2 * torch.eye(2).expand(3, 2, 2))
    reader.num_classes = 0
    prompts = torch.arange(12.0).reshape(2, 3, 2)
    out = FixedCondition(1, reader, prompts=prompts)(x, sigma, torch.zeros(3, 3, 2))
    torch.testing.assert_close(out, reader(x, sigma) + 8.5)


def test_conditions_that_do_not_exist() -> None:
    model, x, sigma = labeled(), start(2), torch.tensor(SIGMA)
    for number in (-1, 1.5, True, float("nan")):
        with pytest.raises(ValueError, match="a class or prompt of FixedCondition is .*; expected a whole number"):
            FixedCondition(number)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the number 3; there are 3 classes, counted from 0"):
        FixedCondition(3, model)(x, sigma)
    with pytest.raises(ValueError, match="FixedCondition takes its condition from labels or prompts; this model has"):
        FixedCondition(0, mixtures()[0])(x, sigma)
    reader = Tokens(model.means, 0.2 * torch.eye(2).expand(3, 2, 2))
    reader.num_classes = 0
    with pytest.raises(ValueError, match="the number 0; there are 0 prompts, counted from 0"):
        FixedCondition(0, reader, prompts=torch.zeros(0, 3, 2))(x, sigma)
    with pytest.raises(ValueError, match="the number 2; there are 2 prompts, counted from 0"):
        FixedCondition(2, reader, prompts=torch.zeros(2, 3, 2))(x, sigma)
    with pytest.raises(ValueError, match="takes the prompt 0 of the evaluation, and there are none here"):
        FixedCondition(0, reader)(x, sigma)

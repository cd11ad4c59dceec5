"""Neon: weights extrapolated away from a worse model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions import gaussian
from lightning_guide.guidance import Autoguidance, Main, Neon
from lightning_guide.samplers import Heun
from lightning_guide.seeds import SampleSeeds


class Linear(Denoiser):
    """D = a x + b / (1 + sigma): linear in its parameters; with a buffer."""

    data_shape, num_classes, sigma_data = (2,), 0, 0.5
    offset: Tensor

    def __init__(self, a: float, b: float, *, offset: float = 0.0, width: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.full((width,), a)), nn.Parameter(torch.tensor(b))
        self.register_buffer("offset", torch.tensor(offset))

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.a * x + self.b / (1 + sigma) + self.offset


class Pair:
    """A base and its auxiliary."""

    def __init__(self, main: Denoiser, auxiliary: Denoiser) -> None:
        self.main, self.auxiliary = main, auxiliary

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        return self.auxiliary


def test_equals_guidance_for_a_model_linear_in_its_parameters() -> None:
    models = Pair(Linear(0.8, 0.1), Linear(0.6, 0.3))
    merged = Neon(models.auxiliary, 1.7).resolve(models)
    guided = Autoguidance(models.auxiliary, 1.7).resolve(models)
    assert merged.a.item() == pytest.approx(0.6 + 1.7 * 0.2) and merged.b.item() == pytest.approx(0.3 - 1.7 * 0.2)
    ends = [Heun().sample(each, seeds=SampleSeeds(0, range(6))) for each in (merged, guided)]
    torch.testing.assert_close(ends[0].x, ends[1].x, rtol=1e-4, atol=1e-4)
    assert (ends[0].evaluations, ends[1].evaluations) == (63, 126)


def test_ends_and_identities() -> None:
    models = Pair(Linear(0.8, 0.1, offset=3.0), Linear(0.6, 0.3, offset=5.0))
    x, sigma = torch.randn(4, 2), torch.tensor(0.7)
    for weight, equal in ((1.0, models.main), (0.0, models.auxiliary)):
        merged = Neon(models.auxiliary, weight).resolve(models)
        assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), equal.parameters(), strict=True))
        assert merged.offset == 3.0, "buffers are those of the base"
    same = Neon(Main(), 2.9).resolve(models)
    assert torch.equal(same(x, sigma), models.main(x, sigma))
    assert models.main.a.item() == pytest.approx(0.8), "the base is untouched"
    direct = Neon(models.auxiliary, 2.0, base=models.main)
    assert torch.equal(direct(x, sigma), direct.resolve(models)(x, sigma))


def test_other_architectures_are_refused() -> None:
    models = Pair(Linear(0.8, 0.1), Linear(0.6, 0.3, width=2))
    with pytest.raises(ValueError, match=r"a has shape \(1,\) in the base and is \(2,\) in the auxiliary"):
        Neon(models.auxiliary).resolve(models)
    with pytest.raises(ValueError, match="its base, a Main, has none; expected a network, as base=model"):
        Neon(models.auxiliary)(torch.zeros(1, 2), torch.tensor(1.0))


def test_models_without_weights_are_refused() -> None:
    exact = gaussian([0.0, 0.0], 1.0)
    with pytest.raises(ValueError, match="its base, a GaussianMixture, has none; expected a network"):
        Neon(gaussian([9.0, 9.0], 1.0), base=exact).resolve(Pair(exact, exact))


def test_the_weight_is_finite() -> None:
    with pytest.raises(ValueError, match="Neon needs a finite weight, 1 is the base, got nan"):
        Neon(Main(), float("nan"))

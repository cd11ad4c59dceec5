"""Restart sampling."""

from __future__ import annotations

import pytest
import torch

from lightning_guide.denoiser import Predict, Prediction, Trajectory
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.noise import CustomGrid, KarrasGrid
from lightning_guide.samplers import Euler, Heun, Restart, Sampler, UniPC
from lightning_guide.seeds import SampleSeeds


class Watching(GaussianMixture):
    """Records the levels at which it is called."""

    def start(self, trajectory: Trajectory) -> Predict:
        self.seen: list[float] = []

        def predict(x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor | None) -> Prediction:
            assert trajectory.sigma == pytest.approx(float(sigma))
            self.seen.append(float(sigma))
            return Prediction(self(x, sigma, condition))

        return predict


def test_the_interval_is_walked_again() -> None:
    watching = Watching([[0.0]], [[[1.0]]])
    sampler = Restart(Euler(CustomGrid([4.0, 2.0, 1.0, 0.5])), low=1.0, high=3.0, repeats=2, num_steps=2)
    sampler.sample(watching, seeds=SampleSeeds(0, [0]))
    again = KarrasGrid(3, sigma_min=1.0, sigma_max=3.0).sigmas()[:2].tolist()
    assert watching.seen == pytest.approx([4.0, 2.0, *again, *again, 1.0, 0.5])


@pytest.mark.parametrize("inner", [Heun(64), UniPC(64, order=3)], ids=["heun", "unipc"])
def test_the_distribution_stays(inner: Sampler) -> None:
    denoiser = gaussian([1.0] * 20, 0.25)
    x = Restart(inner, low=0.1, high=1.0, repeats=3, num_steps=12).sample(denoiser, seeds=SampleSeeds(0, range(500))).x
    assert float(x.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(x.var()) == pytest.approx(0.25, rel=0.05)


def test_it_forgets_an_error_made_before() -> None:
    """A start with too little noise: restarts bring the spread of the samples nearer to the data's."""
    denoiser, few = gaussian([0.0] * 20, 0.25), {"seeds": SampleSeeds(0, range(500)), "start": lambda x: 0.5 * x}
    plain = Heun(32).sample(denoiser, **few).x.std()  # type: ignore[arg-type]
    once, often = (
        Restart(Heun(32), low=0.05, high=1.0, repeats=n, num_steps=12).sample(denoiser, **few).x.std()  # type: ignore[arg-type]
        for n in (1, 4)
    )
    assert float(plain) == pytest.approx(0.25, rel=0.05)
    assert 0.38 < float(once) < float(often) < 0.51


def test_other_noise_in_each_repetition() -> None:
    denoiser = gaussian([0.0, 0.0], 0.25)
    one, two = (
        Restart(Heun(16), low=0.1, high=1.0, repeats=n).sample(denoiser, seeds=SampleSeeds(0, range(50))).x
        for n in (1, 2)
    )
    assert float((one - two).abs().mean()) > 0.05


@pytest.mark.parametrize(
    "arguments", [{"low": 0.0}, {"low": 1.0, "high": 0.5}, {"repeats": 0}, {"num_steps": 0}], ids=str
)
def test_impossible_intervals_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Restart needs 0 < low < high, repeats >= 1 and num_steps >= 1"):
        Restart(Heun(), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (0.5, 9.0, "Restart goes back to sigma = 9, but the model was trained for noise levels up to 8"),
        (0.01, 1.0, "a step from above low = 0.01 to a level above 0, .* levels of its sampler are 4 to 0.1, then 0"),
        (4.0, 5.0, "a step from above low = 4 "),
    ],
)
def test_intervals_that_do_not_fit_the_model_or_the_levels(low: float, high: float, sentence: str) -> None:
    denoiser = gaussian([0.0], 0.25)
    denoiser.sigma_max = 8.0
    for sampler in (Euler(CustomGrid([4.0, 1.0, 0.1])), Restart(Euler(CustomGrid([4.0, 1.0, 0.1])), low=1.0, high=2.0)):
        with pytest.raises(ValueError, match=sentence):
            Restart(sampler, low=low, high=high).sample(denoiser, seeds=SampleSeeds(0, [0]))
    inner = Restart(Euler(CustomGrid([4.0, 1.0, 0.1])), low=low, high=high)
    with pytest.raises(ValueError, match=sentence):
        Restart(inner, low=1.0, high=2.0).sample(denoiser, seeds=SampleSeeds(0, [0]))

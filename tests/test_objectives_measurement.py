"""Measurements: singular values of every operator against its products, what was observed, sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Trajectory
from lightning_guide.objectives import (
    Blurred,
    Boxed,
    Compressed,
    Downsampled,
    Masked,
    Matrix,
    Measurement,
    Operator,
)
from lightning_guide.objectives.spectrum import Spectrum
from lightning_guide.seeds import SampleSeeds

SHAPE = (2, 8, 12)
OPERATORS: dict[str, Operator] = {
    "pooling": Downsampled(4),
    "blur": Blurred(1.3),
    "mask": Masked(0.4, seed=2),
    "box": Boxed(1, 2, 3, 4),
    "projections": Compressed(7),
    "matrix": Matrix(torch.randn(5, 192, generator=torch.Generator().manual_seed(0))),
    "singular": Matrix(torch.randn(9, 2, dtype=torch.float64) @ torch.randn(2, 192, dtype=torch.float64)),
}


def trajectory(x: Tensor, count: int | None = None) -> Trajectory:
    return Trajectory(x=x, seeds=SampleSeeds(0, range(count or len(x))), sigma=1.0)


@pytest.mark.parametrize("name", OPERATORS)
def test_singular_values_compose_the_operator(name: str) -> None:
    operator = OPERATORS[name]
    x, generator = torch.randn(3, *SHAPE, dtype=torch.float64), torch.Generator().manual_seed(0)
    y = operator(x)
    problem = Measurement(operator, observed=torch.zeros_like(y), noise=0.1).problem(trajectory(x))
    spectrum = problem.spectrum
    torch.testing.assert_close(spectrum.measured(y), spectrum.values * spectrum.coordinates(x))
    # <A x, r> = <x, A^T r> for every r, so U and V leave nothing out
    r = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    back = problem.adjoint(spectrum.measured(r))
    torch.testing.assert_close((y * r).flatten(1).sum(1), (x * back).flatten(1).sum(1))
    z = spectrum.coordinates(x)
    torch.testing.assert_close(spectrum.coordinates(spectrum.image(z)), z)
    # A A^+ A = A
    again = operator(spectrum.image(problem.inverse * spectrum.measured(y)))
    torch.testing.assert_close(again, y)
    # (v A A^T + noise^2) u = r on the range of A
    u = problem.solve(spectrum.measured(y), torch.tensor(0.7))
    whole = 0.7 * spectrum.values * spectrum.coordinates(problem.adjoint(u)) + 0.1**2 * u
    torch.testing.assert_close(whole, spectrum.measured(y).where(spectrum.values > 0, 0))


def test_tiny_singular_values_count_as_zero() -> None:
    spectrum = Spectrum.of_matrix(torch.diag(torch.tensor([2.0, 1e-3, 1e-9])).double(), (3,))
    assert spectrum.values.flatten().tolist() == pytest.approx([2.0, 1e-3, 0.0])


def test_what_was_observed_takes_the_place_of_hidden_examples(tmp_path: Path) -> None:
    y = torch.randn(2, 2, 2, 3)
    np.save(tmp_path / "y.npy", y.numpy())
    x = torch.zeros(3, *SHAPE)
    seen = Measurement(Downsampled(4), observed=str(tmp_path / "y.npy"))
    torch.testing.assert_close(seen.measurements(trajectory(x)), y[[0, 1, 0]])
    points = torch.randn(3, *SHAPE)
    expected = (y[[0, 1, 0]] - Downsampled(4)(points)).flatten(1).norm(dim=1)
    torch.testing.assert_close(seen.start(trajectory(x))(points, None, torch.arange(3)), expected)
    with pytest.raises(ValueError, match="no hidden examples, only what was observed"):
        seen.observe(trajectory(x))
    wrong = Measurement(Downsampled(2), observed=str(tmp_path / "y.npy"))
    with pytest.raises(ValueError, match=r"^measurements in .*y.npy have shape .2, 2, 2, 3.; expected .N, .2, 4, 6..$"):
        wrong.measurements(trajectory(x))


class Squares(Operator):
    """Not linear."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.square()


def test_impossible_measurements_are_refused() -> None:
    truth = torch.zeros(1, *SHAPE)
    with pytest.raises(ValueError, match="either truth, .* or observed, .*; got neither"):
        Measurement(Downsampled(4))
    with pytest.raises(ValueError, match="got both"):
        Measurement(Downsampled(4), truth, observed=truth)
    with pytest.raises(ValueError, match="noise >= 0, .* got -1"):
        Measurement(Downsampled(4), truth, noise=-1)
    for noise in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite noise"):
            Measurement(Downsampled(4), truth, noise=noise)
    for make in (lambda: Downsampled(2.5), lambda: Compressed(2.5), lambda: Boxed(0.5, 0, 1, 1)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="expected a whole number"):
            make()
    for observed in (torch.full((1, 3, 2, 2), float("nan")), torch.zeros(0, 3, 2, 2)):
        with pytest.raises(ValueError, match="measurements have|measurements hold numbers that are not finite"):
            Measurement(Downsampled(4), observed=observed).problem(trajectory(torch.zeros(1, 3, 8, 8)))
    with pytest.raises(ValueError, match="images of 8x8 cannot be averaged in squares of 3"):
        Measurement(Downsampled(3), torch.zeros(1, 3, 8, 8)).problem(trajectory(torch.zeros(1, 3, 8, 8)))
    for matrix in ([[float("nan"), 0.0]], torch.zeros(0, 3)):
        with pytest.raises(ValueError, match="Matrix needs"):
            Matrix(matrix)
    with pytest.raises(ValueError, match=r"Matrix needs a matrix \(m, d\), got the shape \(3,\)"):
        Matrix(torch.zeros(3))
    with pytest.raises(ValueError, match=r"Matrix has 5 columns for x of shape \(4,\)"):
        Matrix(torch.zeros(2, 5))(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="needs a linear measurement, but Squares of a difference is not"):
        Measurement(Squares(), truth).problem(trajectory(truth))
    flat = torch.zeros(1, 12)
    with pytest.raises(ValueError, match=r"Masked measures images \(C, H, W\), got x of shape \(12,\)"):
        Measurement(Masked(), flat).problem(trajectory(flat))
    large = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"Compressed is decomposed as a matrix for x of up to 4096 numbers, got"):
        Measurement(Compressed(4), large).problem(trajectory(large))

"""Posterior sampling: exact posteriors of Gaussians, dense formulas on a mixture, identities, noise, sentences."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_guide.cli import main
from lightning_guide.data import SampleBatch
from lightning_guide.denoiser import Denoiser, Predict, Prediction, Trajectory
from lightning_guide.distributions.gaussian_mixture import GaussianMixture, gaussian
from lightning_guide.evaluation import Evaluation
from lightning_guide.evaluation.sampling_loop import SamplingLoop
from lightning_guide.guidance import DAPS, DDNM, DDRM, MMPS, TMPD, DiffPIR, Guidance, PiGDM, PosteriorGuidance, RePaint
from lightning_guide.networks import SmallClassifier
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import Distance, Matrix, Measurement
from lightning_guide.samplers import (
    DDIM,
    DEIS,
    PLMS,
    DPMSolver2M,
    Euler,
    Heun,
    Restart,
    Sampler,
    SDEDPMSolver2M,
    TimeTravel,
    UniPC,
)
from lightning_guide.seeds import SampleSeeds
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.files import read_yaml
from lightning_guide.utils.parser import Parser
from tests.energies import mixture
from tests.runs import TinyImages
from tests.test_configs_training_free import SmallModel

double = torch.float64
GRID = KarrasGrid(12, sigma_min=0.05, sigma_max=20.0)
Make = Callable[..., PosteriorGuidance]
METHODS: dict[str, Make] = {
    "PiGDM": PiGDM,
    "TMPD": TMPD,
    "MMPS": MMPS,
    "DDNM": DDNM,
    "DDRM": DDRM,
    "DiffPIR": DiffPIR,
    "RePaint": RePaint,
    "DAPS": DAPS,
}
MEANS = ("PiGDM", "TMPD", "MMPS")
STEPS = ("DDNM", "DDRM", "DiffPIR", "DAPS")
"""Methods that draw the noise of their steps."""


def sampler_of(name: str) -> Sampler:
    return TimeTravel(DDIM(GRID), 2) if name == "RePaint" else Euler(GRID)


def seen(A: Tensor, y: Tensor, noise: float) -> Measurement:
    return Measurement(Matrix(A), observed=y, noise=noise)


def given(mean: Tensor, covariance: Tensor, A: Tensor, y: Tensor, noise: float) -> GaussianMixture:
    """N(mean, covariance) given y = A x + noise n."""
    gain = covariance @ A.T @ torch.linalg.inv(A @ covariance @ A.T + noise**2 * torch.eye(len(A), dtype=double))
    rest = covariance - gain @ A @ covariance
    return gaussian(mean + gain @ (y - A @ mean), (rest + rest.T) / 2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=double, generator=torch.Generator().manual_seed(seed))


ROOT = normal(4, 4)
COVARIANCES = {
    "MMPS": ROOT @ ROOT.T / 4,
    "PiGDM": 0.8**2 * torch.eye(4, dtype=double),
    "TMPD": torch.tensor([0.3, 1.5, 0.7, 1.0], dtype=double).diag(),
}
OPTIONS: dict[str, Any] = {"MMPS": {"iterations": 2}, "PiGDM": {"data_std": 0.8}, "TMPD": {}}
PICKED = torch.tensor([[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0]], dtype=double)


def gaussian_case(name: str, noise: float) -> tuple[PosteriorGuidance, GaussianMixture]:
    """A method on Gaussian data for which it is exact, and the exact posterior."""
    mean, covariance, y = normal(4, seed=1), COVARIANCES[name], normal(2, seed=2)
    A = PICKED if name == "TMPD" else normal(2, 4, seed=3)
    prior = gaussian(mean, covariance)
    return METHODS[name](seen(A, y, noise), positive=prior, **OPTIONS[name]), given(mean, covariance, A, y, noise)


# Exact posteriors


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("name", MEANS)
def test_predictions_are_those_of_the_exact_posterior_of_a_gaussian(name: str, noise: float) -> None:
    guided, exact = gaussian_case(name, noise)
    x = 2 * normal(6, 4, seed=4)
    for sigma in (0.05, 0.7, 30.0):
        level = torch.tensor(sigma, dtype=double)
        torch.testing.assert_close(guided(x, level), exact(x, level), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", MEANS)
def test_samples_are_those_of_the_exact_posterior_of_a_gaussian(name: str) -> None:
    guided, exact = gaussian_case(name, 0.3)
    for sampler in (Euler(GRID), Heun(GRID), DDIM(GRID)):
        drawn, expected = (sampler.sample(each, seeds=SampleSeeds(0, range(5))).x for each in (guided, exact))
        torch.testing.assert_close(drawn, expected, rtol=1e-3, atol=1e-4)


def test_samples_of_daps_have_mean_and_covariance_of_the_posterior() -> None:
    A, y, mean = normal(2, 3, seed=3), normal(2, seed=2), normal(3, seed=1)
    covariance = 0.8**2 * torch.eye(3, dtype=double)
    exact = given(mean, covariance, A, y, 0.3)
    guided = DAPS(seen(A, y, 0.3), steps=1, data_std=0.8, positive=gaussian(mean, covariance))
    x = Euler(KarrasGrid(6, sigma_max=20.0)).sample(guided, seeds=SampleSeeds(0, range(3000))).x.double()
    torch.testing.assert_close(x.mean(0), exact.means[0], rtol=0, atol=0.06)  # standard error at most 0.015
    spread = exact.eigenvectors[0] @ exact.eigenvalues[0].diag() @ exact.eigenvectors[0].T
    torch.testing.assert_close(x.T.cov(), spread, rtol=0, atol=0.06)


# Formulas, written out with matrices, on a mixture


A, Y, NOISE = normal(2, 3, seed=5), normal(2, seed=6), 0.4
X, SIGMA = normal(1, 3, seed=7), 0.8


def at(guided: Denoiser, x: Tensor = X, sigma: float = SIGMA, sigma_next: float = 0.3) -> tuple[Tensor, Tensor]:
    """Clean estimate, and the state where Euler arrives."""
    trajectory = Trajectory(x=x, seeds=SampleSeeds(0, range(len(x))), sigma=sigma, sigma_next=sigma_next)
    level = torch.tensor(sigma, dtype=double)
    prediction = guided.start(trajectory)(x, level, None)
    return prediction.clean, prediction.step(x, level, torch.tensor(sigma_next, dtype=double))


def dense() -> tuple[Tensor, Tensor]:
    """D (3,) and C = sigma^2 dD/dx (3, 3)."""
    level = torch.tensor(SIGMA, dtype=double)
    jacobian = torch.autograd.functional.jacobian(lambda x: mixture()(x[None], level)[0], X[0])
    return mixture()(X, level)[0], SIGMA**2 * jacobian  # type: ignore[operator]


def test_mmps_on_a_mixture() -> None:
    D, C = dense()
    expected = D + C @ A.T @ torch.linalg.solve(A @ C @ A.T + NOISE**2 * torch.eye(2), Y - A @ D)
    exact, _ = at(MMPS(seen(A, Y, NOISE), iterations=2, positive=mixture()))
    torch.testing.assert_close(exact[0], expected)
    rough, _ = at(MMPS(seen(A, Y, NOISE), iterations=1, positive=mixture()))
    assert 1e-4 < float((rough[0] - expected).norm()) < float((D - expected).norm())


def test_tmpd_on_a_mixture() -> None:
    D, C = dense()
    sums = (A @ C @ A.T).sum(1).clamp(min=0) + NOISE**2
    found, _ = at(TMPD(seen(A, Y, NOISE), positive=mixture()))
    torch.testing.assert_close(found[0], D + C @ A.T @ ((Y - A @ D) / sums))


def test_pigdm_on_a_mixture() -> None:
    D, C = dense()
    r2 = SIGMA**2 * 0.25 / (SIGMA**2 + 0.25)  # sigma_data is 0.5
    expected = D + C @ A.T @ torch.linalg.solve(r2 * A @ A.T + NOISE**2 * torch.eye(2), Y - A @ D)
    found, _ = at(PiGDM(seen(A, Y, NOISE), positive=mixture()))
    torch.testing.assert_close(found[0], expected)


def test_diffpir_minimizes_its_objective() -> None:
    clean, x_next = at(DiffPIR(seen(A, Y, NOISE), weight=3.0, zeta=0.25, positive=mixture()))
    D = dense()[0]
    slope = A.T @ (A @ clean[0] - Y) / NOISE**2 + 3.0 / SIGMA**2 * (clean[0] - D)
    torch.testing.assert_close(slope, torch.zeros(3, dtype=double), rtol=0, atol=1e-10)
    n = SampleSeeds(0, [0]).normal("posterior", (3,)).double()
    torch.testing.assert_close(x_next, clean + 0.3 * (0.75**0.5 * (X - clean) / SIGMA + 0.5 * n))


def test_ddnm_corrects_by_the_pseudoinverse() -> None:
    clean, x_next = at(DDNM(seen(A, Y, 0.0), positive=mixture()))
    D, inverse = dense()[0], torch.linalg.pinv(A)
    torch.testing.assert_close(clean[0], D + inverse @ (Y - A @ D))
    n, q = SampleSeeds(0, [0]).normal("posterior", (3,)).double(), (0.3 / SIGMA) ** 2
    torch.testing.assert_close(x_next, clean + q * (X - clean) + 0.3 * (1 - q) ** 0.5 * n)


# Noise: where all data are one point, the noise of every step is known


POINT = torch.tensor([1.0, -0.5, 2.0], dtype=double)
SCALED = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.25, 0.0]], dtype=double)  # measured with noise 0.2 and 0.8


@pytest.mark.parametrize("sigma_next", [0.5, 0.9])
@pytest.mark.parametrize("name", ["DDNM", "DDRM", "RePaint"])
def test_steps_arrive_with_the_noise_of_the_next_level(name: str, sigma_next: float) -> None:
    guided = METHODS[name](Measurement(Matrix(SCALED), POINT, noise=0.2), positive=gaussian(POINT, 1e-12))
    x = POINT + 1.2 * normal(4000, 3, seed=8)
    _, x_next = at(guided, x, 1.2, sigma_next)
    spread = (x_next - POINT).square().mean(0).sqrt()  # relative standard error 0.011
    torch.testing.assert_close(spread, torch.full((3,), sigma_next, dtype=double), rtol=0.05, atol=0)


# Cost


class Counted(Guidance):
    """A mixture whose backward passes are counted."""

    backward = 0

    def __init__(self) -> None:
        super().__init__()
        self.positive = mixture()

    def start(self, trajectory: Trajectory) -> Predict:
        inner = self.positive.start(trajectory)

        def count(gradient: Tensor) -> None:
            self.backward += 1

        def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> Prediction:
            if x.requires_grad:
                x = x.clone()
                x.register_hook(count)
            return inner(x, sigma, condition)

        return predict


def test_calls_and_backward_passes_are_those_of_the_docs() -> None:
    options: dict[str, Any] = {"MMPS": {"iterations": 3}, "DAPS": {"steps": 2}}
    meaning = {"iterations + 1": 4, "steps": 2, "1 (times repeats)": 1}
    text = (Path(__file__).parent.parent / "docs" / "inverse_problems.md").read_text()
    rows = [re.split(r" (?<!\\)\| ", line) for line in text.splitlines() if line.startswith("| ")]
    found = {row[0].removeprefix("| "): row[3].split(", ") for row in rows if len(row) > 4}
    for name, method in METHODS.items():
        model, trajectory = Counted(), Trajectory(x=X, seeds=SampleSeeds(0, [0]), sigma=SIGMA, sigma_next=0.3)
        guided = method(seen(A, Y, NOISE), positive=model, **options.get(name, {}))
        guided.start(trajectory)(X, torch.tensor(SIGMA, dtype=double), None)
        expected = [meaning[cell] if cell in meaning else int(cell) for cell in found[name]]
        assert [trajectory.evaluations, model.backward] == expected, name


# Identities


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("matrix", "noise"), [(torch.zeros(2, 3), 0.1), (torch.zeros(2, 3), 0.0), (A, 1e9)])
def test_a_measurement_that_says_nothing_changes_nothing(name: str, matrix: Tensor, noise: float) -> None:
    clean, x_next = at(METHODS[name](seen(matrix.double(), Y, noise), positive=mixture()))
    D = dense()[0]
    n = SampleSeeds(0, [0])
    first = n.normal("posterior", (3,)).double()
    q = (0.3 / SIGMA) ** 2
    direction = (X - D) / SIGMA
    if name == "DAPS":  # a draw around D, and its noise
        D = D + (SIGMA**2 * 0.25 / (SIGMA**2 + 0.25)) ** 0.5 * first
        expected = D + 0.3 * n.normal("posterior", (3,)).double()
    elif name in ("DDNM", "DDRM") and noise > 1:  # that of the measurement takes the place of fresh noise
        return torch.testing.assert_close(clean[0], D)
    elif name == "DDNM":
        expected = D + q * (X - D) + 0.3 * (1 - q) ** 0.5 * first
    elif name == "DDRM":
        expected = D + 0.3 * ((1 - 0.85**2) ** 0.5 * direction + 0.85 * first)
    else:
        expected = D + 0.3 * (first if name == "DiffPIR" else direction)
    torch.testing.assert_close(clean, D.expand(1, 3))
    torch.testing.assert_close(x_next, expected.expand(1, 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_whole_measurement_without_noise_is_returned(name: str) -> None:
    y = torch.tensor([0.4, -0.2, 0.9], dtype=double)
    rotation = torch.linalg.qr(normal(3, 3, seed=9))[0]
    for matrix in (torch.eye(3, dtype=double), rotation)[: 1 if name == "TMPD" else 2]:
        options = {"iterations": 3} if name == "MMPS" else {}
        guided = METHODS[name](seen(matrix, matrix @ y, 0.0), positive=mixture(), **options)
        x = sampler_of(name).sample(guided, seeds=SampleSeeds(0, range(4))).x
        torch.testing.assert_close(x.double(), y.expand(4, 3), rtol=0, atol=0.05 if name in MEANS else 1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_samples_approach_the_measurement_and_depend_on_nothing_else_in_the_batch(name: str) -> None:
    truth, _ = mixture().sample(6, torch.Generator().manual_seed(0))
    matrix = SCALED.float() if name == "TMPD" else A.float()
    measurement = Measurement(Matrix(matrix), truth, noise=0.05)
    guided = METHODS[name](measurement, positive=mixture(), **({"steps": 5} if name == "DAPS" else {}))
    whole = sampler_of(name).sample(guided, seeds=SampleSeeds(0, range(6)))
    part = sampler_of(name).sample(guided, seeds=SampleSeeds(0, [4, 1])).x
    torch.testing.assert_close(part, whole.x[[4, 1]], rtol=1e-3, atol=1e-4)
    plain = sampler_of(name).sample(mixture(), seeds=SampleSeeds(0, range(6)))
    y = measurement.measurements(Trajectory(x=whole.x, seeds=SampleSeeds(0, range(6)), sigma=1.0))
    misfit, unguided = ((y - x @ matrix.T).norm(dim=1).median() for x in (whole.x, plain.x))
    assert float(misfit) < 0.35 * float(unguided)
    assert whole.evaluations == plain.evaluations * (5 if name == "DAPS" else 1)


@pytest.mark.parametrize("name", MEANS)
def test_a_derivative_from_outside_is_that_of_the_denoiser(name: str) -> None:
    guided, level = METHODS[name](seen(A, Y, NOISE), positive=mixture()), torch.tensor(SIGMA, dtype=double)
    gradients = []
    for denoiser in (guided, mixture()):
        x = X.clone().requires_grad_()
        gradients.append(torch.autograd.grad(denoiser(x, level).sum(), x)[0])
    torch.testing.assert_close(*gradients)
    assert not guided(X, level).requires_grad


# On images, from the config


def test_every_method_of_the_config_restores_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """configs/posterior.yaml: blocks of pixels approach their measured means."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    np.save("data/digits.npy", np.random.default_rng(0).uniform(-1, 1, (5, 1, 8, 8)).astype(np.float32))
    parser = Parser()
    parser.add_argument("--evaluations", type=dict[str, Evaluation])
    written: Any = read_yaml(Path(__file__).parent.parent / "configs" / "posterior.yaml")
    found = parser.instantiate(parser.parse_object(written["model"]["init_args"])).evaluations
    assert set(found) == {name.lower() for name in METHODS}
    for name, evaluation in found.items():
        sampler = evaluation.sampler
        (sampler.sampler if name == "repaint" else sampler).grid = sampler.grid = KarrasGrid(
            4, sigma_min=0.1, sigma_max=5.0
        )
        loop = SamplingLoop.start(name, evaluation, SmallModel(), {})
        drawn = loop.draw(SampleBatch(torch.arange(2), torch.tensor([3, 7])), TinyImages(shape=(1, 8, 8)))
        report = loop.finish(torch.device("cpu"), contain=lambda what: nullcontext())
        # three steps by the Jacobian of a random network do not arrive
        assert report["misfit"] < (float("inf") if name in ("pigdm", "tmpd", "mmps") else 3), name
        assert 0 < report["psnr"] < 20 and report["samples"] == len(drawn.x) == 2


@pytest.mark.slow
def test_config_in_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """configs/posterior.yaml over a run of digits: eight evaluations."""
    monkeypatch.chdir(tmp_path)
    judge = SmallClassifier([1, 8, 8], num_classes=10, widths=[8, 16])
    store = SnapshotStore(Path("runs/digits/classifier/snapshots"))
    store.save(judge.state_dict(), images=8, sigma_rel=0.0, recipe=judge.recipe, planned_images=8)
    Path("data").mkdir()
    np.save("data/digits.npy", np.random.default_rng(0).uniform(-1, 1, (5, 1, 8, 8)).astype(np.float32))
    configs = Path(__file__).parent.parent / "configs"
    words = [word for name in ("digits/main", "posterior", "shrink") for word in ("-c", f"{configs / name}.yaml")]
    words += ["--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "2"]
    monkeypatch.setattr(sys, "argv", ["lightning-guide", "fit", *words, "--trainer.default_root_dir", "run"])
    main()
    (file,) = Path("run").rglob("metrics.json")
    found = json.dumps(json.loads(file.read_text()))
    assert all(name.lower() in found for name in METHODS)


# Bad input


@pytest.mark.parametrize("name", METHODS)
def test_another_energy_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: measurement is a Distance; expected a Measurement"):
        METHODS[name](Distance(0.5), positive=mixture())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda m: MMPS(m, iterations=0), "iterations of MMPS is 0; expected a whole number from 1 on"),
        (lambda m: MMPS(m, iterations=2.5), "iterations of MMPS is 2.5; expected a whole number from 1 on"),  # type: ignore[arg-type]
        (lambda m: PiGDM(m, data_std=0.0), "PiGDM needs a finite data_std > 0, got 0.0"),
        (lambda m: PiGDM(m, data_std=math.inf), "PiGDM needs a finite data_std > 0, got inf"),
        (lambda m: DDRM(m, eta=1.5), "DDRM needs eta and eta_b in .0, 1., got 1.5 and 1.0"),
        (lambda m: DiffPIR(m, weight=0.0), "DiffPIR needs a finite weight > 0 and zeta in .0, 1., got 0.0 and 1.0"),
        (
            lambda m: DiffPIR(m, weight=math.inf),
            "DiffPIR needs a finite weight > 0 and zeta in .0, 1., got inf and 1.0",
        ),
        (lambda m: DAPS(m, steps=0), "steps of DAPS is 0; expected a whole number from 1 on"),
        (lambda m: DAPS(m, data_std=math.inf), "DAPS needs a finite data_std > 0, got inf"),
    ],
)
def test_impossible_settings_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        make(seen(A, Y, NOISE))


OTHERS = [Heun(GRID), DEIS(GRID), UniPC(GRID), DPMSolver2M(GRID), SDEDPMSolver2M(GRID), DDIM(GRID, eta=1.0), PLMS(GRID)]


@pytest.mark.parametrize(
    "sampler", [*OTHERS, TimeTravel(Heun(GRID), 2), Restart(DEIS(GRID))], ids=lambda sampler: type(sampler).__name__
)
@pytest.mark.parametrize("name", STEPS)
def test_samplers_that_do_more_than_a_step_along_the_noise_are_refused_before_the_first(
    name: str, sampler: Sampler
) -> None:
    guided = METHODS[name](seen(A, Y, NOISE), positive=mixture())
    with pytest.raises(ValueError, match=f"{name} draws the noise of its steps: sample it by Euler"):
        next(sampler.steps(guided, sampler.initial(guided, SampleSeeds(0, range(2))), seeds=SampleSeeds(0, range(2))))


@pytest.mark.parametrize(
    "sampler",
    [DDIM(GRID, eta=0.0), TimeTravel(Euler(GRID), 2), Restart(Euler(GRID))],
    ids=lambda sampler: type(sampler).__name__,
)
def test_samplers_that_step_along_the_noise_are_not(sampler: Sampler) -> None:
    end = sampler.sample(DDRM(seen(A, Y, NOISE), positive=mixture()), seeds=SampleSeeds(0, range(2)))
    assert bool(end.x.isfinite().all())


def test_measurements_of_another_shape_are_refused_before_the_first_step() -> None:
    guided = MMPS(seen(A, normal(3), NOISE), positive=mixture())
    with pytest.raises(ValueError, match=r"measurements have shape \(3,\); expected \(N, \(2,\)\)"):
        Euler(GRID).sample(guided, seeds=SampleSeeds(0, range(2)))

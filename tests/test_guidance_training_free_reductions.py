"""Reductions between methods to machine precision, and invariances of all methods."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser, Predict, Trajectory
from lightning_guide.guidance import ClassifierFreeGuidance, Guided
from lightning_guide.guidance.training_free import (
    DPS,
    MPGD,
    TFG,
    AddedNoise,
    AtClean,
    Augmented,
    AugmentedPolyak,
    Balanced,
    ClippedStep,
    ConstantStep,
    EnergyGuidance,
    FreeDoM,
    LossGuidedDiffusion,
    MonteCarlo,
    MPGDLatent,
    NoiseScaledPolyakStep,
    PowerLaw,
    Schedule,
    SigmaWindow,
    ThroughDenoiser,
    UniversalGuidance,
)
from lightning_guide.guidance.training_free.schedules import StepContext
from lightning_guide.objectives import Energy, SquaredDistance, WeightedSum
from lightning_guide.pretrained import Subspace
from lightning_guide.samplers import DDIM, DPMSolver2M, Euler, Heun, Sampler, TimeTravel
from tests.energies import GRID, METHODS, Bend, Make, draw_samples, mixture

MIXTURE, LOSS = mixture(), Bend()
SAMPLERS: list[Sampler] = [Heun(GRID), TimeTravel(DPMSolver2M(GRID), 2), DDIM(GRID)]
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def guided(make: Make | Denoiser, sampler: Sampler, loss: Energy = LOSS) -> Tensor:
    return draw_samples(make if isinstance(make, Denoiser) else make(loss, MIXTURE), sampler)


class Times(Schedule):
    """A product of schedules and one more factor."""

    def __init__(self, schedules: Sequence[Schedule], last: str) -> None:
        self.schedules, self.last = list(schedules), last

    def at(self, context: StepContext) -> float:
        factor = {
            "sqrt alpha": ((1 + context.sigma_next**2) / (1 + context.sigma**2)) ** 0.5,
            "folded": 1 - context.sigma_next / context.sigma,
        }[self.last]
        for schedule in self.schedules:
            factor *= schedule.at(context)
        return factor


def through(rate: float, schedule: Schedule, **options: object) -> EnergyGuidance:
    return EnergyGuidance(LOSS, [ThroughDenoiser(ConstantStep(rate, schedule=schedule))], positive=MIXTURE, **options)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
class TestReductions:
    """Pairs of settings that give the same method."""

    def test_tfg_without_its_clean_part_is_dps(self, sampler: Sampler) -> None:
        """rho_t (1 + sigma^2) = zeta sqrt(1 + sigma^2) sqrt(1 + sigma'^2) for rho_t = zeta sqrt(alpha)."""
        tfg = through(0.3, Times([PowerLaw(scale=2)], "sqrt alpha"))
        torch.testing.assert_close(guided(tfg, sampler), guided(DPS(LOSS, 0.3, positive=MIXTURE), sampler), **EXACT)
        constant = TFG(LOSS, 0.3, 0.0, rho_schedule="constant", positive=MIXTURE)
        assert torch.equal(guided(constant, sampler), guided(through(0.3, PowerLaw(scale=2)), sampler))

    def test_tfg_without_its_noisy_part_is_mpgd(self, sampler: Sampler) -> None:
        tfg = TFG(LOSS, 0.0, 0.2, iterations=1, mu_schedule="constant", positive=MIXTURE)
        assert torch.equal(guided(tfg, sampler), guided(MPGD(LOSS, 0.2, positive=MIXTURE), sampler))

    def test_tfg_without_smoothing_does_not_depend_on_draws(self, sampler: Sampler) -> None:
        one, many = (TFG(LOSS, 0.2, 0.1, draws=draws, positive=MIXTURE) for draws in (1, 7))
        assert torch.equal(guided(one, sampler), guided(many, sampler))

    def test_estimators_without_augmentation_or_spread_are_the_plug_in(self, sampler: Sampler) -> None:
        plain = guided(FreeDoM(LOSS, 0.5, positive=MIXTURE), sampler)
        one = FreeDoM(LOSS, 0.5, estimator=Augmented([], 1), positive=MIXTURE)
        assert torch.equal(guided(one, sampler), plain)
        for estimator in (Augmented([], 4), Augmented([AddedNoise(0.0)], 3), MonteCarlo(5, scale=0.0)):
            same = FreeDoM(LOSS, 0.5, estimator=estimator, positive=MIXTURE)
            torch.testing.assert_close(guided(same, sampler), plain, **EXACT)

    def test_lgd_without_spread_is_forward_universal_guidance(self, sampler: Sampler) -> None:
        lgd = LossGuidedDiffusion(LOSS, 0.4, draws=3, data_std=1e-9, positive=MIXTURE)
        forward = UniversalGuidance(LOSS, 0.4, positive=MIXTURE)
        torch.testing.assert_close(guided(lgd, sampler), guided(forward, sampler), rtol=1e-7, atol=1e-7)

    def test_the_polyak_presets_equal_their_parts(self, sampler: Sampler) -> None:
        noise = [AddedNoise(0.3)]
        rule = NoiseScaledPolyakStep(0.05)
        cells = {
            "polyak": AugmentedPolyak(LOSS, 0.05, augmentations=[], positive=MIXTURE),
            "both": AugmentedPolyak(LOSS, 0.05, augmentations=noise, copies=5, positive=MIXTURE),
        }
        parts = {
            "polyak": EnergyGuidance(LOSS, [ThroughDenoiser(rule)], positive=MIXTURE),
            "both": EnergyGuidance(LOSS, [ThroughDenoiser(rule)], estimator=Augmented(noise, 5), positive=MIXTURE),
        }
        for name, cell in cells.items():
            assert torch.equal(guided(cell, sampler), guided(parts[name], sampler)), name
        assert not torch.equal(guided(cells["polyak"], sampler), guided(cells["both"], sampler))

    def test_a_large_cap_has_no_effect(self, sampler: Sampler) -> None:
        """Except in the last step, which is always clipped to zero: the window ends before it."""
        free, capped = (
            EnergyGuidance(LOSS, [ThroughDenoiser(rule)], window=SigmaWindow(0.2), positive=MIXTURE)
            for rule in (NoiseScaledPolyakStep(0.05), ClippedStep(NoiseScaledPolyakStep(0.05), 1e6))
        )
        torch.testing.assert_close(guided(free, sampler), guided(capped, sampler), **EXACT)

    def test_with_a_lossless_autoencoder_the_variants_of_mpgd_agree(self, sampler: Sampler) -> None:
        rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
        plain = guided(MPGD(LOSS, 0.2, positive=MIXTURE), sampler)
        latent = MPGDLatent(LOSS, Subspace(rotation), 0.2, positive=MIXTURE)
        reconstructed = MPGD(LOSS, 0.2, autoencoder=Subspace(rotation), positive=MIXTURE)
        torch.testing.assert_close(guided(latent, sampler), plain, **EXACT)
        torch.testing.assert_close(guided(reconstructed, sampler), plain, **EXACT)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("sampler", [Heun(GRID), TimeTravel(DPMSolver2M(GRID), 2)], ids=lambda s: type(s).__name__)
class TestAllMethods:
    """Invariances of every method."""

    def test_guide_batch_does_not_change_the_result(self, sampler: Sampler, name: str) -> None:
        whole, small = METHODS[name](LOSS, MIXTURE), METHODS[name](LOSS, MIXTURE)
        small.guide_batch = 2
        torch.testing.assert_close(guided(small, sampler), guided(whole, sampler), **EXACT)

    def test_outside_its_window_a_method_equals_its_positive(self, sampler: Sampler, name: str) -> None:
        method = METHODS[name](LOSS, MIXTURE)
        method.window = SigmaWindow(1e3, 1e4)
        if isinstance(method.positive, EnergyGuidance):
            method.positive.window = method.window
        assert torch.equal(guided(method, sampler), guided(MIXTURE, sampler))

    def test_a_weighted_sum_of_the_same_loss_is_that_loss(self, sampler: Sampler, name: str) -> None:
        half = WeightedSum([LOSS, LOSS], [0.25, 0.75])
        torch.testing.assert_close(
            guided(METHODS[name], sampler, half), guided(METHODS[name], sampler), rtol=1e-9, atol=1e-9
        )

    def test_guiding_a_guidance_is_guiding_its_denoiser(self, sampler: Sampler, name: str) -> None:
        good, bad = mixture(), mixture([0, 1, 2])
        stacked = METHODS[name](LOSS, Guided([bad], [1.7], positive=good))

        class Formula(Denoiser):
            data_shape, num_classes, sigma_data = (3,), 0, 0.5

            def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
                return bad(x, sigma) + 1.7 * (good(x, sigma) - bad(x, sigma))

        torch.testing.assert_close(
            guided(stacked, sampler), guided(METHODS[name](LOSS, Formula()), sampler), rtol=1e-9, atol=1e-9
        )


def test_universal_guidance_is_tfg_up_to_its_change_of_the_noise() -> None:
    """One Euler step of UG displaces by (1 - sigma' / sigma) delta, TFG's parts with that factor."""
    forward = UniversalGuidance(LOSS, 0.4, positive=MIXTURE)
    kept = through(0.4, Times([PowerLaw(2)], "folded"))
    torch.testing.assert_close(guided(kept, Euler(GRID)), guided(forward, Euler(GRID)), **EXACT)
    backward = UniversalGuidance(LOSS, 0.0, backward_steps=1, backward=ConstantStep(0.1), positive=MIXTURE)
    at_clean = EnergyGuidance(LOSS, [AtClean(ConstantStep(0.1, schedule=Times([], "folded")))], positive=MIXTURE)
    for sampler in (Euler(GRID), TimeTravel(Euler(GRID), 3)):
        torch.testing.assert_close(guided(at_clean, sampler), guided(backward, sampler), **EXACT)
    assert not torch.allclose(
        guided(through(0.4, PowerLaw(2)), Euler(GRID)), guided(forward, Euler(GRID)), atol=1e-3
    ), "kept and implied noise should differ"


def test_universal_guidance_without_backward_steps_is_forward_guidance() -> None:
    preset = UniversalGuidance(LOSS, 0.4, positive=MIXTURE)
    parts = through(0.4, PowerLaw(2), noise="implied")
    for sampler in SAMPLERS:
        assert torch.equal(guided(preset, sampler), guided(parts, sampler))


def test_lgd_converges_to_its_closed_form() -> None:
    """-log E exp(-|D + r n - y|^2 / (2 T^2)) has the gradient (D - y) / (T^2 + r^2) by D."""
    target, T = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64), 1.2
    x, level = 2 * torch.randn(4, 3, dtype=torch.float64), torch.tensor(1.5, dtype=torch.float64)
    r2 = level**2 / (1 + level**2)
    D = MIXTURE(x, level)
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        exact_loss = (MIXTURE(leaf, level) - target).square().sum(1) / (2 * (T**2 + r2))
        exact = D - level**2 * torch.autograd.grad(exact_loss.sum(), leaf)[0]
    errors = [
        float((LossGuidedDiffusion(SquaredDistance(target, T), draws=n, positive=MIXTURE)(x, level) - exact).norm())
        for n in (100, 1600, 25600)
    ]
    scale = float((exact - D).norm())
    assert errors[2] < 0.04 * scale and errors[0] > 5 * errors[2]


@pytest.mark.parametrize("sigma", [0.1, 0.7, 3.0])
def test_the_plug_in_gradient_is_the_posterior_covariance(sigma: float) -> None:
    """grad_x loss(D) = Cov[x_0 | x] / sigma^2 times the gradient of the loss at D, for the exact denoiser."""
    x, level = 2 * torch.randn(6, 3, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64)
    means, vectors = MIXTURE.means, MIXTURE.eigenvectors
    covariances = (vectors * MIXTURE.eigenvalues[:, None, :]) @ vectors.mT
    noised = covariances + sigma**2 * torch.eye(3, dtype=torch.float64)
    log_r = MIXTURE.log_weights + torch.stack(
        [torch.distributions.MultivariateNormal(m, c).log_prob(x) for m, c in zip(means, noised, strict=True)], 1
    )
    r = log_r.softmax(1)
    gain = covariances @ noised.inverse()
    m = means + torch.einsum("kde,bke->bkd", gain, x[:, None] - means)
    inner = covariances - gain @ covariances
    D = torch.einsum("bk,bkd->bd", r, m)
    second = torch.einsum("bk,bkde->bde", r, inner + m[..., :, None] * m[..., None, :])
    covariance = second - D[:, :, None] * D[:, None, :]
    with torch.enable_grad():
        leaf = D.clone().requires_grad_()
        (at_clean,) = torch.autograd.grad(LOSS(leaf).sum(), leaf)
    expected = torch.einsum("bde,be->bd", covariance, at_clean) / sigma**2
    guide = EnergyGuidance(LOSS, [ThroughDenoiser(ConstantStep(1.0))], positive=MIXTURE)
    torch.testing.assert_close(D - guide(x, level), expected, rtol=1e-8, atol=1e-10)
    mpgd = MPGD(LOSS, 1.0, positive=MIXTURE)
    torch.testing.assert_close(D - mpgd(x, level), at_clean, rtol=1e-9, atol=1e-11)


def test_balanced_schedules_have_mean_one() -> None:
    levels = tuple(GRID.sigmas().tolist())
    trajectory = Trajectory(x=torch.zeros(1, 3), seeds=None, sigma=1.0, steps=6, levels=levels)
    for kind in ("increase", "decrease", "constant"):
        shares = []
        for trajectory.step in range(6):
            context = StepContext(trajectory.x, levels[trajectory.step], levels[trajectory.step + 1], trajectory)
            shares.append(Balanced(kind).at(context))  # type: ignore[arg-type]
        assert sum(shares) == pytest.approx(6)
        alphas = [(1 + low**2) / (1 + high**2) for high, low in zip(levels, levels[1:], strict=False)]
        s = {"increase": alphas, "decrease": [1 - a for a in alphas], "constant": [1.0] * 6}[kind]
        assert [share / shares[0] for share in shares] == pytest.approx([each / s[0] for each in s])


def test_the_condition_reaches_the_positive_and_the_energy() -> None:
    """Also if only one of them has labels."""
    conditions: list[Tensor | None] = []

    class Labeled(Bend):
        num_classes = 3

        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            conditions.append(condition)
            return super().forward(x)

    class Plain(type(MIXTURE)):  # type: ignore[misc]
        def start(self, trajectory: Trajectory) -> Predict:
            inner = super().start(trajectory)

            def predict(x: Tensor, sigma: Tensor, condition: Tensor | None) -> object:
                assert condition is None, "labels passed to an unconditional denoiser"
                return inner(x, sigma, condition)

            return predict  # type: ignore[return-value]

    labels, x, level = torch.tensor([2, 0, 1]), torch.randn(3, 3, dtype=torch.float64), torch.tensor(1.0)
    plain = Plain(MIXTURE.means, torch.eye(3).expand(3, 3, 3))
    guide = DPS(Labeled(), 0.3, estimator=Augmented([], 2), positive=plain)
    assert guide.num_classes == 3
    guide(x, level, labels)
    assert conditions[0] is not None and torch.equal(conditions[0], labels.repeat(2))
    labeled = mixture([0, 1, 2])
    below = ClassifierFreeGuidance(2.0, positive=labeled)
    at_label = DPS(LOSS, 0.3, positive=below)(x, level, labels)
    assert not torch.allclose(at_label, DPS(LOSS, 0.3, positive=below)(x, level, labels.flip(0)))

"""Training-free guidance: independence of samples, impossible steps, cost, sampler stages, nesting."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.commands.guidance_files import build_guidances
from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import Main
from lightning_guide.guidance.training_free import (
    DPS,
    MPGD,
    TFG,
    AdamStep,
    AddedNoise,
    AtClean,
    Augmented,
    ConstantStep,
    EnergyGuidance,
    LossGuidedDiffusion,
    MonteCarlo,
    NoiseScaledPolyakStep,
    NormalizedStep,
    PolyakStep,
    Resized,
    RootMeanSquareStep,
    SigmaWindow,
    StepRule,
    ThroughDenoiser,
    UniversalGuidance,
)
from lightning_guide.objectives import (
    Boxed,
    Compressed,
    Disc,
    Downsampled,
    Energy,
    HalfSpace,
    SquaredDistance,
    Style,
    WeightedSum,
)
from lightning_guide.samplers import Euler, Heun, Sampler, TimeTravel
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.recipe import build
from tests.energies import GRID, METHODS, Bend, draw_samples, mixture

MIXTURE, LOSS = mixture(), Bend()
RULES: dict[str, StepRule] = {
    "constant": ConstantStep(0.2),
    "normalized": NormalizedStep(0.2),
    "rms": RootMeanSquareStep(0.2),
    "polyak": NoiseScaledPolyakStep(0.05),
    "true polyak": PolyakStep(0.2),
    "adam": AdamStep(0.1),
}


# Independence of samples


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    """Norms, moments and draws are per sample, independent of the size and the rest of the batch."""
    method, sampler = METHODS[name](LOSS, MIXTURE), TimeTravel(Heun(GRID), 2)
    whole = draw_samples(method, sampler, 6)
    alone = torch.cat([draw_samples(method, sampler, indices=[i]) for i in (1, 4)])
    torch.testing.assert_close(alone, whole[[1, 4]], rtol=1e-9, atol=1e-9)
    other = draw_samples(method, sampler, indices=[40, 3, 5, 0])
    torch.testing.assert_close(other[[1, 2, 3]], whole[[3, 5, 0]], rtol=1e-9, atol=1e-9)


class Broken(Bend):
    """A loss that is flat or not finite for samples on one side."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        loss, side = super().forward(x), x[:, 2] > 0.3
        if self.kind == "flat":
            return torch.where(side, 0 * loss, loss)
        if self.kind == "nan":
            return loss + torch.where(side, torch.nan, 0.0)
        if self.kind == "infinite gradient":  # a finite loss whose slope is infinite
            return loss + torch.where(side, x[:, 0] - x[:, 0].detach(), 1.0).sqrt() - ~side * 1.0
        return torch.where(side, loss * 1e200 * 1e200, loss)


@pytest.mark.parametrize("kind", ["flat", "nan", "infinite gradient", "overflow"])
@pytest.mark.parametrize("update", [ThroughDenoiser, AtClean])
@pytest.mark.parametrize("rule", RULES)
def test_impossible_steps_are_zero_and_counted(rule: str, update: Any, kind: str) -> None:
    x = 2 * torch.randn(40, 3, dtype=torch.float64)
    level, sampler = torch.tensor(1.0, dtype=torch.float64), Euler(GRID)
    side = MIXTURE(x, level)[:, 2] > 0.3
    assert 5 < int(side.sum()) < 35
    whole, broken = (EnergyGuidance(each, [update(RULES[rule])], positive=MIXTURE) for each in (LOSS, Broken(kind)))
    expected, found = whole(x, level), broken(x, level)
    assert torch.equal(found[side], MIXTURE(x, level)[side]), "the step of a broken sample is not zero"
    torch.testing.assert_close(found[~side], expected[~side], rtol=1e-12, atol=1e-12)
    assert (found[~side] != MIXTURE(x, level)[~side]).any(1).all()
    start, counts = x * float(sampler.grid.sigmas()[0]), torch.zeros(40, dtype=torch.int64)
    for step in sampler.steps(broken, start, seeds=SampleSeeds(0, range(40))):
        assert bool(step.x.isfinite().all())
        assert bool((step.diagnostics["skipped"] >= counts).all())
        counts = step.diagnostics["skipped"].clone()
        assert bool((step.diagnostics["taken"] + counts == step.step + 1).all())
    assert 0 < int(counts.sum()) < 40 * 6


def test_steps_are_counted_per_sample_over_the_trajectory() -> None:
    class Never(Energy):
        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            return 0 * x.sum(1)

    for method, times in ((DPS(Never(), 1.0, positive=MIXTURE), 6), (TFG(Never(), 1.0, 1.0, positive=MIXTURE), 30)):
        end = Euler(GRID).sample(method, seeds=SampleSeeds(0, range(3)))
        assert end.diagnostics["skipped"].tolist() == [times] * 3 and end.diagnostics["taken"].tolist() == [0] * 3
    fine = Euler(GRID).sample(DPS(LOSS, 0.1, positive=MIXTURE), seeds=SampleSeeds(0, range(3)))
    assert fine.diagnostics["skipped"].tolist() == [0] * 3 and fine.diagnostics["taken"].tolist() == [6] * 3


def test_the_loss_is_reported_in_the_diagnostics() -> None:
    steps = Euler(GRID).steps(DPS(LOSS, 0.1, positive=MIXTURE), torch.ones(2, 3).double(), seeds=SampleSeeds(0, [0, 1]))
    first = MIXTURE(torch.ones(2, 3).double(), GRID.sigmas()[0])
    torch.testing.assert_close(next(steps).diagnostics["loss"], LOSS(first))


def test_tiny_and_huge_gradients_do_not_overflow() -> None:
    """In float32 the square of 1e-30 is zero and that of 1e30 infinite; the normalized step must not change."""
    x, level = torch.randn(4, 3), torch.tensor(0.8)
    steps = [
        EnergyGuidance(WeightedSum([LOSS], [scale]), [ThroughDenoiser(NormalizedStep(0.3))], positive=MIXTURE)(x, level)
        for scale in (1.0, 1e-30, 1e30)
    ]
    torch.testing.assert_close(steps[1], steps[0])
    torch.testing.assert_close(steps[2], steps[0])


# Cost


class Counted(GaussianMixture):
    """Counts calls and vector-Jacobian products."""

    def count(self) -> None:
        self.calls, self.products = 0, 0

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        self.calls += 1
        clean = super().forward(x, sigma, condition)
        if clean.requires_grad:
            clean.register_hook(self._count_product)
        return clean

    def _count_product(self, gradient: Tensor) -> None:
        self.products += 1


@pytest.mark.parametrize(
    ("method", "products"),
    [
        (lambda d: DPS(LOSS, 0.1, positive=d), 1),
        (lambda d: DPS(LOSS, 0.1, estimator=Augmented([AddedNoise(0.1)], 20), guide_batch=3, positive=d), 1),
        (lambda d: LossGuidedDiffusion(LOSS, draws=30, positive=d), 1),
        (lambda d: TFG(LOSS, 0.1, 0.1, 0.2, draws=4, iterations=4, positive=d), 1),
        (lambda d: TFG(LOSS, 0.0, 0.1, 0.2, draws=4, iterations=4, positive=d), 0),
        (lambda d: MPGD(LOSS, 0.1, positive=d), 0),
        (lambda d: UniversalGuidance(LOSS, 0.1, backward_steps=5, positive=d), 1),
        (lambda d: UniversalGuidance(LOSS, 0.0, backward_steps=5, positive=d), 0),
        (lambda d: EnergyGuidance(LOSS, [ThroughDenoiser(ConstantStep(0.1))] * 2, positive=d), 2),
    ],
)
def test_one_vector_jacobian_product_for_any_number_of_copies(method: Any, products: int) -> None:
    denoiser = Counted(torch.zeros(1, 3), torch.eye(3)[None])
    denoiser.count()
    end = Euler(GRID).sample(method(denoiser), seeds=SampleSeeds(0, range(2)))
    assert (denoiser.calls, denoiser.products, end.evaluations) == (6, 6 * products, 6)


def test_windows_select_the_guided_steps() -> None:
    denoiser = Counted(torch.zeros(1, 3), torch.eye(3)[None])
    levels = GRID.sigmas()
    inner = SigmaWindow(float(levels[3]), float(levels[1]))
    for window, expected in ((SigmaWindow(every=2), 3), (inner, 2), (SigmaWindow(every=4), 2)):
        denoiser.count()
        Euler(GRID).sample(DPS(LOSS, 0.1, window=window, positive=denoiser), seeds=SampleSeeds(0, range(2)))
        assert (denoiser.calls, denoiser.products) == (6, expected)


def test_heun_is_guided_once_per_step_with_kept_noise_and_twice_with_implied_noise() -> None:
    denoiser = Counted(torch.zeros(1, 3), torch.eye(3)[None])
    for method, products in ((DPS, 6), (UniversalGuidance, 11)):
        denoiser.count()
        Heun(GRID).sample(method(LOSS, 0.1, positive=denoiser), seeds=SampleSeeds(0, range(2)))
        assert (denoiser.calls, denoiser.products) == (11, products)


@pytest.mark.parametrize("kind", ["kept", "implied"])
def test_heun_matches_its_written_out_formula(kind: Any) -> None:
    """Kept: x -> D + delta, then both noises unguided. Implied: the trapezoidal rule on the guided field."""
    rule, levels = ThroughDenoiser(ConstantStep(0.3)), GRID.sigmas().tolist()
    guide = EnergyGuidance(LOSS, [rule], noise=kind, positive=MIXTURE)
    x = start = 5 * torch.randn(4, 3, dtype=torch.float64)
    for t, t_next in zip(levels, levels[1:], strict=False):
        at, at_next = (torch.tensor(each, dtype=torch.float64) for each in (t, t_next))
        field = guide if kind == "implied" else MIXTURE
        delta = guide(x, at) - MIXTURE(x, at) if kind == "kept" else 0
        d = (x - field(x, at)) / t
        jumped = x + delta
        x = jumped + (t_next - t) * d
        if t_next:
            x = jumped + (t_next - t) * (d + (x - field(x, at_next)) / t_next) / 2
    torch.testing.assert_close(draw_samples(guide, Heun(GRID), 4, start=start), x, rtol=1e-9, atol=1e-9)


def test_nested_guidances_act_one_after_the_other() -> None:
    x, level = torch.randn(4, 3, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    other = SquaredDistance([1.0, 0.0, 0.0])
    inner = DPS(LOSS, 0.3, positive=MIXTURE)
    moved = inner(x, level)
    torch.testing.assert_close(MPGD(other, 0.2, positive=inner)(x, level), moved - 0.2 * (moved - other.target))
    # through the denoiser the inner displacement counts as a constant
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        shifted = MIXTURE(leaf, level) + (moved - MIXTURE(x, level))
        (g,) = torch.autograd.grad(other(shifted).sum(), leaf)
    outer = EnergyGuidance(other, [ThroughDenoiser(ConstantStep(0.2))], positive=inner)
    torch.testing.assert_close(outer(x, level), moved - 0.2 * g)


def test_a_derivative_from_outside_treats_the_displacement_as_constant() -> None:
    x, level = torch.randn(4, 3, dtype=torch.float64).requires_grad_(), torch.tensor(0.8, dtype=torch.float64)
    (found,) = torch.autograd.grad(DPS(LOSS, 0.3, positive=MIXTURE)(x, level).square().sum(), x)
    weight = 2 * DPS(LOSS, 0.3, positive=MIXTURE)(x, level).detach()
    (expected,) = torch.autograd.grad((MIXTURE(x, level) * weight).sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sampler", [Euler(GRID), Heun(GRID)])
def test_an_exactly_guided_gaussian_has_the_right_posterior(sampler: Sampler) -> None:
    """Prior N(0, 1), likelihood N(y; x, T^2): LGD with the right spread is the exact posterior score."""
    prior, T, y = GaussianMixture(torch.zeros(1, 1), torch.ones(1, 1, 1)), 0.7, 1.5
    levels = sampler.grid.sigmas().tolist()

    # for a Gaussian the expected likelihood has a closed form without Monte Carlo, -(D - y)^2 / (2 (T^2 + r^2))
    class Marginal(Energy):
        def start(self, trajectory: Any) -> Any:
            def loss(x: Tensor, condition: Tensor | None, number: Tensor) -> Tensor:
                level = trajectory.sigma_next if trajectory.stage == "corrector" else trajectory.sigma
                r2 = level**2 / (1 + level**2)
                return (x[:, 0] - y).square() / (2 * (T**2 + r2))

            return loss

        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            raise AssertionError

    guide = LossGuidedDiffusion(Marginal(), draws=1, data_std=1e-12, positive=prior)
    mean, variance = y / (1 + T**2), T**2 / (1 + T**2)
    posterior = GaussianMixture([[mean]], [[[variance]]])
    x = levels[0] * torch.randn(5, 1, dtype=torch.float64)
    torch.testing.assert_close(
        draw_samples(guide, sampler, start=x), draw_samples(posterior, sampler, start=x), rtol=1e-8, atol=1e-8
    )


# Precision, references, recipes, errors


@pytest.mark.parametrize("name", METHODS)
def test_float32_samples_leave_the_global_generator_unchanged(name: str) -> None:
    state = torch.get_rng_state()
    end = Euler(GRID).sample(METHODS[name](LOSS, MIXTURE), seeds=SampleSeeds(0, range(3)))
    assert end.x.dtype == torch.float32 and bool(end.x.isfinite().all()) and not end.x.requires_grad
    assert torch.equal(state, torch.get_rng_state())


def test_references_are_resolved_through_all_layers() -> None:
    class Models:
        main: Denoiser = MIXTURE

        def snapshot(self, **_: Any) -> Denoiser:
            raise AssertionError

    guide = UniversalGuidance(LOSS, 0.4, backward_steps=2, positive=Main())
    x, level = torch.randn(3, 3), torch.tensor(1.0)
    resolved = guide.resolve(Models())
    assert torch.equal(resolved(x, level), UniversalGuidance(LOSS, 0.4, backward_steps=2, positive=MIXTURE)(x, level))
    with pytest.raises(ValueError, match="Main is a reference"):
        guide(x, level)


def test_recipes_rebuild_the_methods() -> None:
    loss = SquaredDistance([1.0, 0.0, 0.5], 0.8)
    x, level = torch.randn(3, 3), torch.tensor(1.0)
    for name, make in METHODS.items():
        again = build(make(loss, MIXTURE).recipe)
        torch.testing.assert_close(again(x, level), make(loss, MIXTURE)(x, level), msg=name)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (DPS, {"rate": 1.0, "noise": "implied"}),
        (DPS, {"rate": 1.0, "updates": []}),
        (MPGD, {"estimator": None}),
        (TFG, {"rho": 1.0, "mu": 1.0, "estimator": None}),
        (UniversalGuidance, {"weight": 1.0, "estimator": None}),
        (UniversalGuidance, {"weight": 1.0, "noise": "kept"}),
    ],
)
def test_presets_refuse_config_keys_that_they_set_themselves(cls: type, options: dict[str, Any]) -> None:
    energy = {"class_path": "SquaredDistance", "init_args": {"target": [1.0]}}
    given = {"energy": energy, "window": {"low": 1.0}, "guide_batch": 3, "positive": {"class_path": "Unconditional"}}
    accepted = {key: value for key, value in options.items() if key in ("rate", "rho", "mu", "weight")}
    built = build_guidances({"preset": {"class_path": cls.__name__, "init_args": given | accepted}})["preset"]
    assert isinstance(built, cls) and built.recipe["init_args"]["guide_batch"] == built.guide_batch == 3
    with pytest.raises(ValueError, match="is not accepted"):
        build_guidances({"preset": {"class_path": cls.__name__, "init_args": given | options}})


@pytest.mark.parametrize(
    ("build_wrongly", "message"),
    [
        (lambda: EnergyGuidance(LOSS, []), "at least one update"),
        (lambda: EnergyGuidance(LOSS, [AtClean(ConstantStep(1.0))], noise="old"), "noise 'kept' or 'implied'"),
        (lambda: MonteCarlo(0), "draws >= 1"),
        (lambda: Augmented([], 0), "copies >= 1"),
        (lambda: SigmaWindow(2.0, 1.0), "0 <= low < high"),
        (lambda: SigmaWindow(every=0), "every >= 1"),
        (lambda: TFG(LOSS, 0.0, 0.0), "TFG needs rho or mu"),
        (lambda: AdamStep(0.1, beta1=1.0), "beta1 and beta2 in"),
        (lambda: WeightedSum([LOSS], [1.0, 2.0]), "one weight for each energy"),
        (lambda: HalfSpace([1.0], softness=0.0), "HalfSpace needs softness > 0"),
        (lambda: Disc([0.0], 0.0), "Disc needs radius > 0"),
        (lambda: Style(nn.Identity(), [0.0], scale=0.0), "Style needs scale > 0"),
        (lambda: Downsampled(0), "factor of Downsampled is 0; expected a whole number"),
        (lambda: Boxed(0, -1, 2, 2), "top or left of Boxed is -1; expected a whole number"),
        (lambda: Compressed(0), "count of Compressed is 0; expected a whole number"),
        (lambda: AddedNoise(-1.0), "std >= 0"),
        (lambda: Resized(0), "size >= 1"),
    ],
)
def test_invalid_arguments_are_refused(build_wrongly: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_wrongly()


def test_a_loss_of_the_wrong_shape_or_without_gradient_is_refused() -> None:
    class Mean(Bend):
        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            return super().forward(x).mean()

    class Cut(Bend):
        def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
            return super().forward(x.detach())

    x, level = torch.randn(3, 3), torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"loss of shape \(\) for 3 samples"):
        DPS(Mean(), 0.1, positive=MIXTURE)(x, level)
    with pytest.raises(ValueError, match="does not depend on them"):
        DPS(Cut(), 0.1, positive=MIXTURE)(x, level)

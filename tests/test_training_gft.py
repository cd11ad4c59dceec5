"""Guidance-free training: its loss by hand, its minimum on a mixture, a trained model, and sampling by one call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance import ClassifierFreeGuidance, GuidanceFree
from lightning_guide.inference import fuse_weights
from lightning_guide.modules import DiffusionModule
from lightning_guide.network import Network
from lightning_guide.networks import BetaConditioned, DiffusionTransformer, PointMLP
from lightning_guide.noise import LogNormal
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Heun
from lightning_guide.training.gft import GuidanceFreeLoss
from lightning_guide.training.losses import EDMLoss
from tests.branches import GRID, walk
from tests.small_networks import LABELS, NETWORKS, SIGMA, noisy_images, randomize_weights

MIXTURE = GaussianMixture([[-0.6, 0.0], [0.6, 0.2], [0.0, -0.5]], 0.04 * torch.eye(2).expand(3, 2, 2), labels=[0, 1, 2])
LOSS = GuidanceFreeLoss(EDMLoss(LogNormal(-1.0, 0.8), uncertainty=False))


def exact(x: Tensor, sigma: Tensor, condition: Tensor, beta: Tensor) -> Tensor:
    """D_u + (D_c - D_u) / beta."""
    conditional, unconditional = MIXTURE(x, sigma, condition), MIXTURE(x, sigma)
    return unconditional + (conditional - unconditional) / beta[:, None]


class Exact(BetaConditioned):
    """The exact minimum, plus small terms with coefficients theta."""

    def __init__(self) -> None:
        Denoiser.__init__(self)
        self.denoiser = MIXTURE
        self.theta = nn.Parameter(torch.zeros(3, 2, 3, dtype=torch.float64))

    def forward(
        self, x: Tensor, sigma: Tensor, condition: Tensor | None = None, *, beta: Tensor | None = None
    ) -> Tensor:
        if condition is None or beta is None:
            return MIXTURE(x, sigma, condition)
        terms = torch.stack([torch.ones_like(beta), beta, (x * x).sum(1)], dim=1)
        return exact(x, sigma, condition, beta) + torch.einsum("bdk,bk->bd", self.theta[condition], terms)


def draw(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, labels = MIXTURE.sample(count, torch.Generator().manual_seed(seed))
    return x.double(), labels


def slopes(beta_of: float | None = None) -> Tensor:
    """Return the gradient of the loss in each theta over its standard error, each prediction at the beta `beta_of`."""
    model, batches = Exact(), []
    for seed in range(40):
        clean, labels = draw(2000, seed)
        generator = torch.Generator().manual_seed(100 + seed)
        sigma = LOSS.noise.sample(len(clean), generator).double()
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        beta = torch.rand(len(clean), generator=generator).double()
        if beta_of is not None:
            model.forward = lambda *a, beta=None, **k: Exact.forward(  # type: ignore[method-assign]
                model, *a, beta=None if beta is None else torch.full_like(beta, beta_of), **k
            )
        loss = LOSS.mixed(model, clean, labels, sigma, noise, beta).objective.mean()
        batches.append(torch.autograd.grad(loss, model.theta)[0])
    found = torch.stack(batches)
    return found.mean(0) / (found.std(0) / len(found) ** 0.5)


def test_the_guided_field_of_the_exact_model_is_the_minimum() -> None:
    assert slopes().abs().max() < 4
    assert slopes(beta_of=0.5).abs().max() > 10, "the test sees no other field"


def test_loss_written_out() -> None:
    model = Exact()
    clean, labels = draw(5)
    labels = torch.where(torch.arange(5) == 2, -1, labels)
    sigma = torch.tensor([0.2, 0.5, 0.5, 1.0, 2.0], dtype=torch.float64)
    noise = torch.randn(5, 2, dtype=torch.float64)
    beta = torch.tensor([0.1, 0.4, 0.7, 0.9, 1.0], dtype=torch.float64)
    with torch.no_grad():
        model.theta.normal_()
    found = LOSS.mixed(model, clean, labels, sigma, noise, beta)
    for i in range(5):
        x, level, row = (clean + sigma[:, None] * noise)[i : i + 1], sigma[i : i + 1], labels[i : i + 1]
        share = torch.ones(1).double() if i == 2 else beta[i : i + 1]  # no condition
        D = share * model(x, level, row, beta=share) + (1 - share) * model(x, level)
        weight = (sigma[i] ** 2 + 0.25) / (sigma[i] * 0.5) ** 2
        torch.testing.assert_close(found.error[i], weight * (D - clean[i]).square().mean())
    (gradient,) = torch.autograd.grad(found.objective[3], model.theta)
    x = (clean + sigma[:, None] * noise)[3:4]
    D = 0.9 * model(x, sigma[3:4], labels[3:4], beta=beta[3:4]) + 0.1 * MIXTURE(x, sigma[3:4])
    torch.testing.assert_close(gradient[labels[3], :, 0], 0.9 * ((1 + 0.25) / 0.25 * (D - clean[3]))[0])


def test_draws_are_those_of_the_generator_and_heldout_losses_those_of_the_conditional_model() -> None:
    model, (clean, labels) = Exact(), draw(6)
    one, two = (LOSS(model, clean, labels, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.objective, two.objective)
    noise, sigma = torch.randn(6, 2, dtype=torch.float64), torch.full((6,), 0.3).double()
    torch.testing.assert_close(
        LOSS.at(model, clean, labels, sigma, noise), LOSS.loss.at(MIXTURE, clean, labels, sigma, noise)
    )
    torch.testing.assert_close(
        LOSS.mixed(model, clean, None, sigma, noise, sigma), LOSS.loss.at(MIXTURE, clean, None, sigma, noise)
    )


# The input beta


@pytest.mark.parametrize("kind", NETWORKS)
def test_beta_changes_nothing_at_first_and_at_one(kind: str) -> None:
    plain = NETWORKS[kind]()
    model, x = BetaConditioned(plain), noisy_images()
    beta = torch.full((len(x),), 0.3)
    assert torch.equal(model(x, SIGMA, LABELS, beta=beta), plain(x, SIGMA, LABELS))
    randomize_weights(model)
    assert torch.equal(model(x, SIGMA, LABELS, beta=torch.ones(len(x))), plain(x, SIGMA, LABELS))
    assert torch.equal(model(x, SIGMA, LABELS), plain(x, SIGMA, LABELS))
    other = model(x, SIGMA, LABELS, beta=beta)
    assert (other - plain(x, SIGMA, LABELS)).abs().max() > 1e-4
    torch.testing.assert_close(
        model(x, SIGMA, None, beta=beta)[:1], model(x, SIGMA, -torch.ones_like(LABELS), beta=beta)[:1]
    )
    torch.testing.assert_close(fuse_weights(model)(x, SIGMA, LABELS, beta=beta), other)  # type: ignore[call-arg]


def test_models_without_an_embedding_of_the_condition_are_refused() -> None:
    texts = DiffusionTransformer((1, 8, 8), token_channels=6, channels=16, depth=1, heads=2)
    for model, kind in ((MIXTURE, "GaussianMixture"), (Preconditioned(PointMLP((2,))), "PointMLP")):
        with pytest.raises(ValueError, match=f"embedding .* of a condition, which {kind} does not have here; expected"):
            BetaConditioned(model)
    with pytest.raises(ValueError, match="which DiffusionTransformer does not have here"):
        BetaConditioned(Preconditioned(texts))
    with pytest.raises(ValueError, match="GuidanceFreeLoss trains BetaConditioned, .* got a Preconditioned"):
        LOSS.check(NETWORKS["unet"]())


# Sampling


def test_one_call_gives_classifier_free_guidance() -> None:
    model, x = Exact(), 3 * torch.randn(4, 2, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, -1])

    guided = walk(Heun(GRID), ClassifierFreeGuidance(2.5, positive=MIXTURE), x, labels)
    free = walk(Heun(GRID), GuidanceFree(2.5, positive=model), x, labels)
    torch.testing.assert_close(free.x, guided.x)
    assert free.evaluations == 11 and guided.evaluations == 22
    off = walk(Heun(GRID), GuidanceFree(1.0, positive=model), x, labels)
    torch.testing.assert_close(off.x, walk(Heun(GRID), MIXTURE, x, labels).x)


def test_weights_and_models_that_do_not_fit() -> None:
    for weight in (0.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="GuidanceFree needs a finite weight of 1 or more, since beta is"):
            GuidanceFree(weight)

    class Models:
        main = NETWORKS["unet"]()

    with pytest.raises(ValueError, match="needs a model trained with the input beta, BetaConditioned, got a P"):
        GuidanceFree(2.0).resolve(Models())  # type: ignore[arg-type]
    assert list(GuidanceFree(1.0).without_effect([])) == ["GuidanceFree has the weight 1, which is off"]


# Training


class Labeled(Network):
    """A small MLP of points with an embedding of three labels."""

    def __init__(self) -> None:
        super().__init__()
        self.data_shape, self.num_classes = (2,), 3
        self.labels = nn.Embedding(4, 64)
        self.input, self.middle, self.output = nn.Linear(3, 64), nn.Linear(64, 64), nn.Linear(64, 2)

    def embed(self, condition: Tensor | None, batch: int) -> Tensor:
        return self.labels(torch.full((batch,), 3) if condition is None else condition % 4)

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        h = nn.functional.silu(self.input(torch.cat([x, 4 * c_noise[:, None]], dim=1)) + embedding)
        return self.output(nn.functional.silu(self.middle(h) + embedding))


@pytest.mark.slow
def test_a_trained_model_has_the_guided_field() -> None:
    """At w = 1, 2 and 4, relative to what the condition changes: errors of 0.06, 0.08 and 0.21 when it was written."""
    torch.manual_seed(0)
    model = BetaConditioned(Preconditioned(Labeled(), sigma_data=0.5))
    rate, steps, generator = 3e-3, 6000, torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for step in range(steps):
        clean, labels = MIXTURE.sample(512, generator)
        labels = torch.where(torch.rand(512, generator=generator) < 0.1, -1, labels)
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        LOSS(model, clean, labels, generator).objective.mean().backward()
        optimizer.step()
    clean, labels = draw(4000, 7)
    sigma = torch.tensor(0.4)
    x = clean.float() + sigma * torch.randn(clean.shape, generator=generator)
    conditional = MIXTURE(x, sigma, labels)
    for weight in (1.0, 2.0, 4.0):
        expected = exact(x, sigma, labels, torch.full((len(x),), 1 / weight))
        with torch.no_grad():
            found = GuidanceFree(weight, positive=model)(x, sigma, labels)
        error, size = (
            (found - expected).square().mean().sqrt(),
            (conditional - MIXTURE(x, sigma)).square().mean().sqrt(),
        )
        assert error < 0.12 * weight * size


def test_a_fit_checks_the_model_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    module = DiffusionModule(NETWORKS["unet"](), LOSS)
    monkeypatch.setattr(DiffusionModule, "_data", None)
    monkeypatch.setattr("lightning_guide.modules.diffusion.check_fits_data", lambda *_: None)
    with pytest.raises(ValueError, match="GuidanceFreeLoss trains BetaConditioned, .* got a Preconditioned"):
        module.setup("fit")

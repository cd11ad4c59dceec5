"""Self-attention guidance (SAG) of networks: the attention mask, identities, cost, and refused models."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser, Trajectory
from lightning_guide.distributions.gaussian_mixture import gaussian
from lightning_guide.guidance import Interval
from lightning_guide.guidance.negatives import (
    AttentionMask,
    BlurredInput,
    FullMask,
    HighFrequency,
    Mask,
    RandomPixels,
    RandomSquare,
    SelfAttentionGuidance,
)
from lightning_guide.network import Network
from lightning_guide.networks import DiffusionTransformer, EDM2UNet
from lightning_guide.networks.attention import AttentionCore
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import DPMSolver2M, Heun, Sampler
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.modules import names_of_layers, replace_modules
from lightning_guide.utils.recipe import build
from tests.test_guidance_sag_closed_forms import Linear

SHAPE = (2, 8, 12)
MASKS: list[Mask] = [FullMask(), HighFrequency(), RandomPixels(0.4), RandomSquare(0.4), AttentionMask()]


def randomized(network: Network) -> Preconditioned:
    """A denoiser whose gains and zero-initialized layers have an effect."""
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3 if isinstance(network, EDM2UNet) else 0.1)
    network.constrain()
    return Preconditioned(network.eval())


def unet(shape: tuple[int, ...] = SHAPE) -> Preconditioned:
    options = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": ()}
    return randomized(EDM2UNet(shape, num_classes=3, **options))  # type: ignore[arg-type]


def transformer(shape: tuple[int, ...] = SHAPE) -> Preconditioned:
    return randomized(DiffusionTransformer(shape, num_classes=3, channels=24, depth=3, heads=3))


BOTH = pytest.mark.parametrize("make", [unet, transformer])


def one_trajectory(x: Tensor, sigma: float = 0.7) -> Trajectory:
    return Trajectory(x=x, seeds=SampleSeeds(0, range(len(x))), sigma=sigma)


# The attention map


class Recorder(AttentionCore):
    """The plain core, with a record of its queries and keys."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int] | None) -> Tensor:
        self.seen = (q, k)
        return F.scaled_dot_product_attention(q, k, v)


def received_by_hand(model: Preconditioned, name: str, x: Tensor, sigma: Tensor) -> Tensor:
    """Attention that pixels receive in the layer `name`, from the recorded queries and keys, (B, 1, H, W)."""
    recorder = Recorder()
    with torch.no_grad():
        assert torch.equal(replace_modules(model, {f"network.{name}": recorder})(x, sigma), model(x, sigma))
    q, k = recorder.seen
    A = (torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5).exp()
    A = A / A.sum(-1, keepdim=True)
    received = A.mean(1).sum(1)  # over heads, over queries
    h, w = (side // 2 for side in x.shape[2:])
    assert received.shape[1] == h * w
    pixels = torch.empty(len(x), 1, *x.shape[2:])
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            pixels[:, 0, i, j] = received[:, (i // 2) * w + j // 2]
    torch.testing.assert_close(pixels.mean((1, 2, 3)), torch.ones(len(x)))
    return pixels


@BOTH
@pytest.mark.parametrize("shape", [(2, 8, 12), (2, 12, 4), (2, 16, 16)], ids=str)
def test_the_mask_is_where_attention_of_the_positive_pass_goes(
    make: Callable[[], Preconditioned], shape: tuple[int, ...]
) -> None:
    """At sizes of any aspect; the positive's prediction does not change by a bit."""
    model = make()
    (name,) = names_of_layers(model.network, model.network.parts["attention"], "")
    x, sigma = torch.randn(3, *shape), torch.tensor(0.7)
    with torch.no_grad():
        observed, mask = AttentionMask(layers=[name]).start_mask(model, one_trajectory(x))
        D = observed(x, sigma)
        assert torch.equal(D, model(x, sigma))
    M = (received_by_hand(model, name, x, sigma) > 1).float()
    assert torch.equal(mask(D), M)
    assert 0 < M.mean() < 1


def test_attention_is_averaged_over_layers() -> None:
    model, x, sigma = transformer(), torch.randn(3, *SHAPE), torch.tensor(0.7)
    received = [received_by_hand(model, f"blocks.{i}.attention.core", x, sigma) for i in range(3)]
    with torch.no_grad():
        observed, mask = AttentionMask(layers=["blocks.*.attention.core"]).start_mask(model, one_trajectory(x))
        M = mask(observed(x, sigma))
    assert torch.equal(M, (torch.stack(received).mean(0) > 1).float())
    assert not any(torch.equal(M, (each > 1).float()) for each in received)


@BOTH
def test_the_default_layer_is_the_default_of_the_network(make: Callable[[], Preconditioned]) -> None:
    model, x = make(), torch.randn(3, *SHAPE)
    (pattern,) = model.network.parts["attention"]
    sigma = torch.tensor(0.7)
    default = SelfAttentionGuidance(3.0, blur=0.3, reach=0.3, positive=model)
    named = SelfAttentionGuidance(3.0, mask=AttentionMask(layers=[pattern]), blur=0.3, reach=0.3, positive=model)
    assert torch.equal(default(x, sigma), named(x, sigma))
    assert not torch.allclose(default(x, sigma), model(x, sigma), atol=1e-4)


# Identities


@BOTH
def test_without_a_mask_it_is_the_positive_to_the_bit(make: Callable[[], Preconditioned]) -> None:
    model, x, labels = make(), torch.randn(4, *SHAPE), torch.tensor([0, 2, -1, 1])
    for sigma in (torch.tensor(0.05), torch.tensor(3.0)):
        for mask in (AttentionMask(psi=float("inf")), RandomPixels(0.0), RandomSquare(0.0)):
            guided = SelfAttentionGuidance(1.9, mask=mask, positive=model)
            assert torch.equal(guided(x, sigma, labels), model(x, sigma, labels))
        everywhere = SelfAttentionGuidance(1.9, mask=AttentionMask(psi=-1.0), positive=model)(x, sigma, labels)
        ones = SelfAttentionGuidance(1.9, mask=FullMask(), positive=model)(x, sigma, labels)
        assert torch.equal(everywhere, ones) and not torch.equal(ones, model(x, sigma, labels))


@BOTH
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: type(mask).__name__)
def test_weight_one_costs_one_evaluation_and_changes_no_bit(make: Callable[[], Preconditioned], mask: Mask) -> None:
    model, x, sigma = make(), torch.randn(3, *SHAPE), torch.tensor(0.7)
    for weight, evaluations in ((1.0, 1), (Interval(2.0, 5.0, 9.0), 1), (1.5, 2), (0.0, 2)):
        trajectory = one_trajectory(x)
        guided = SelfAttentionGuidance(weight, mask=mask, blur=0.2, positive=model).start(trajectory)(x, sigma, None)
        assert trajectory.evaluations == evaluations
        assert torch.equal(guided.clean, model(x, sigma)) == (evaluations == 1)


@BOTH
@pytest.mark.parametrize(
    ("sampler", "unguided", "mask"),
    [
        (Heun, 5, AttentionMask()),
        (DPMSolver2M, 3, AttentionMask()),
        (Heun, 5, RandomPixels()),
        (Heun, 5, RandomSquare()),
    ],
    ids=["Heun-attention", "DPMSolver2M-attention", "Heun-pixels", "Heun-square"],
)
def test_samples_depend_on_seed_and_index_alone(
    make: Callable[[], Preconditioned], sampler: type[Sampler], unguided: int, mask: Mask
) -> None:
    guided = SelfAttentionGuidance(1.8, mask=mask, blur=0.2, positive=make())
    grid = KarrasGrid(3)
    labels = torch.tensor([0, 1, 2, 1])
    together = sampler(grid).sample(guided, seeds=SampleSeeds(0, range(4)), condition=labels)
    assert together.evaluations == 2 * unguided
    assert together.x.isfinite().all()
    rows = [2, 0]
    alone = sampler(grid).sample(guided, seeds=SampleSeeds(0, rows), condition=labels[rows])
    torch.testing.assert_close(alone.x, together.x[rows], rtol=1e-3, atol=1e-3)


def test_the_positive_network_is_unchanged() -> None:
    model, x, sigma = unet(), torch.randn(2, *SHAPE), torch.tensor(0.7)
    before, modules = model(x, sigma), [type(part) for part in model.modules()]
    first = SelfAttentionGuidance(1.8, positive=model).start(one_trajectory(x))
    second = SelfAttentionGuidance(1.8, mask=AttentionMask(psi=0.9), positive=model).start(one_trajectory(x))
    alone = first(x, sigma, None).clean
    second(x + 1, sigma, None)
    assert torch.equal(first(x, sigma, None).clean, alone)
    assert torch.equal(model(x, sigma), before) and [type(part) for part in model.modules()] == modules


def test_dtype_is_kept() -> None:
    model, sigma = unet(), torch.tensor(0.7)
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(2, *SHAPE, dtype=dtype)
        for mask in MASKS:
            guided = SelfAttentionGuidance(1.8, mask=mask, positive=model.to(dtype))(x, sigma)
            assert guided.dtype == dtype


# Refusals, recipes


class Models:
    """The model under evaluation alone."""

    def __init__(self, main: Denoiser) -> None:
        self.main = main

    def snapshot(self, **_: object) -> Denoiser:
        raise AssertionError


def test_models_it_cannot_guide_are_refused_by_resolve() -> None:
    points = gaussian(torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match=r"needs images \(channels, height, width\); .* shape \(2,\)"):
        SelfAttentionGuidance().resolve(Models(points))
    sequences = transformer((2, 8))
    with pytest.raises(ValueError, match=r"needs images .* shape \(2, 8\)"):
        SelfAttentionGuidance(mask=FullMask()).resolve(Models(sequences))
    linear = Linear(torch.eye(8), (2, 2, 2))
    with pytest.raises(ValueError, match="acts on the network of a model; this Linear has no network"):
        SelfAttentionGuidance().resolve(Models(linear))
    SelfAttentionGuidance(mask=FullMask()).resolve(Models(linear))
    with pytest.raises(ValueError, match="no layer of DiffusionTransformer is called 'blocks.7.attention.core'"):
        SelfAttentionGuidance(mask=AttentionMask(layers=["blocks.7.attention.core"])).resolve(Models(transformer()))
    with pytest.raises(ValueError, match="^ObservedAttention replaces attention cores; blocks.1 is not one"):
        SelfAttentionGuidance(mask=AttentionMask(layers=["blocks.1"])).resolve(Models(transformer()))
    with pytest.raises(ValueError, match="blur > 0 and a finite reach > 0, got 0 and 1"):
        BlurredInput(blur=0, reach=1)
    with pytest.raises(ValueError, match="finite reach > 0, got 1 and inf"):
        BlurredInput(blur=1, reach=float("inf"))
    with pytest.raises(ValueError, match="AttentionMask needs one layer or more"):
        AttentionMask(layers=[])
    with pytest.raises(ValueError, match="AttentionMask needs a number psi"):
        AttentionMask(psi=float("nan"))


def test_references_are_resolved_once_for_both() -> None:
    model, x, sigma = transformer(), torch.randn(2, *SHAPE), torch.tensor(0.7)
    resolved = SelfAttentionGuidance(1.8).resolve(Models(model))
    trajectory = one_trajectory(x)
    guided = resolved.start(trajectory)(x, sigma, None).clean
    assert trajectory.evaluations == 2
    assert torch.equal(guided, SelfAttentionGuidance(1.8, positive=model)(x, sigma))


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: type(mask).__name__)
def test_its_recipe_rebuilds_it(mask: Mask) -> None:
    model, x, sigma = unet(), torch.randn(2, *SHAPE), torch.tensor(0.7)
    guidance = SelfAttentionGuidance(1.8, mask=mask, blur=0.2)
    again = build(guidance.recipe)
    first, second = (each.resolve(Models(model))(x, sigma) for each in (guidance, again))
    assert torch.equal(first, second)

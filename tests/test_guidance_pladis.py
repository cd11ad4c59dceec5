"""PLADIS: entmax against closed forms and bisection, its map in real attention, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.guidance import ClassifierFreeGuidance, PerturbedAttentionGuidance
from lightning_guide.guidance.negatives import PLADIS, SparseTexts
from lightning_guide.guidance.negatives.pladis import entmax
from lightning_guide.networks.inputs import CrossAttention
from tests.small_networks import SIGMA, noisy_images, trajectory, transformer, unet
from tests.test_guidance_nag import of_texts, predict, published, tokens

Tiny = Callable[[str], Path]
ALPHAS = pytest.mark.parametrize("alpha", [1.5, 2])


def by_bisection(z: Tensor, alpha: float) -> Tensor:
    """The root t of sum max((alpha - 1) z - t, 0)^(1 / (alpha - 1)) = 1 by halving."""
    z = (alpha - 1) * z.double()
    high = z.amax(-1, keepdim=True)
    low = high - 1
    mass = lambda t: (z - t).clamp(min=0) ** (1 / (alpha - 1))  # noqa: E731
    for _ in range(60):
        t = (low + high) / 2
        above = mass(t).sum(-1, keepdim=True) >= 1
        low, high = torch.where(above, t, low), torch.where(above, high, t)
    return mass(low)


def logits(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=generator).double()


# entmax


@ALPHAS
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_entmax_is_that_of_bisection(alpha: float, scale: float, generator: torch.Generator) -> None:
    z = logits(generator, 50, 9, scale=scale)
    p = entmax(z, alpha)
    torch.testing.assert_close(p, by_bisection(z, alpha), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(p.sum(-1), torch.ones(50).double())
    torch.testing.assert_close(entmax(z + 70.0, alpha), p)
    assert (p >= 0).all() and (scale < 1 or (p == 0).any())


def test_two_entries_in_closed_form() -> None:
    """Sparsemax: (1 + d) / 2 for a difference d. With 1.5: (d / 4 + sqrt(1/2 - d^2 / 16))^2."""
    d = torch.linspace(-3, 3, 25).double()
    z = torch.stack([d, torch.zeros_like(d)], -1)
    torch.testing.assert_close(entmax(z, 2)[:, 0], ((1 + d) / 2).clamp(0, 1))
    inside = d.abs() < 2
    root = (0.5 - d[inside] ** 2 / 16).sqrt()
    torch.testing.assert_close(entmax(z)[inside, 0], (d[inside] / 4 + root) ** 2)
    torch.testing.assert_close(entmax(z)[~inside, 0], (d[~inside] > 0).double())


@ALPHAS
def test_equal_and_tied_entries(alpha: float) -> None:
    z = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5.0, 5.0, 0.0, -80.0], [-80.0, 0.0, -80.0, -80.0]])
    expected = torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0], [0.0, 1, 0, 0]])
    torch.testing.assert_close(entmax(z, alpha), expected)


def test_order_of_sparsity(generator: torch.Generator) -> None:
    z = logits(generator, 20, 9, scale=2.0)
    dense, half, sparse = z.softmax(-1), entmax(z, 1.5), entmax(z, 2)
    assert ((half > 0) >= (sparse > 0)).all() and (half > 0).sum() > (sparse > 0).sum() and (dense > 0).all()
    assert (dense.amax(-1) < half.amax(-1)).all() and (half.amax(-1) <= sparse.amax(-1)).all()


@ALPHAS
def test_gradients(alpha: float, generator: torch.Generator) -> None:
    z = logits(generator, 4, 6, scale=1.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: entmax(z, alpha), [z])
    (entmax(torch.zeros(2, 3, requires_grad=True), alpha)[:, 0].sum()).backward()


# Attention of networks


def test_attention_of_a_block_by_hand() -> None:
    model, e = of_texts(), torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(5))
    block: Any = PLADIS(4.0, positive=model).network(trajectory()).network.reading[1]  # type: ignore[union-attr]
    layer = model.network.reading[1]
    assert isinstance(layer, CrossAttention)
    x = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(6))
    e[:, 2] = 0  # is masked
    with torch.no_grad():
        keys = torch.cat([layer.nothing.expand(3, 1, 16), e[:, [0, 1, 3]]], 1)
        q = layer.q(layer.norm(x)).unflatten(-1, (2, 8)).transpose(1, 2)
        k, v = (each.unflatten(-1, (2, 8)).transpose(1, 2) for each in layer.kv(keys).chunk(2, -1))
        z = (q @ k.mT / 8**0.5).double()
        A = (3 * by_bisection(z, 1.5) - 2 * z.softmax(-1)).float()
        expected = x + layer.output((A @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(block(x, e), expected, rtol=1e-3, atol=1e-4)


def test_cross_attention_of_stable_diffusion_by_hand(tiny_pipeline: Tiny) -> None:
    model, *_ = published(tiny_pipeline, "sd")
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    found: Any = PLADIS(alpha=2, positive=model).network(trajectory()).network  # type: ignore[union-attr]
    layer: Any = model.network.model.get_submodule(name)  # type: ignore[union-attr]
    x, text = torch.randn(2, 8, 16), torch.randn(2, 7, 16)
    with torch.no_grad():
        q, k, v = (
            h.unflatten(-1, (layer.heads, -1)).transpose(1, 2)
            for h in (layer.to_q(x), layer.to_k(text), layer.to_v(text))
        )
        z = q @ k.mT / q.shape[-1] ** 0.5
        A = 2 * by_bisection(z, 2).float() - z.softmax(-1)
        expected = layer.to_out[0]((A @ v).transpose(1, 2).flatten(2))
        result = found.model.get_submodule(name)(x, encoder_hidden_states=text)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["pixart", "sd3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("if", "sdxl", "flux"))]
)
def test_networks_of_diffusers(tiny_pipeline: Tiny, name: str) -> None:
    model, given, x = published(tiny_pipeline, name)
    plain = predict(model, x, given)
    assert torch.equal(predict(PLADIS(1.0, positive=model), x, given), plain)
    scale = float(plain.abs().max())
    slight = (predict(PLADIS(1.0 + 1e-6, positive=model), x, given) - plain) / scale
    assert slight.abs().max() < 1e-4, "the map is that of the attention"
    change = (predict(PLADIS(positive=model), x, given) - plain) / scale
    assert change.isfinite().all() and change.abs().max() > 1e-4
    assert torch.equal(predict(model, x, given), plain)


def test_one_call_and_the_positive_of_others() -> None:
    model, x = of_texts(), noisy_images()
    guided = PLADIS(positive=model)
    place = trajectory()
    with torch.no_grad():
        found = guided.start(place)(x, SIGMA, tokens()).clean
        assert place.evaluations == 1
        none = guided(x, SIGMA, None)  # the token of nothing alone: the map is 1 in either way
        torch.testing.assert_close(none, model(x, SIGMA, None), rtol=1e-4, atol=1e-4)
        free = ClassifierFreeGuidance(3.0, positive=guided)(x, SIGMA, tokens())
        torch.testing.assert_close(free, none + 3 * (found - none), rtol=1e-3, atol=1e-3)
        negative = PerturbedAttentionGuidance(0.0, positive=guided)(x, SIGMA, tokens())
    assert not torch.allclose(negative, found, atol=1e-3)


# Bad input


@pytest.mark.parametrize("model", [unet, transformer], ids=["unet", "transformer"])
def test_networks_without_attention_to_texts_are_refused(model: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"SparseTexts changes how attention reads texts; this \w+ has no such"):
        PLADIS(positive=model()).layers()


def test_logits_that_are_not_finite_stay_visible() -> None:
    found = entmax(torch.tensor([[float("nan"), 1.0], [1.0, 1.0]]))
    assert bool(found[0].isnan().all())
    torch.testing.assert_close(found[1], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(("weight", "alpha"), [(float("nan"), 1.5), (3, 1.7), (3, 1)])
def test_settings_out_of_range_are_refused(weight: float, alpha: float) -> None:
    with pytest.raises(ValueError, match="PLADIS needs a finite weight and alpha 1.5 or 2, got"):
        SparseTexts(weight, alpha=alpha)

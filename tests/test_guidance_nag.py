"""NAG: its formula, two texts in one attention of networks of this library and of diffusers, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import ClassifierFreeGuidance, PerturbedAttentionGuidance
from lightning_guide.guidance.negatives import PLADIS, NormalizedAttentionGuidance, NormalizedTexts
from lightning_guide.guidance.negatives.nag import normalized
from lightning_guide.networks.attention import TextReader
from lightning_guide.networks.inputs import CrossAttention
from lightning_guide.optimization.low_rank import LowRank
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersNetwork
from tests.small_networks import SIGMA, noisy_images, trajectory, transformer, unet
from tests.test_pretrained_diffusers_controlnet import network as controlled
from tests.test_pretrained_diffusers_network import condition, network

Tiny = Callable[[str], Path]
PAIRED = ["sd", "controlnet", pytest.param("sdxl", marks=pytest.mark.slow), "pixart", "sd3", "flux"]


def of_texts(**options: Any) -> Preconditioned:
    return transformer(num_classes=0, token_channels=6, **options)


def tokens(count: int = 3, length: int = 4) -> Tensor:
    return torch.randn(count, length, 6, generator=torch.Generator().manual_seed(4))


def published(tiny: Tiny, name: str) -> tuple[Preconditioned, Tensor, Tensor]:
    """A model of diffusers with a random negative prompt, texts and x."""
    found = controlled(tiny) if name == "controlnet" else network(tiny, name)
    found.empty.normal_(generator=torch.Generator().manual_seed(7))
    given = condition(found, 2)
    assert given is not None
    x = torch.randn(2, *found.data_shape, generator=torch.Generator().manual_seed(1))
    return Preconditioned(found, sigma_data=1.0), given, x


def predict(model: Denoiser, x: Tensor, given: Tensor | None) -> Tensor:
    with torch.no_grad():
        return model(x, torch.tensor(2.0), given)


def perturbed_network(guidance: NormalizedAttentionGuidance) -> Any:
    return guidance.network(trajectory()).network  # type: ignore[union-attr]


# The formula


def test_tokens_are_bounded_by_the_norm_of_the_positive(generator: torch.Generator) -> None:
    positive, negative = torch.randn(2, 2, 3, 5, 4, generator=generator).double()
    pushed = positive + 2 * (positive - negative)
    one, other = (z.transpose(1, 2).flatten(2) for z in (positive, pushed))  # (B, N, C)
    ratio = other.abs().sum(-1) / one.abs().sum(-1)
    assert 0.2 < (ratio < 3.4).double().mean() < 0.8, "both cases"
    whole = other * (ratio.clamp(max=3.4) / ratio)[..., None]
    expected = (0.3 * whole + 0.7 * one).unflatten(-1, (3, 4)).transpose(1, 2)
    torch.testing.assert_close(normalized(positive, negative, 3.0, 3.4, 0.3), expected)


def test_settings_that_change_nothing(generator: torch.Generator) -> None:
    positive, negative = torch.randn(2, 2, 3, 5, 4, generator=generator)
    for weight, alpha in ((1.0, 0.5), (6.0, 0.0)):
        assert torch.equal(normalized(positive, negative, weight, 1.5, alpha), positive)
    torch.testing.assert_close(normalized(positive, positive, 6.0, 1.0, 1.0), positive)
    torch.testing.assert_close(normalized(positive, negative, 3.0, 1e6, 1.0), 3 * positive - 2 * negative)
    assert normalized(torch.zeros_like(positive), torch.zeros_like(positive), 6.0, 1.5, 0.5).eq(0).all()


def test_norms_do_not_overflow_in_half_precision() -> None:
    positive = torch.full((1, 8, 2, 64), 300.0, dtype=torch.float16)  # a sum of 153600, above the largest half
    assert torch.equal(normalized(positive, positive, 6.0, 1.5, 0.5), positive)


# A network of this library


def test_attention_of_a_block_by_hand() -> None:
    """Its own token of nothing is among the keys of both texts."""
    model, e = of_texts(), torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(5))
    found = perturbed_network(NormalizedAttentionGuidance(4.0, tau=1.2, alpha=0.4, positive=model))
    layer, block = model.network.reading[1], found.reading[1]
    assert isinstance(layer, CrossAttention)
    x = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(6))
    texts, nothing = e[:, :3], e.new_zeros(3, 3, 16)
    with torch.no_grad():
        read = []
        for given in (texts, nothing):
            keys = torch.cat([layer.nothing.expand(3, 1, 16), given], 1)[:, : 4 if given is texts else 1]
            q = layer.q(layer.norm(x)).unflatten(-1, (2, 8)).transpose(1, 2)
            k, v = (each.unflatten(-1, (2, 8)).transpose(1, 2) for each in layer.kv(keys).chunk(2, -1))
            read.append((q @ k.mT / 8**0.5).softmax(-1) @ v)
        expected = x + layer.output(normalized(*read, 4.0, 1.2, 0.4).transpose(1, 2).flatten(2))
        torch.testing.assert_close(block(x, torch.cat([texts, nothing], 1)), expected, rtol=1e-4, atol=1e-5)


def test_it_is_off_at_weight_one_and_without_a_condition() -> None:
    model, x = of_texts(), noisy_images()
    plain, none = predict(model, x, tokens()), predict(model, x, None)
    for off in (NormalizedAttentionGuidance(1.0, positive=model), NormalizedAttentionGuidance(alpha=0, positive=model)):
        assert torch.equal(predict(off, x, tokens()), plain)
        assert list(off.without_effect([trajectory()])) == [
            "NormalizedTexts leaves the model as it is: its settings change nothing"
        ]
    guided = NormalizedAttentionGuidance(positive=model)
    assert not list(guided.without_effect([trajectory()]))
    torch.testing.assert_close(predict(guided, x, None), none, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(predict(guided, x, tokens()), plain, atol=1e-3)
    one = predict(guided, x[1:2], tokens()[1:2, :])
    torch.testing.assert_close(one, predict(guided, x, tokens())[1:2], rtol=1e-4, atol=1e-4)
    assert torch.equal(predict(model, x, tokens()), plain)


def test_one_call_and_the_positive_of_others() -> None:
    model, x = of_texts(), noisy_images()
    guided = NormalizedAttentionGuidance(positive=model)
    place = trajectory()
    with torch.no_grad():
        found = guided.start(place)(x, SIGMA, tokens()).clean
        assert place.evaluations == 1
        free = ClassifierFreeGuidance(3.0, positive=guided)(x, SIGMA, tokens())
        none = model(x, SIGMA, None)
        torch.testing.assert_close(free, none + 3 * (found - none), rtol=1e-3, atol=1e-3)
        negative = PerturbedAttentionGuidance(0.0, positive=guided)(x, SIGMA, tokens())
        alone = PerturbedAttentionGuidance(0.0, positive=model)(x, SIGMA, tokens())
        assert not torch.allclose(negative, found, atol=1e-3) and not torch.allclose(negative, alone, atol=1e-3)
        orders = [
            PLADIS(positive=NormalizedAttentionGuidance(positive=model)),
            NormalizedAttentionGuidance(positive=PLADIS(positive=model)),
        ]
        one, other = (order(x, SIGMA, tokens()) for order in orders)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one, found, atol=1e-3)


def test_a_low_rank_model_is_guided_like_its_base() -> None:
    model, x = of_texts(), noisy_images()
    adapted = LowRank(of_texts(), rank=2).eval()
    one, other = (predict(NormalizedAttentionGuidance(positive=each), x, tokens()) for each in (model, adapted))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


# Networks of diffusers


@pytest.mark.parametrize("name", PAIRED)
def test_equal_prompts_are_the_positive(tiny_pipeline: Tiny, name: str) -> None:
    """And so is a share of nothing: whatever else reads texts reads the positive."""
    model, given, x = published(tiny_pipeline, name)
    guided = NormalizedAttentionGuidance(positive=model)
    plain, none = predict(model, x, given), predict(model, x, None)
    scale = float(plain.abs().max())
    torch.testing.assert_close(predict(guided, x, None) / scale, none / scale, rtol=0, atol=1e-5)
    neutral = NormalizedAttentionGuidance(alpha=1e-9, positive=model)
    torch.testing.assert_close(predict(neutral, x, given) / scale, plain / scale, rtol=0, atol=1e-5)
    changed = (predict(guided, x, given) - plain).abs().max() / scale
    assert changed > 1e-4
    assert torch.equal(predict(model, x, given), plain)


def test_cross_attention_of_stable_diffusion_by_hand(tiny_pipeline: Tiny) -> None:
    model, *_ = published(tiny_pipeline, "sd")
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    found = perturbed_network(NormalizedAttentionGuidance(4.0, tau=1.1, alpha=0.4, positive=model))
    layer: Any = model.network.model.get_submodule(name)  # type: ignore[union-attr]
    x, texts = torch.randn(2, 8, 16), torch.randn(2, 2, 5, 16)
    heads = lambda h: h.unflatten(-1, (layer.heads, -1)).transpose(1, 2)  # noqa: E731
    with torch.no_grad():
        q, read = heads(layer.to_q(x)), []
        for text in texts:
            k, v = heads(layer.to_k(text)), heads(layer.to_v(text))
            read.append((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)
        expected = layer.to_out[0](normalized(*read, 4.0, 1.1, 0.4).transpose(1, 2).flatten(2))
        result = found.model.get_submodule(name)(x, encoder_hidden_states=torch.cat([*texts], 1))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_joint_attention_of_stable_diffusion_3_by_hand(tiny_pipeline: Tiny) -> None:
    """Each text attends to the image and to itself; the image to itself with either."""
    model, *_ = published(tiny_pipeline, "sd3")
    found = perturbed_network(NormalizedAttentionGuidance(4.0, tau=1.1, alpha=0.4, positive=model))
    found.grid.sides = (4, 4)
    layer: Any = model.network.model.transformer_blocks[1].attn  # type: ignore[union-attr]
    x, texts = torch.randn(2, 4, 16), torch.randn(2, 2, 5, 16)
    plain = lambda h: h  # noqa: E731

    def heads(h: Tensor, norm: Any) -> Tensor:
        return (norm or plain)(h.unflatten(-1, (layer.heads, -1)).transpose(1, 2))

    with torch.no_grad():
        q, k, v = heads(layer.to_q(x), layer.norm_q), heads(layer.to_k(x), layer.norm_k), heads(layer.to_v(x), None)
        images, rows = [], []
        for text in texts:
            q_text = heads(layer.add_q_proj(text), layer.norm_added_q)
            keys = torch.cat([k, heads(layer.add_k_proj(text), layer.norm_added_k)], 2)
            values = torch.cat([v, heads(layer.add_v_proj(text), None)], 2)
            images.append(F.scaled_dot_product_attention(q, keys, values))
            rows.append(F.scaled_dot_product_attention(q_text, keys, values).transpose(1, 2).flatten(2))
        image = layer.to_out[0](normalized(*images, 4.0, 1.1, 0.4).transpose(1, 2).flatten(2))
        outputs = found.model.transformer_blocks[1].attn(x, encoder_hidden_states=torch.cat([*texts], 1))
    torch.testing.assert_close(outputs[0], image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[1], layer.to_add_out(torch.cat(rows, 1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_perturbed_joint_attention_does_not_read_the_negative_prompt_as_a_text(tiny_pipeline: Tiny, name: str) -> None:
    """With equal prompts PAG of NAG is PAG."""
    model, _, x = published(tiny_pipeline, name)
    one = PerturbedAttentionGuidance(2.0, positive=NormalizedAttentionGuidance(positive=model))
    other = PerturbedAttentionGuidance(2.0, positive=model)
    torch.testing.assert_close(predict(one, x, None), predict(other, x, None), rtol=1e-3, atol=1e-4)


# Bad input


def test_networks_without_attention_to_texts_are_refused(tiny_pipeline: Tiny) -> None:
    for model in (unet(), transformer(), unet(num_classes=0, token_channels=6)):
        kind = type(model.network).__name__
        with pytest.raises(ValueError, match=f"NormalizedTexts changes how attention reads texts; this {kind} has no"):
            NormalizedAttentionGuidance(positive=model).layers()
    model, *_ = published(tiny_pipeline, "if")
    with pytest.raises(ValueError, match="DiffusersNetwork reads no texts, or not by attention alone, so that it can"):
        NormalizedAttentionGuidance(positive=model).layers()


def test_processors_that_are_exchanged_later_are_refused(tiny_pipeline: Tiny) -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    model, *_ = published(tiny_pipeline, "sd")
    assert isinstance(model.network, DiffusersNetwork)
    model.network.model.set_attn_processor(AttnProcessor2_0())  # type: ignore[operator]
    with pytest.raises(ValueError, match="attn2 got another processor, AttnProcessor2_0, which does not call its"):
        NormalizedAttentionGuidance(positive=model).layers()


@pytest.mark.parametrize(("weight", "tau", "alpha"), [(float("inf"), 1.5, 0.5), (6, 0.9, 0.5), (6, 1.5, 1.1)])
def test_settings_out_of_range_are_refused(weight: float, tau: float, alpha: float) -> None:
    with pytest.raises(ValueError, match="NAG needs a finite weight, tau of at least 1 and alpha between 0"):
        NormalizedTexts(weight, tau=tau, alpha=alpha)


def test_a_reader_is_named_by_its_attention() -> None:
    names = NormalizedTexts().chosen(of_texts(depth=2).network)
    assert names == ["", "reading.0.reader", "reading.1.reader"]
    assert isinstance(of_texts(depth=2).network.get_submodule(names[1]), TextReader)

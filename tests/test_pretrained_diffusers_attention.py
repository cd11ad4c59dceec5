"""Cores of diffusers' attentions: what they receive, that they change nothing by themselves, and what is refused."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.guidance.negatives import IdentityAttention
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.networks.attention import AttentionCore
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersNetwork
from lightning_guide.utils.modules import rebuild_with
from tests.test_pretrained_diffusers_network import condition, evaluate, model, network

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")

Tiny = Callable[[str], Path]
CALLS: dict[str, list[tuple[int, int, tuple[int, int] | None]]] = {  # tokens of queries and keys, grid, at 8 x 4
    "sd": [(32, 32, (8, 4)), (8, 8, (4, 2))] + [(32, 32, (8, 4))] * 2,
    "sdxl": [(32, 32, (8, 4))] * 2 + [(8, 8, (4, 2))] * 2 + [(32, 32, (8, 4))] * 4,
    "if": [(8, 8 + 77, (4, 2))] * 4,
    "ddpm": [(8, 8, (4, 2))] * 4,
    "dit": [(8, 8, (4, 2))] * 3,
    "pixart": [(8, 8, (4, 2))] * 3,
    "sd3": [(8, 8 + 333, (4, 2)), (8, 8, (4, 2))] + [(8, 8 + 333, (4, 2))] * 2,  # the second attention is of images
    "flux": [(8, 8 + 32, (4, 2))] * 4,
}
TREES = list(CALLS)


class Recorder(AttentionCore):
    """Plain attention that notes its calls."""

    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int] | None) -> Tensor:
        self.calls.append((q.shape[-2], k.shape[-2], size))
        return F.scaled_dot_product_attention(q, k, v)


def cores(found: DiffusersNetwork) -> list[str]:
    return [name for name, module in found.named_modules() if isinstance(module, AttentionCore)]


def denoiser(tiny: Tiny, name: str) -> Preconditioned:
    found = network(tiny, name)
    return Preconditioned(found, sigma_data=1.0)


def predict(found: Any, given: Tensor | None) -> Tensor:
    x = torch.randn(3, *found.data_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return found(x, torch.tensor(2.0), given)


@pytest.mark.parametrize("name", CALLS)
def test_cores_receive_the_tokens_of_the_image_and_their_grid(tiny_pipeline: Tiny, name: str) -> None:
    theirs = model(tiny_pipeline, name)
    names = list(theirs.state_dict())
    found = network(tiny_pipeline, name, data_shape=(3 if name in ("if", "ddpm") else 4, 8, 4))
    plain, calls = evaluate(found, condition(found)), list[Any]()
    assert set(found.model.state_dict()) <= {*names, *(f"embedder.{n.split('emb.', 1)[-1]}" for n in names)}
    tree = rebuild_with(found, [(core, lambda _: Recorder(calls)) for core in cores(found)])
    assert torch.allclose(evaluate(tree, condition(found)), plain, atol=1e-5)
    assert calls == CALLS[name]
    assert torch.equal(evaluate(found, condition(found)), plain) and len(calls) == len(CALLS[name])


@pytest.mark.parametrize("name", CALLS)
def test_a_perturbed_tree_leaves_its_model_alone_and_is_copied_with_it(tiny_pipeline: Tiny, name: str) -> None:
    one = denoiser(tiny_pipeline, name)
    assert isinstance(one.network, DiffusersNetwork)
    given = condition(one.network)
    plain, perturbed = predict(one, given), predict(Perturbed([IdentityAttention()], positive=one), given)
    assert not torch.allclose(plain, perturbed, atol=1e-3)
    other = copy.deepcopy(one)
    assert isinstance(other.network, DiffusersNetwork) and other.network.grid is not one.network.grid
    other.network.grid.sides = None
    assert torch.equal(predict(Perturbed([IdentityAttention()], positive=other), given), perturbed)
    assert torch.equal(predict(one, given), plain) and torch.equal(predict(other, given), plain)


def test_models_in_two_networks_keep_one_grid(tiny_pipeline: Tiny) -> None:
    first = network(tiny_pipeline, "sd")
    second = DiffusersNetwork.of(first.model, empty_length=77)
    assert first.grid is second.grid
    assert torch.equal(evaluate(first, condition(first)), evaluate(second, condition(first)))


def test_the_library_reads_the_signature_of_its_own_processor(tiny_pipeline: Tiny) -> None:
    attention = network(tiny_pipeline, "sd").model.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")
    assert "temb" in inspect.signature(attention.processor.__call__).parameters
    assert not hasattr(attention.get_submodule("core"), "weight")


def test_cross_attention_has_no_core(tiny_pipeline: Tiny) -> None:
    one = denoiser(tiny_pipeline, "sd")
    cross = "model.mid_block.attentions.0.transformer_blocks.0.attn2"
    with pytest.raises(ValueError, match=f"IdentityAttention replaces attention cores; {cross} is not one, those of"):
        Perturbed([IdentityAttention(layers=[cross])], positive=one).layers()


def test_processors_that_are_exchanged_later_are_refused(tiny_pipeline: Tiny) -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    one = denoiser(tiny_pipeline, "sd")
    found: Any = one.network
    given = condition(found)
    perturbed = Perturbed([IdentityAttention()], positive=one)
    expected = predict(perturbed, given)
    found.model.set_attn_processor(AttnProcessor2_0())
    with pytest.raises(ValueError, match="transformer_blocks.0.attn1 got another processor, AttnProcessor2_0, which"):
        perturbed.layers()
    found.set_model(found.model)
    assert torch.equal(predict(perturbed, given), expected)


def test_attention_that_cannot_be_perturbed_is_refused(tiny_pipeline: Tiny) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    one = denoiser(tiny_pipeline, "sd")
    given = condition(one.network)
    attention: Any = one.network.get_submodule("model.mid_block.attentions.0.transformer_blocks.0.attn1")
    perturbed = Perturbed([IdentityAttention()], positive=one)

    attention.processor.processor = AttnProcessor()
    with pytest.raises(ValueError, match="AttnProcessor calls scaled_dot_product_attention 0 times, so that its"):
        predict(perturbed, given)

    class Masked:
        def __call__(self, attn: Any, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
            q = x.unflatten(-1, (2, -1)).transpose(1, 2)
            return F.scaled_dot_product_attention(q, q, q, attn_mask=torch.ones(q.shape[-2], q.shape[-2]).bool())

    attention.processor.processor = Masked()
    with pytest.raises(ValueError, match="Masked masks its self-attention, which a perturbation of attention would"):
        predict(perturbed, given)

"""Sizes that networks are conditioned on: of each image, or following the shape of x."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.conditioning import drop_condition
from lightning_guide.pretrained import DiffusersNetwork, TextEncoders
from lightning_guide.pretrained.diffusers_family import add_sizes
from tests.tiny_pipelines import refill

diffusers = pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
Tiny = Callable[[str], Path]
IDS = [[40, 20, 2, 0, 20, 12], [512, 384, 0, 7, 16, 16]]


@pytest.fixture(scope="module")
def tokens(tiny_pipeline: Tiny) -> Tensor:
    return TextEncoders(tiny_pipeline("sdxl")).encode(["a dog", "two cats"])


def network(tiny: Tiny, **options: Any) -> DiffusersNetwork:
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(tiny("sdxl"), local_files_only=True)
    return DiffusersNetwork.of(pipe.unet, empty_length=78, **options).eval()


def output(network: DiffusersNetwork, condition: Tensor, shape: tuple[int, int] = (8, 8)) -> Tensor:
    x = torch.randn(len(condition), 4, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network(x, torch.full((len(x),), 7.0), network.embed(condition, len(x)))


def test_sizes_of_each_image_reach_the_network(tiny_pipeline: Tiny, tokens: Tensor) -> None:
    """As the library's own network with these time_ids."""
    net = network(tiny_pipeline)
    condition = torch.stack([add_sizes(each, torch.tensor(ids)) for each, ids in zip(tokens, IDS, strict=True)])
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    added = {"text_embeds": tokens[:, 0, :16], "time_ids": torch.tensor(IDS).float()}
    with torch.no_grad():
        expected = net.model(x, 7.0, encoder_hidden_states=tokens[:, 1:], added_cond_kwargs=added).sample
    torch.testing.assert_close(output(net, condition), expected, rtol=1e-4, atol=1e-5)
    assert (output(net, tokens) - expected).abs().max() > 1e-3
    assert torch.equal(condition[:, 1:], tokens[:, 1:]) and not torch.equal(condition, tokens)
    mixed = torch.stack([condition[0], tokens[1]])
    torch.testing.assert_close(output(net, mixed), torch.stack([expected[0], output(net, tokens)[1]]))
    dropped = drop_condition(condition, torch.tensor([True, False]))  # with the sizes of x
    torch.testing.assert_close(output(net, dropped)[0], output(net, net.empty.expand(2, -1, -1))[0])


def test_without_sizes_they_follow_x(tiny_pipeline: Tiny, tokens: Tensor) -> None:
    net = network(tiny_pipeline)
    ids = torch.tensor([64, 96, 0, 0, 64, 96])
    given = torch.stack([add_sizes(each, ids) for each in tokens])
    torch.testing.assert_close(output(net, tokens, (8, 12)), output(net, given, (8, 12)))
    constant = network(tiny_pipeline, constants={"time_ids": [16, 24, 0, 0, 16, 24]})
    assert (output(constant, tokens, (8, 12)) - output(net, tokens, (8, 12))).abs().max() > 1e-3
    torch.testing.assert_close(output(constant, given, (8, 12)), output(net, given, (8, 12)))


class Noise(nn.Module):
    """A perturbation of all tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + 1


def test_perturbed_tokens_leave_sizes_alone(tiny_pipeline: Tiny, tokens: Tensor) -> None:
    net = network(tiny_pipeline)
    net.tokens = Noise()
    condition = add_sizes(tokens[0], torch.tensor(IDS[0]))[None]
    assert net.embed(condition, 1)[0, 0, -6:].tolist() == IDS[0]
    assert not net.embed(tokens, 2)[:, 0, -6:].any() and bool((net.embed(tokens, 2)[:, 0, :-6] != 0).all())


def test_pixart_reads_the_shape_of_x() -> None:
    config = {
        "sample_size": 128, "num_attention_heads": 2, "attention_head_dim": 6, "cross_attention_dim": 12,
        "num_layers": 2, "caption_channels": 8, "out_channels": 8, "use_additional_conditions": True,
    }  # fmt: skip
    model = refill(diffusers.PixArtTransformer2DModel(**config))
    shapes, tokens = [(8, 12), (12, 8)], torch.randn(1, 3, 8)
    for height, width in shapes:
        constants = {"resolution": (8.0 * height, 8.0 * width), "aspect_ratio": (height / width,)}
        other = {"resolution": (64.0, 64.0), "aspect_ratio": (1.0,)}
        nets = [DiffusersNetwork.of(model, empty_length=3, constants=each) for each in ({}, constants, other)]
        found, expected, wrong = (output(net, tokens, (height, width)) for net in nets)
        assert torch.equal(found, expected) and (found - wrong).abs().max() > 1e-3

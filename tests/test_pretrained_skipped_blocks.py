"""Skipped blocks of transformers of diffusers: as in a network without them, in all architectures and by default."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.guidance.negatives import SkipBlocks, SkipLayerGuidance, StochasticSelfGuidance, StochasticSkip
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersNetwork
from tests.test_guidance_nag import predict, published
from tests.test_pretrained_diffusers_network import condition
from tests.tiny_pipelines import refill

diffusers = pytest.importorskip("diffusers", reason="needs the extra `pretrained`")

Tiny = Callable[[str], Path]
BLOCKS = [
    ("pixart", "transformer_blocks", [0, 2]),
    ("sd3", "transformer_blocks", [1]),
    ("flux", "transformer_blocks", [0]),
    ("flux", "single_transformer_blocks", [0]),
]


def without(model: Preconditioned, blocks: str, numbers: Sequence[int]) -> Preconditioned:
    """A copy of the model whose list of blocks lacks some."""
    left = copy.deepcopy(model)
    found: Any = left.network.model
    kept = [block for i, block in enumerate(getattr(found, blocks)) if i not in numbers]
    setattr(found, blocks, nn.ModuleList(kept))
    return left


@pytest.mark.parametrize(("name", "blocks", "numbers"), BLOCKS)
def test_skipped_blocks_are_left_out(tiny_pipeline: Tiny, name: str, blocks: str, numbers: list[int]) -> None:
    model, given, x = published(tiny_pipeline, name)
    layers = [f"model.{blocks}.{i}" for i in numbers]
    plain, expected = predict(model, x, given), predict(without(model, blocks, numbers), x, given)
    found = predict(Perturbed([SkipBlocks(layers=layers)], positive=model), x, given)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-3)
    every = Perturbed([StochasticSkip(1.0, layers=layers, protected=["model.norm_out"])], positive=model)
    torch.testing.assert_close(predict(every, x, given), expected, rtol=1e-4, atol=1e-4)


def large() -> tuple[Preconditioned, Tensor, Tensor]:
    """24 narrow blocks of Stable Diffusion 3.5 medium: the first 13 have a second attention, of the image alone."""
    torch.manual_seed(0)
    model = diffusers.SD3Transformer2DModel(
        num_layers=24,
        num_attention_heads=1,
        attention_head_dim=8,
        caption_projection_dim=8,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        in_channels=4,
        out_channels=4,
        sample_size=8,
        pos_embed_max_size=8,
        dual_attention_layers=tuple(range(13)),
        qk_norm="rms_norm",
    )
    network = DiffusersNetwork.of(refill(model), empty_length=6)
    given = condition(network, 2)
    assert given is not None
    return Preconditioned(network, sigma_data=1.0), given, torch.randn(2, 4, 8, 8)


def test_default_layers_are_those_published_for_stable_diffusion_3_5_medium() -> None:
    model, given, x = large()
    expected = [f"model.transformer_blocks.{i}" for i in (7, 8, 9)]
    assert SkipBlocks().chosen(model.network) == expected
    skipped = without(model, "transformer_blocks", (7, 8, 9))
    plain, left = predict(model, x, given), predict(skipped, x, given)
    found = predict(SkipLayerGuidance(3.8, positive=model), x, given)
    scale = float(found.abs().max())
    torch.testing.assert_close(found / scale, (left + 3.8 * (plain - left)) / scale, rtol=0, atol=1e-4)
    # all blocks but the first, which is protected, and the last, which returns no texts
    names = StochasticSelfGuidance(positive=model).negatives[0].layers()[0][1]  # type: ignore[operator]
    assert names == [f"model.transformer_blocks.{i}" for i in range(1, 23)]

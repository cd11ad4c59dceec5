"""Patch classifier: inputs, refusals, training through its module, recipe."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_guide.networks.classifiers import PatchClassifier
from lightning_guide.utils.recipe import build

SMALL = {"num_classes": 3, "channels": 16, "depth": 2, "heads": 2}


def test_logits_depend_on_every_pixel_of_the_sample_only() -> None:
    network = PatchClassifier([2, 4, 6], **SMALL).eval()
    x = torch.randn(3, 2, 4, 6, requires_grad=True)
    logits = network(x)
    assert logits.shape == (3, 3)
    (g,) = torch.autograd.grad(logits[1].square().sum(), x)
    assert (g[1] != 0).all() and (g[[0, 2]] == 0).all()
    torch.testing.assert_close(network(x[1:2]), logits[1:2])


def test_logits_depend_on_patch_positions() -> None:
    network = PatchClassifier([1, 4, 4], **SMALL).eval()
    x = torch.randn(2, 1, 4, 4)
    moved = x.roll(2, 3)  # the same patches at other positions
    assert (network(moved) - network(x)).abs().max() > 1e-4
    with torch.no_grad():
        network.positions.zero_()
    torch.testing.assert_close(network(moved), network(x))


def test_training_learns_which_half_is_bright() -> None:
    network = PatchClassifier([1, 4, 4], num_classes=2, channels=16, depth=1, heads=2, dropout=0.0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    labels = torch.arange(64) % 2
    for _ in range(60):
        x = torch.randn(64, 1, 4, 4)
        x[:, :, :, :2] += (2 * labels - 1)[:, None, None, None]
        x[:, :, :, 2:] -= (2 * labels - 1)[:, None, None, None]  # the sum carries no information
        loss = F.cross_entropy(network(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_recipe_round_trip() -> None:
    network = PatchClassifier([1, 4, 4], **SMALL).eval()
    again = build(network.recipe).eval()
    again.load_state_dict(network.state_dict())
    x = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(again(x), network(x))


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="sides in multiples of 3"):
        PatchClassifier([1, 4, 4], num_classes=3, patch_size=3)
    with pytest.raises(ValueError, match="16 channels must be a multiple of 3 heads"):
        PatchClassifier([1, 4, 4], num_classes=3, channels=16, heads=3)
    with pytest.raises(ValueError, match=r"shape \(1, 2, 2\); this classifier expects \(1, 4, 4\)"):
        PatchClassifier([1, 4, 4], **SMALL)(torch.zeros(1, 1, 2, 2))

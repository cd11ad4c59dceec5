"""Token perturbation guidance: shuffled before the block, not undone, one order for the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.negatives.tpg import ShuffledTokens, TokenPerturbationGuidance
from lightning_guide.guidance.perturbation import Perturbed
from tests.small_networks import LABELS, NETWORKS, SIGMA, noisy_images, trajectory, transformer, unet


class InOrder(ShuffledTokens):
    """The identity permutation."""

    def order(self, count: int, trajectory: Trajectory) -> Tensor:
        return torch.arange(count)


class Twice(nn.Module):
    """A block that treats every token alike."""

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        return 2 * x


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(noisy_images(), SIGMA, LABELS)


@pytest.mark.parametrize("layers", [None, ["*block*.1", "decoder.*"], ["blocks.*"]], ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_identity_permutation_is_the_model(kind: str, layers: list[str] | None) -> None:
    model = NETWORKS[kind]()
    names = {"unet": ["decoder.*"], "transformer": ["blocks.*"]}[kind] if layers else None
    in_order = run(Perturbed([InOrder(layers=names)], positive=model))
    torch.testing.assert_close(in_order, run(model), rtol=0, atol=1e-5)  # the memory layout may differ
    assert not torch.allclose(run(Perturbed([ShuffledTokens(layers=names)], positive=model)), run(model))


def test_one_position_cannot_be_shuffled() -> None:
    model = unet(data_shape=(1, 4, 4), channel_mult=[1, 2, 2], attention_resolutions=[])  # 1x1 at the bottom
    x = torch.randn(3, 1, 4, 4)
    with torch.no_grad():
        assert torch.equal(Perturbed([ShuffledTokens()], positive=model)(x, SIGMA, LABELS), model(x, SIGMA, LABELS))


@pytest.mark.parametrize("shape", [(3, 12, 5), (3, 5, 3, 4)], ids=["tokens", "positions"])
def test_all_samples_get_the_same_order_and_each_call_another(shape: tuple[int, ...]) -> None:
    x = torch.randn(1, *shape[1:]).expand(shape)
    module = ShuffledTokens().replace(Twice(), trajectory())
    expected = torch.Generator()
    expected.set_state(trajectory().seeds.shared("token order").get_state())
    results = []
    for _ in range(2):
        y = module(x, torch.zeros(3), None)
        order = torch.randperm(12, generator=expected)
        tokens, shuffled = (each if each.ndim == 3 else each.flatten(2).mT for each in (x, y))
        assert torch.equal(shuffled, 2 * tokens[:, order])  # not put back into order after the block
        results.append(y)
    assert not torch.equal(*results)


def test_later_blocks_receive_the_shuffled_tokens() -> None:
    """Not undone: shuffling before the first block is shuffling the input, positions and all, of every block."""
    model = transformer()
    network = Perturbed([ShuffledTokens(layers=["blocks.0"])], positive=model).network(trajectory()).network
    tokens, e = torch.randn(2, 16, 16), torch.randn(2, 16)
    order = torch.randperm(16, generator=trajectory().seeds.shared("token order"))
    x, y = tokens, tokens[:, order]
    with torch.no_grad():
        for shuffling, block in zip(network.blocks, model.network.blocks, strict=True):  # type: ignore[arg-type]
            x, y = shuffling(x, e, (4, 4)), block(y, e, (4, 4))
    assert torch.equal(x, y)


def test_other_shapes_are_refused() -> None:
    module = ShuffledTokens().replace(Twice(), trajectory())
    with pytest.raises(ValueError, match=r"TPG shuffles tokens .* this block receives x of shape \(3, 7\)"):
        module(torch.zeros(3, 7))


def test_the_preset_names_its_layers() -> None:
    model = transformer()
    default, named = (TokenPerturbationGuidance(2.0, layers=layers, positive=model) for layers in (None, ["blocks.2"]))
    assert torch.equal(run(default), run(named))

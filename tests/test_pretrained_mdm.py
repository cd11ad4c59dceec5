"""Checkpoints of MDM against torch's own transformer encoder with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import Pretrained, load, mdm
from lightning_guide.pretrained.published import assign_weights, rename
from lightning_guide.utils.recipe import build
from tests.direct_mdm import direct_mdm, mdm_weights

generator = torch.Generator().manual_seed(1)
X, TEXT = torch.randn(3, 263, 20, generator=generator), torch.randn(3, 1, 16, generator=generator)
SIGMA = torch.tensor([0.05, 0.8, 20.0])
OPTIONS: dict[str, Any] = {"constants": {"heads": 2}, "data_shape": [263, 20]}


def evaluate(denoiser: Denoiser, condition: Tensor | None) -> Tensor:
    with torch.no_grad():
        return denoiser.eval()(X, SIGMA, condition)


@pytest.mark.parametrize("texts", [16, None])
def test_forward(tmp_path: Path, texts: int | None) -> None:
    """D = F(x / sqrt(1 + sigma^2), t(sigma)), rows without a text as those of zeros."""
    weights, condition = mdm_weights(texts=texts), None
    torch.save(weights, tmp_path / "a.pt")
    denoiser = Pretrained(f"mdm:{tmp_path}/a.pt", **OPTIONS)
    assert (denoiser.data_shape, denoiser.token_channels, denoiser.sigma_data) == ((263, 20), texts or 0, 1.0)
    assert isinstance(denoiser, Preconditioned) and denoiser.network.null_condition == bool(texts)
    if texts:
        condition = TEXT * torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    t = denoiser.preconditioning.coefficients(SIGMA.double()).noise
    scaled = X * (1 + SIGMA**2).rsqrt()[:, None, None]
    expected = direct_mdm(weights, scaled, t, None if condition is None else condition[:, 0])
    difference = evaluate(denoiser, condition) - expected
    assert float(difference.abs().max() / expected.abs().max()) < 1e-5
    other = build(denoiser.recipe)
    other.load_state_dict(denoiser.state_dict())
    assert torch.equal(evaluate(other, condition), evaluate(denoiser, condition))


def test_length_and_number_of_timesteps(tmp_path: Path) -> None:
    torch.save({"model": mdm_weights()}, tmp_path / "a.pt")
    denoiser = load(f"mdm:{tmp_path}/a.pt", constants={"heads": 2, "timesteps": 50}, dtype="bfloat16")
    assert denoiser.data_shape == (263, 196)
    assert isinstance(denoiser, Preconditioned) and denoiser.preconditioning.schedule.num_timesteps == 50
    assert evaluate(denoiser, TEXT).dtype == torch.float32  # 20 frames
    exact = load(f"mdm:{tmp_path}/a.pt", constants={"heads": 2, "timesteps": 50})
    torch.testing.assert_close(evaluate(denoiser, TEXT), evaluate(exact, TEXT), atol=0.05, rtol=0.05)


def test_every_weight_of_the_published_size() -> None:
    with torch.device("meta"):
        weights = {k: v for k, v in mdm_weights(512, 8, heads=4, hidden=1024, texts=512).items() if ".pe" not in k}
        network = mdm.MDM()
    assert mdm._settings(weights, "a.pt") == {
        "features": 263,
        "channels": 512,
        "depth": 8,
        "hidden": 1024,
        "token_channels": 512,
    }
    assign_weights(network, rename(weights, mdm._RULES, file="a.pt", kind="MDM"), file="a.pt")
    assert sum(weight.numel() for weight in network.parameters()) == 17_880_327


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"input_process.poseEmbedding.weight": None}, "poseEmbedding.weight is missing; expected a checkpoint of MDM"),
        (
            {"seqTransEncoder.layers.0.linear1.weight": None},
            "layers.0.linear1.weight is missing; expected",
        ),
        (
            {"embed_action.weight": torch.ones(8)},
            "it has a tensor embed_action.weight, which MDM's",
        ),
        ({"seqTransEncoder.layers.1.norm2.bias": None}, r"blocks.1.norm2.bias is missing; expected \(16,\)"),
        ({"output_process.poseFinal.bias": torch.ones(9)}, r"output.bias is \(9,\); expected \(263,\)"),
        ({"embed_text.bias": None}, r"embedding_text.bias is missing; expected \(16,\)"),
        ({"sequence_pos_encoder.pe": torch.zeros(9, 1, 16)}, "pos_encoder.pe are not the sines and cosines of 9"),
        ({"epoch": 7}, "a.pt holds epoch; expected the tensors of a network by name"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    weights = {name: each for name, each in (mdm_weights() | changes).items() if each is not None}
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=sentence):
        Pretrained(f"mdm:{tmp_path}/a.pt", **OPTIONS)


def test_options_are_checked(tmp_path: Path) -> None:
    torch.save(mdm_weights(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"data_shape is \(3, 8, 8\); expected \(263, frames\)"):
        Pretrained(f"mdm:{tmp_path}/a.pt", data_shape=[3, 8, 8])
    with pytest.raises(ValueError, match="there is no constant depth; expected some of heads, timesteps"):
        Pretrained(f"mdm:{tmp_path}/a.pt", constants={"depth": 3})
    with pytest.raises(ValueError, match="16 channels must be a multiple of 3 heads"):
        Pretrained(f"mdm:{tmp_path}/a.pt", constants={"heads": 3})
    with pytest.raises(ValueError, match="has the option lora, which models of the kind mdm do not have"):
        Pretrained(f"mdm:{tmp_path}/a.pt", lora="b.safetensors")

"""Checkpoints of DiT and SiT as they are published, against a forward pass from the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from lightning_guide.commands.import_model import import_model
from lightning_guide.denoiser import Denoiser
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import Pretrained, dit
from lightning_guide.pretrained.published import assign_weights, rename, without_weights
from lightning_guide.utils.recipe import build
from tests.direct_dit import direct_dit, dit_weights

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")

X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
SIGMA = torch.tensor([0.05, 0.8, 20.0])


def evaluate(denoiser: Denoiser, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return denoiser(X, SIGMA, labels)


@pytest.mark.parametrize("wrapped", [False, True])
def test_dit(tmp_path: Path, wrapped: bool) -> None:
    weights = dit_weights()
    torch.save({"ema": weights, "model": {}, "opt": {"step": 3}} if wrapped else weights, tmp_path / "a.pt")
    denoiser = Pretrained(f"dit:{tmp_path}/a.pt", constants={"heads": 2})
    assert (denoiser.data_shape, denoiser.num_classes, denoiser.sigma_data) == ((4, 8, 8), 10, 1.0)
    assert isinstance(denoiser, Preconditioned)
    c_in = (1 + SIGMA**2).rsqrt()[:, None, None, None]
    t = denoiser.preconditioning.coefficients(SIGMA).noise
    expected = (
        X - SIGMA[:, None, None, None] * direct_dit(weights, c_in * X, t, torch.tensor([3, 10, 0]), heads=2)[:, :4]
    )
    difference = evaluate(denoiser, torch.tensor([3, -1, 0])) - expected
    assert float(difference.abs().max() / expected.abs().max()) < 3e-5  # times are float32
    other = build(denoiser.recipe)
    other.load_state_dict(denoiser.state_dict())
    assert torch.equal(evaluate(other.eval(), torch.tensor([3, -1, 0])), evaluate(denoiser, torch.tensor([3, -1, 0])))


def test_sit(tmp_path: Path) -> None:
    """F = x_0 - n at the time 1 / (1 + sigma), 1 at the data."""
    weights = dit_weights(out=4)
    torch.save(weights, tmp_path / "a.pt")
    denoiser = Pretrained(f"sit:{tmp_path}/a.pt", constants={"heads": 2})
    t, sigma = 1 / (1 + SIGMA), SIGMA[:, None, None, None]
    F = direct_dit(weights, X / (1 + sigma), t, torch.tensor([3, 10, 0]), heads=2)
    expected = (X + sigma * F) / (1 + sigma)
    torch.testing.assert_close(evaluate(denoiser, torch.tensor([3, -1, 0])).double(), expected, rtol=1e-5, atol=1e-5)


def test_every_weight_of_the_published_size(tmp_path: Path) -> None:
    """675,129,632 weights with 256 positions of 1152 channels."""
    with torch.device("meta"):
        weights = dit_weights(1152, 28, side=16, classes=1000)
    assert sum(weight.numel() for weight in weights.values()) == 675_129_632
    with without_weights():
        network = dit.DiffusersNetwork(
            "DiTTransformer2DModel", dit._config(weights, weights.pop("pos_embed"), "a.pt", None)
        )
    assign_weights(network.model, rename(weights, dit._RULES, file="a.pt", kind="a DiT"), file="a.pt")
    assert sum(weight.numel() for weight in network.parameters()) == 674_834_720
    assert network.model.config["attention_head_dim"] == 72


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pos_embed": None}, "a.pt: pos_embed is missing; expected a checkpoint of DiT or SiT"),
        ({"blocks.1.attn.q_norm.weight": torch.ones(8)}, "it has a tensor blocks.1.attn.q_norm.weight, which a DiT"),
        (
            {"blocks.1.mlp.fc1.weight": None},
            r"transformer_blocks.1.ff.net.0.proj.weight is missing; expected \(64, 16\)",
        ),
        ({"blocks.0.attn.proj.bias": torch.ones(9)}, r"attn1.to_out.0.bias is \(9,\); expected \(16,\)"),
        ({"blocks.0.attn.qkv.bias": torch.ones(7)}, r"blocks.0.attn.qkv.bias has the shape \(7,\)"),
        ({"pos_embed": torch.zeros(1, 16, 16)}, "pos_embed are not the sines and cosines of a 8-pixel grid"),
        ({"epoch": 7}, "a.pt holds epoch; expected the tensors of a network by name"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    weights = {name: each for name, each in (dit_weights() | changes).items() if each is not None}
    torch.save(weights, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=sentence):
        Pretrained(f"dit:{tmp_path}/a.pt", constants={"heads": 2})


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file .*b.pt; expected a checkpoint"):
        Pretrained(f"dit:{tmp_path}/b.pt")
    with pytest.raises(ValueError, match="a.pt: there is no constant depth; expected some of heads"):
        torch.save(dit_weights(), tmp_path / "a.pt")
        Pretrained(f"dit:{tmp_path}/a.pt", constants={"depth": 3})
    torch.save({"a": Path("x")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt cannot be read .*; expected a checkpoint of tensors"):
        Pretrained(f"dit:{tmp_path}/a.pt")


def test_an_import_decodes_latents(tmp_path: Path) -> None:
    torch.save(dit_weights(), tmp_path / "a.pt")
    import_model("dit", str(tmp_path / "a.pt"), str(tmp_path / "run"))
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    assert data["std"] == pytest.approx([2.74499] * 4, abs=1e-5) and data["vae"]["init_args"]["lowest"] == -1
    assert list(model["evaluations"]) == ["unguided", "cfg"]
    assert model["prediction"]["sampler"] == {"class_path": "DPMSolver2M", "init_args": {"grid": 50}}

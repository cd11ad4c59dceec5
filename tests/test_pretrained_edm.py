"""Snapshots of EDM (2022): read without running them, and the same denoiser afterwards."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import lightning_guide as lg
from lightning_guide.cli import main
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained.edm import ContinuousVP
from tests.direct_edm import ddpmpp_weights, direct_ddpmpp
from tests.persistent_pickles import Written, published_modules, tree

X = 2 * torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SIGMA = torch.tensor([0.05, 0.8, 20.0])


def write(path: Path, weights: dict[str, Tensor], class_name: str = "EDMPrecond", **state: Any) -> Path:
    """The file, as published: float32, buffers of the resampling filters, numbers of numpy."""
    tensors = {f"model.{name}": nn.Parameter(tensor, requires_grad=False) for name, tensor in weights.items()}
    tensors |= {"model.enc.4x4_down.conv0.resample_filter": torch.full((1, 1, 2, 2), 0.25)}  # type: ignore[dict-item]
    with published_modules():
        ema = tree(dict(tensors), containers=("model.enc.", "model.dec."))
        ema.class_name = class_name
        ema.attributes |= {"sigma_data": np.float64(0.5), "sigma_min": np.float32(0)} | state
        encoder = Written("ImageEncoder")
        path.write_bytes(pickle.dumps({"ema": ema, "augment_pipe": None, "loss_fn": None, "encoder": encoder}))
    return path


@pytest.mark.parametrize("classes", [0, 4])
def test_edm(tmp_path: Path, classes: int) -> None:
    weights = ddpmpp_weights(classes)
    denoiser = lg.load(f"edm:{write(tmp_path / 'a.pkl', weights)}")
    assert isinstance(denoiser, Preconditioned)
    assert (denoiser.data_shape, denoiser.num_classes, denoiser.sigma_data) == ((3, 8, 8), classes, 0.5)
    labels, one_hot = (torch.tensor([3, -1, 0]), torch.zeros(3, 4)) if classes else (None, None)
    if one_hot is not None:
        one_hot[0, 3] = one_hot[2, 0] = 1
    vector, s = torch.randn(3, 9, generator=torch.Generator().manual_seed(2)), SIGMA.reshape(3, 1, 1, 1)
    for each in (None, vector):
        F = direct_ddpmpp(weights, X / (s**2 + 0.25).sqrt(), SIGMA.log() / 4, one_hot, each)
        expected = X * 0.25 / (s**2 + 0.25) + F * 0.5 * s / (s**2 + 0.25).sqrt()
        found = denoiser(X, SIGMA, labels, augmentation=each)
        assert float((found - expected).abs().max() / expected.abs().max()) < 3e-6
        assert float((F * 0.5 * s).abs().max()) > 1


def test_continuous_vp(tmp_path: Path) -> None:
    """Table 1 of the paper; the highest level is that of t = 1."""
    weights = ddpmpp_weights(0)
    path = write(tmp_path / "a.pkl", weights, "VPPrecond", beta_d=np.float64(19.9), beta_min=0.1)
    denoiser = lg.load(f"edm:{path}")
    assert isinstance(denoiser, Preconditioned) and isinstance(denoiser.preconditioning, ContinuousVP)
    t = torch.tensor([0.001, 0.3, 1.0], dtype=torch.float64)
    sigma = (19.9 / 2 * t**2 + 0.1 * t).expm1().sqrt()
    assert denoiser.preconditioning.coefficients(sigma).noise.tolist() == pytest.approx((999 * t).tolist())
    assert denoiser.sigma_max == pytest.approx(float(sigma[2])) == pytest.approx(152.2, abs=0.1)
    s = sigma.reshape(3, 1, 1, 1)
    expected = X - s * direct_ddpmpp(weights, X / (s**2 + 1).sqrt(), 999 * t, None)
    found = denoiser(X.double(), sigma)
    assert float((found - expected).abs().max() / expected.abs().max()) < 3e-5


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({"map_noise.freqs": torch.ones(4)}, {}, "a.pkl holds an NCSN.. network; supported: DDPM"),
        ({"enc.4x4_aux_residual.weight": torch.ones(4)}, {}, "a.pkl holds an NCSN.. network"),
        ({"dec.8x8_aux_norm.weight": None, "dec.8x8_aux_norm.bias": None}, {}, "EDM's ADM is not supported"),
        ({"dec.8x8_block1.conv1.bias": None}, {}, r"decoder.8x8_block1.residual_out.bias is missing; expected \(8,\)"),
        ({"dec.4x4_in0.norm3.bias": torch.ones(8)}, {}, "it has a tensor dec.4x4_in0.norm3.bias, which a DDPM"),
        ({"dec.4x4_in0.qkv.bias": torch.ones(47)}, {}, "dec.4x4_in0.qkv.bias has the shape .47,."),
        ({}, {"class_name": "VEPrecond"}, "holds a VEPrecond; supported: EDMPrecond, VPPrecond"),
        ({}, {"sigma_data": "a"}, "a.pkl: sigma_data is 'a'; expected a positive number"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    weights = {name: each for name, each in (ddpmpp_weights() | changes).items() if each is not None}
    with pytest.raises(ValueError, match=sentence):
        lg.load(f"edm:{write(tmp_path / 'a.pkl', weights, **options)}")


def test_files_that_are_no_snapshots(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing.pkl does not exist; expected a published snapshot"):
        lg.load(f"edm:{tmp_path}/missing.pkl")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": print}))
    with pytest.raises(ValueError, match="a.pkl cannot be read as an EDM snapshot: it asks for builtins.print"):
        lg.load(f"edm:{tmp_path}/a.pkl")


@pytest.mark.filterwarnings("ignore:Total length of")  # NoData
def test_an_import_samples_at_once(tmp_path: Path) -> None:
    weights = {name: each * (0.01 if "aux_conv" in name else 1) for name, each in ddpmpp_weights().items()}
    path, run = write(tmp_path / "a.pkl", weights), tmp_path / "run"
    main(["import", "edm", str(path), str(run), "--num_steps", "8"])
    config = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    assert list(config["evaluations"]) == ["unguided"]  # labels, but no null class
    words = ["--trainer.accelerator", "cpu", "--model.init_args.prediction.num_samples", "2"]
    main(["predict", "-c", str(run / "config.yaml"), *words])
    assert config["prediction"]["sampler"] == {"class_path": "Heun", "init_args": {"grid": 8}}

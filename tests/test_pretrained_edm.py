"""Snapshots of EDM (2022): read without running them, and the same denoiser afterwards."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import lightning_guide as lg
from lightning_guide.cli import main
from lightning_guide.networks import DDPMpp, NCSNpp
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import ADMWithoutLabels
from lightning_guide.pretrained.edm import ContinuousVE, ContinuousVP
from lightning_guide.pretrained.edm_adm import read_edm_adm
from lightning_guide.utils.recipe import build
from tests.direct_edm import ddpmpp_weights, direct_ddpmpp
from tests.direct_edm_adm import adm_weights, direct_adm
from tests.persistent_pickles import Written, published_modules, tree

X = 2 * torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SIGMA = torch.tensor([0.05, 0.8, 20.0])


def write(path: Path, weights: dict[str, Tensor], class_name: str = "EDMPrecond", **state: Any) -> Path:
    """The file, as published: float32, buffers of the resampling filters, numbers of numpy."""
    tensors: dict[str, Tensor] = {}
    bilinear = any("residual" in name or "from_image" in name for name in weights)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0] if bilinear else [1.0, 1.0])
    for name, tensor in weights.items():
        buffer = name.endswith(("freqs", "filter"))
        tensors[f"model.{name}"] = tensor if buffer else nn.Parameter(tensor, requires_grad=False)
        if re.search(r"(down.conv0|down.skip|up.conv0|up.skip|residual|from_image)\.weight", name):
            filters = taps.outer(taps)[None, None] / taps.sum() ** 2
            tensors.setdefault(f"model.{name.replace('weight', 'resample_filter')}", filters)
    with published_modules():
        ema = tree(tensors, containers=("model.enc.", "model.dec."))
        ema.class_name = class_name
        ema.attributes |= {"sigma_data": np.float64(0.5), "sigma_min": np.float32(0)} | state
        encoder = Written("ImageEncoder")
        path.write_bytes(pickle.dumps({"ema": ema, "augment_pipe": None, "loss_fn": None, "encoder": encoder}))
    return path


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layers beside the blocks under other names, by which nothing is found."""
    layers = {"aux_residual": "from_image", "dec.8x8_aux_norm": "out_norm", "dec.8x8_aux_conv": "dec.last"}
    for old, new in layers.items():
        weights = {name.replace(old, new): each for name, each in weights.items()}
    return weights


def one_hot(labels: Tensor) -> Tensor:
    """Rows of 4 numbers, zeros for -1."""
    return (labels[:, None] == torch.arange(4)).double()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def edm(x: Tensor, F: Tensor) -> Tensor:
    """D of the output F at the levels SIGMA, sigma_data 0.5."""
    s = SIGMA.double().reshape(3, 1, 1, 1)
    return x * 0.25 / (s**2 + 0.25) + F * 0.5 * s / (s**2 + 0.25).sqrt()


SCALED = X / (SIGMA.reshape(3, 1, 1, 1) ** 2 + 0.25).sqrt()
LABELS = torch.tensor([3, -1, 0])


@pytest.mark.parametrize("classes", [0, 4])
@pytest.mark.parametrize("kind", [DDPMpp, NCSNpp])
def test_edm(tmp_path: Path, kind: type[DDPMpp], classes: int) -> None:
    channels = (8, 16, 16) if kind is NCSNpp else (8, 16)  # two levels with residuals of the image
    weights = ddpmpp_weights(classes, channels=channels, fourier=kind is NCSNpp)
    denoiser = lg.load(f"edm:{write(tmp_path / 'a.pkl', renamed(weights))}")
    assert isinstance(denoiser, Preconditioned) and type(denoiser.network) is kind
    assert (denoiser.data_shape, denoiser.num_classes, denoiser.sigma_data) == ((3, 8, 8), classes, 0.5)
    labels, rows = (LABELS, one_hot(LABELS)) if classes else (None, None)
    vector = torch.randn(3, 9, generator=torch.Generator().manual_seed(2))
    for each in (None, vector):
        F = direct_ddpmpp(weights, SCALED, SIGMA.log() / 4, rows, each)
        found = denoiser(X, SIGMA, labels, augmentation=each)
        assert relative(found, edm(X, F)) < 3e-6
        assert float(F.std()) > 0.3
    other = build(denoiser.recipe).eval()
    other.load_state_dict(denoiser.state_dict())
    assert torch.equal(other(X, SIGMA, labels, augmentation=vector), found)


@pytest.mark.parametrize("classes", [0, 4])
def test_adm(tmp_path: Path, classes: int) -> None:
    pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
    weights = adm_weights(classes)
    denoiser = lg.load(f"edm:{write(tmp_path / 'a.pkl', weights)}")
    assert isinstance(denoiser, Preconditioned) and isinstance(denoiser.network, ADMWithoutLabels)
    assert (denoiser.data_shape, denoiser.num_classes, denoiser.sigma_data) == ((3, 8, 8), classes, 0.5)
    for labels in [LABELS, None] if classes else [None]:
        rows = one_hot(torch.full((3,), -1) if labels is None else labels) if classes else None
        F = direct_adm(weights, SCALED, SIGMA.log() / 4, rows)
        found = denoiser(X, SIGMA, labels)
        assert relative(found, edm(X, F)) < 3e-6
        assert float(F.std()) > 0.3
    other = build(denoiser.recipe).eval()
    other.load_state_dict(denoiser.state_dict())
    assert torch.equal(other(X, SIGMA, labels), found)


def test_every_weight_of_the_published_adm() -> None:
    pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
    settings = {"side": 64, "channels": (192, 384, 576, 768), "attention": (32, 16, 8), "blocks": 3}
    weights = adm_weights(1000, device="meta", **settings)  # type: ignore[arg-type]
    network = read_edm_adm(weights, "a.pkl")
    assert sum(weight.numel() for weight in weights.values()) == 295_899_267  # "296 million"
    assert sum(weight.numel() for weight in network.parameters()) == 295_899_267
    heads = [module.heads for module in network.modules() if hasattr(module, "to_q")]
    assert (network.data_shape, len(heads), set(heads)) == ((3, 64, 64), 22, {6, 9, 12})  # as in tables 7 and 8


def test_frequencies_stay_in_float32(tmp_path: Path) -> None:
    weights = ddpmpp_weights(fourier=True)
    path = write(tmp_path / "a.pkl", weights)
    whole, half = lg.load(f"edm:{path}"), lg.load(f"edm:{path}", dtype="bfloat16")
    assert {each.dtype for each in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half.state_dict()["network.embedding_noise.waves.frequencies"], weights["map_noise.freqs"])
    assert relative(half(X, SIGMA), whole(X, SIGMA)) < 0.1


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


def test_continuous_ve(tmp_path: Path) -> None:
    """Table 1 of the paper."""
    weights = ddpmpp_weights(0, fourier=True)
    path = write(tmp_path / "a.pkl", weights, "VEPrecond", sigma_min=np.float64(0.02), sigma_max=100)
    denoiser = lg.load(f"edm:{path}")
    assert isinstance(denoiser, Preconditioned) and isinstance(denoiser.preconditioning, ContinuousVE)
    levels = denoiser.grid(8).sigmas()
    assert (float(levels[0]), float(levels[-2]), denoiser.sigma_max) == pytest.approx((80, 0.02, 100))
    expected = X + SIGMA.reshape(3, 1, 1, 1) * direct_ddpmpp(weights, X, (SIGMA / 2).log(), None)
    assert relative(denoiser(X, SIGMA), expected) < 1e-5
    assert build(denoiser.recipe).recipe == denoiser.recipe


def without(weights: dict[str, Tensor], part: str) -> dict[str, Any]:
    return {name: None for name in weights if part in name}


FOURIER, ADM = ddpmpp_weights(fourier=True), adm_weights(channels=(64, 128))


@pytest.mark.parametrize(
    ("weights", "changes", "options", "sentence"),
    [
        (FOURIER, without(FOURIER, "residual.bias"), {}, r"image_residuals.4x4_down.bias is missing; expected \(8,\)"),
        (FOURIER, {"enc.4x4_more.weight": torch.ones(4)}, {}, "enc.4x4_aux_residual and enc.4x4_more could both be"),
        (FOURIER, without(FOURIER, "freqs"), {}, "enc.4x4_down.conv0.resample_filter is not the filter of DDPM"),
        (FOURIER, without(FOURIER, "enc.8x8_conv"), {}, "its network has no first convolution of a known name; expect"),
        (
            FOURIER,
            {"dec.1.weight": torch.ones(4)},
            {},
            "dec.8x8_aux_norm and dec.1 could both be its last normalization",
        ),
        (
            None,
            {"enc.4x4_more.weight": torch.ones(4)},
            {},
            "image_residuals.4x4_down.weight is .4,.; .* no such weight",
        ),
        (None, without(ddpmpp_weights(), "aux_norm"), {}, "its last normalization is missing; expected one"),
        (None, {"dec.8x8_block1.conv1.bias": None}, {}, r"8x8_block1.residual_out.bias is missing; expected \(8,\)"),
        (
            None,
            {"dec.4x4_in0.norm3.bias": torch.ones(8)},
            {},
            "it has a tensor dec.4x4_in0.norm3.bias, which a network",
        ),
        (None, {"dec.4x4_in0.qkv.bias": torch.ones(47)}, {}, "dec.4x4_in0.qkv.bias has the shape .47,."),
        (None, {}, {"class_name": "iDDPMPrecond"}, "holds a iDDPMPrecond; supported: EDMPrecond, VPPrecond, VEPrecond"),
        (None, {}, {"sigma_data": "a"}, "a.pkl: sigma_data is 'a'; expected a positive number"),
        (
            None,
            {},
            {"class_name": "VEPrecond", "sigma_min": 200},
            "needs 0 < sigma_min < sigma_max, got 200.0 and 100.0",
        ),
        (ADM, {}, {}, "its ADM network has levels of 64 channels; expected 128 or more"),
        (ADM, {"map_augment.weight": torch.ones(64, 9)}, {}, "it has a tensor map_augment.weight, which a network of"),
        (ADM, without(ADM, "last_conv"), {}, "its last convolution is missing"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, weights: Any, changes: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    found = {name: each for name, each in ((weights or ddpmpp_weights()) | changes).items() if each is not None}
    with pytest.raises(ValueError, match=sentence):
        lg.load(f"edm:{write(tmp_path / 'a.pkl', found, **options)}")


def test_files_that_are_no_snapshots(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing.pkl does not exist; expected a published snapshot"):
        lg.load(f"edm:{tmp_path}/missing.pkl")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": print}))
    with pytest.raises(ValueError, match="a.pkl cannot be read as an EDM snapshot: it asks for builtins.print"):
        lg.load(f"edm:{tmp_path}/a.pkl")


@pytest.mark.filterwarnings("ignore:Total length of")  # NoData
@pytest.mark.parametrize("kind", ["DDPM++", "NCSN++", "ADM"])
def test_an_import_samples_at_once(tmp_path: Path, kind: str) -> None:
    if kind == "ADM":
        pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
    weights = adm_weights() if kind == "ADM" else ddpmpp_weights(fourier=kind == "NCSN++")
    weights = {name: each * (0.01 if re.search("aux_conv|last_conv", name) else 1) for name, each in weights.items()}
    path, run = write(tmp_path / "a.pkl", weights), tmp_path / "run"
    main(["import", "edm", str(path), str(run), "--num_steps", "8"])
    config = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    assert list(config["evaluations"]) == ["unguided"]  # labels, but no null class
    words = ["--trainer.accelerator", "cpu", "--model.init_args.prediction.num_samples", "2"]
    main(["predict", "-c", str(run / "config.yaml"), *words])
    assert config["prediction"]["sampler"] == {"class_path": "Heun", "init_args": {"grid": 8}}
    assert len(list(run.rglob("*.png"))) >= 2

"""Checkpoints of ADM and of its classifier, against the same network in another library (azula)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lightning_guide as lg
from lightning_guide.denoiser import Trajectory
from lightning_guide.guidance.training_free.classifier import ClassifierGuidance
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import ADMClassifierFile, Pretrained
from lightning_guide.pretrained.adm import read_adm
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.recipe import build

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
theirs = pytest.importorskip("azula.plugins.adm._src.unet", reason="needs azula, of the extra `test`")

LEVELS: dict[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
# channels, residual blocks, classes, parameters as published
PUBLISHED = {
    "64": (192, 3, 1000, 295_904_454),
    "128": (256, 2, 1000, 421_529_606),
    "256": (256, 2, 1000, 553_838_086),
    "256 unconditional": (256, 2, None, 552_814_086),
    "512": (256, 2, 1000, 558_997_638),
}


def unet(name: str, channels: int, blocks: int, classes: int | None, kind: str = "UNetModel", **options: Any) -> Any:
    """A network of the published settings, but for sizes."""
    size = int(name.split()[0])
    options = {"num_heads": 4} | options if size == 128 and kind == "UNetModel" else {"num_head_channels": 64} | options
    if kind == "UNetModel":
        options |= {"num_classes": classes, "use_new_attention_order": size == 64}
    return getattr(theirs, kind)(
        image_size=size,
        in_channels=3,
        model_channels=channels,
        out_channels=6 if kind == "UNetModel" else classes,
        num_res_blocks=blocks,
        attention_resolutions=tuple(size // side for side in (32, 16, 8)),
        channel_mult=LEVELS[size],
        use_scale_shift_norm=True,
        resblock_updown=True,
        **options,
    )


def refilled(network: nn.Module) -> Any:
    """The network with random weights, none of them zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            scale = max(p[0].numel(), 1) ** -0.5 if p.ndim > 1 else 0.2
            p.copy_(torch.randn(p.shape, generator=generator) * scale + (p if p.ndim == 1 else 0))
    return network.eval()


SLOW = [pytest.param(name, marks=[] if name in ("64", "512") else [pytest.mark.slow]) for name in PUBLISHED]


@pytest.mark.parametrize("name", SLOW)
def test_it_is_the_published_denoiser(name: str, tmp_path: Path) -> None:
    network = refilled(unet(name, 32 if name == "128" else 64, 1, None if "unconditional" in name else 5))
    torch.save(network.state_dict(), tmp_path / "a.pt")
    denoiser = lg.load(f"adm:{tmp_path}/a.pt")
    assert isinstance(denoiser, Preconditioned) and denoiser.data_shape == (3, *[int(name.split()[0])] * 2)
    assert denoiser.sigma_max == pytest.approx(20291 if name == "64" else 157.4073, rel=1e-3)
    side = max(int(name.split()[0]) // 8, 16)  # the smallest that can be halved that often
    x, sigma = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 5.0])
    labels = torch.tensor([3, 0]) if denoiser.num_classes else None
    t, s = denoiser.preconditioning.coefficients(sigma).noise.float(), sigma.reshape(-1, 1, 1, 1)
    with torch.no_grad():
        output = network(x * (1 + s**2).rsqrt(), t, *([] if labels is None else [labels]))
        found = denoiser(x, sigma, labels)
        trajectory = Trajectory(x=x, seeds=SampleSeeds(0, range(2)), sigma=5.0)
        predicted = denoiser.start(trajectory)(x, sigma, labels)
    assert torch.equal(predicted.clean, found) and trajectory.evaluations == 1
    torch.testing.assert_close(predicted.variance, (output[:, 3:] + 1) / 2, rtol=1e-4, atol=1e-4)
    expected = x - s * output[:, :3]
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    other = build(denoiser.recipe).eval()
    other.load_state_dict(denoiser.state_dict())
    assert torch.equal(other(x, sigma, labels), found)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_weight_of_the_published_size(name: str, tmp_path: Path) -> None:
    channels, blocks, classes, count = PUBLISHED[name]
    with torch.device("meta"):
        weights = unet(name, channels, blocks, classes).state_dict()
    torch.save(weights, tmp_path / "a.pt")  # shapes alone
    network = read_adm(f"{tmp_path}/a.pt").network
    assert sum(weight.numel() for weight in weights.values()) == count
    assert sum(weight.numel() for weight in network.parameters()) == count
    assert network.data_shape[1] == int(name.split()[0]) and network.num_classes == (classes or 0)


@pytest.mark.parametrize(("name", "blocks"), [("64", 2), pytest.param("128", 2, marks=pytest.mark.slow)])
def test_it_is_the_published_classifier(name: str, blocks: int, tmp_path: Path) -> None:
    network = refilled(unet(name, 64, blocks, 10, kind="EncoderUNetModel", pool="attention"))
    torch.save(network.state_dict(), tmp_path / "a.pt")
    classifier, size = ADMClassifierFile(str(tmp_path / "a.pt")), int(name)
    x, sigma = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 5.0])
    schedule, s = classifier.network().schedule, sigma.reshape(-1, 1, 1, 1)
    with torch.no_grad():
        expected = network(x * (1 + s**2).rsqrt(), schedule.timestep(sigma).float())
    torch.testing.assert_close(classifier(x, sigma), expected, rtol=1e-4, atol=1e-5)
    assert classifier.num_classes == 10 and "ADMClassifierFile" in str(classifier.recipe)
    with pytest.raises(ValueError, match="images have shape .3, 8, 8.; this classifier expects"):
        classifier(x[:, :, :8, :8], sigma)


def test_the_classifier_guides(tmp_path: Path) -> None:
    """D + weight sigma^2 grad ln p."""
    torch.save(refilled(unet("64", 64, 1, None)).state_dict(), tmp_path / "a.pt")
    network = refilled(unet("64", 64, 1, 10, kind="EncoderUNetModel", pool="attention"))
    torch.save(network.state_dict(), tmp_path / "b.pt")
    denoiser, classifier = lg.load(f"adm:{tmp_path}/a.pt"), ADMClassifierFile(str(tmp_path / "b.pt"))
    x, sigma = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).requires_grad_(), torch.tensor(2.0)
    t = classifier.network().schedule.timestep(sigma).float().expand(2)
    (gradient,) = torch.autograd.grad(network(x / 5**0.5, t).log_softmax(1)[:, 3].sum(), x)
    guided = ClassifierGuidance(classifier, 3.0, label=3, positive=denoiser)
    predict = guided.start(Trajectory(x=x.detach(), seeds=SampleSeeds(0, range(2)), sigma=2.0))
    found = predict(x.detach(), sigma, None).clean - denoiser(x, sigma)
    torch.testing.assert_close(found, 12 * gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"middle_block.1.qkv.weight": None}, "middle_block.1.qkv.weight is missing; expected a checkpoint of ADM"),
        ({"input_blocks.3.0.op.weight": torch.ones(1)}, "it has a tensor input_blocks.3.0.op.weight, which an ADM"),
        ({"input_blocks.99.0.out_layers.0.bias": torch.ones(1)}, "input blocks form no levels"),
        ({"out.2.bias": None}, "out.2.bias is missing; expected another kind of ADM checkpoint"),
        ({"out.0.bias": None}, r"conv_norm_out.bias is missing; expected \(64,\) by the other weights"),
        ({"output_blocks.0.1.qkv.bias": torch.ones(7)}, "output_blocks.0.1.qkv.bias has the shape .7,."),
        ({"label_emb.bias": torch.ones(7)}, "it has a tensor label_emb.bias, which an ADM does not have"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    weights = unet("64", 64, 1, 5).state_dict() | changes
    torch.save({name: each for name, each in weights.items() if each is not None}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=sentence):
        Pretrained(f"adm:{tmp_path}/a.pt")


def test_attention_at_other_sizes_needs_the_size(tmp_path: Path) -> None:
    """As in networks of others with the same code: 256 pixels, attention at 16."""
    network = theirs.UNetModel(
        256, 3, 32, 6, 1, (16,), channel_mult=(1, 1, 2, 2, 4, 4), num_heads=4, num_head_channels=64,
        use_scale_shift_norm=True, resblock_updown=True,
    )  # fmt: skip
    torch.save(network.state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="attention is not at 32, 16 and 8 pixels; expected the constant size"):
        Pretrained(f"adm:{tmp_path}/a.pt")
    assert Pretrained(f"adm:{tmp_path}/a.pt", constants={"size": 256}).data_shape == (3, 256, 256)
    with pytest.raises(ValueError, match="no constant pixels; expected some of size, heads, by_head, schedule"):
        Pretrained(f"adm:{tmp_path}/a.pt", constants={"pixels": 256})

"""Objectives: values and gradients against formulas, reward networks from local files, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.networks.classifiers import SmallClassifier
from lightning_guide.objectives import (
    ClassLogProbability,
    Decoded,
    FileHead,
    Linear,
    NegativeDistance,
    NetworkReward,
    Objective,
    Quadratic,
    RandomHead,
    Reward,
    TorchFunction,
)
from lightning_guide.pretrained import NamedBackbone, NamedNetwork, OpenClipBackbone, TimmBackbone
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.recipe import build


def nearness(x: Tensor, scale: float) -> Tensor:
    """Return the reward of a user."""
    return -x.flatten(1).norm(dim=1) / scale


def check_gradient(objective: Objective, x: Tensor) -> None:
    """Check the gradient against finite differences and values against those of single samples."""
    value, gradient = objective.value_and_gradient(x)
    torch.testing.assert_close(value, torch.cat([objective.value(x[i : i + 1]) for i in range(len(x))]).detach())
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    step = 1e-3
    with torch.no_grad():
        slope = (objective.value(x + step * direction) - objective.value(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).flatten(1).sum(1), slope, rtol=2e-2, atol=2e-3)


def test_synthetic_objectives_and_functions(generator: torch.Generator) -> None:
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    theta = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(Linear(theta).value(x), x @ theta)
    torch.testing.assert_close(Quadratic(theta).value(x), 10 - (x @ theta - 3) ** 2)
    b = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(NegativeDistance(b).value(x), 5 - 0.5 * (x - b).norm(dim=1))
    torch.testing.assert_close(NegativeDistance().value(x), 5 - 0.5 * (x - 4).norm(dim=1))
    own = TorchFunction("torch.linalg.vector_norm", {"dim": 1, "ord": 3})
    torch.testing.assert_close(own.value(x), x.abs().pow(3).sum(1).pow(1 / 3))
    for objective in (Linear(theta), Quadratic(theta), NegativeDistance(b), own):
        check_gradient(objective, x)
    point, v = x[:1], torch.randn(1, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(Quadratic(theta).curvature(point, v), -2 * (v @ theta)[:, None] * theta)
    assert not Linear(theta).curvature(point, v).any()


def test_gradients_are_computed_under_no_grad(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, generator=generator)
    with torch.no_grad():
        _, gradient = Quadratic([1.0, 0.0, 0.0]).value_and_gradient(x)
    torch.testing.assert_close(gradient[:, 0], -2 * (x[:, 0] - 3))
    assert not gradient.requires_grad


def test_objective_of_decoded_latents(generator: torch.Generator) -> None:
    decoder = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3))
    latents = torch.randn(4, 2, generator=generator)
    objective = Decoded(Quadratic([1.0, 2.0, -1.0]), decoder)
    torch.testing.assert_close(objective.value(latents), Quadratic([1.0, 2.0, -1.0]).value(decoder(latents)))
    check_gradient(objective, latents)
    assert not any(parameter.requires_grad for parameter in decoder.parameters())


def test_class_log_probability(tmp_path: Path, generator: torch.Generator) -> None:
    network = SmallClassifier([1, 8, 8], num_classes=3, widths=[8, 8])
    store = SnapshotStore(tmp_path / "snapshots")
    store.save(network.state_dict(), images=8, sigma_rel=0.0, recipe=network.recipe)
    x = torch.rand(4, 1, 8, 8, generator=generator) * 2 - 1
    objective = ClassLogProbability(str(tmp_path), 2)
    torch.testing.assert_close(objective.value(x), network(x).log_softmax(1)[:, 2].detach())
    assert not objective.state_dict()  # the classifier is in no checkpoint of the fine-tuned model
    check_gradient(objective, x)
    with pytest.raises(ValueError, match="class label 3 is out of range; the classifier has 3 classes"):
        ClassLogProbability(str(tmp_path), 3).value(x)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file of random weights for the smallest ResNet of timm."""
    path = tmp_path_factory.mktemp("weights") / "resnet10t.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), path)
    return str(path)


def test_timm_reward_network_with_a_random_head(resnet: str, generator: torch.Generator) -> None:
    before = torch.get_rng_state()
    reward = Reward(TimmBackbone("test_resnet", resnet), RandomHead(seed=3))
    x = torch.rand(2, 1, 24, 32, generator=generator) * 2.4 - 1.2  # partly clamped
    value, gradient = reward.value_and_gradient(x)
    assert torch.equal(torch.get_rng_state(), before)
    model = timm.create_model("test_resnet", pretrained=True, pretrained_cfg_overlay={"file": resnet}, num_classes=0)
    config = timm.data.resolve_data_config(model=model)
    side = config["input_size"][1]
    image = ((x + 1) / 2).clamp(0, 1).expand(-1, 3, -1, -1)
    image = F.interpolate(image, (side, round(32 * side / 24)), mode="bilinear", antialias=True)
    left = (image.shape[3] - side) // 2
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    features = model.eval()((image[:, :, :, left : left + side] - mean) / std)
    draws = torch.rand(features.shape[1] + 1, generator=torch.Generator().manual_seed(3)) * 2 - 1
    expected = (features @ draws[:-1] + draws[-1]) / features.shape[1] ** 0.5
    torch.testing.assert_close(value, expected.detach(), rtol=1e-3, atol=1e-4)
    assert gradient.abs().max() > 0 and not gradient[x.abs() > 1.001].any()  # no gradient from clamped pixels
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    assert not reward.state_dict()
    assert torch.equal(build(reward.recipe).value(x), value)  # the recipe contains backbone and head


def test_heads_from_files(tmp_path: Path, generator: torch.Generator) -> None:
    shapes = {"layers.2": (1, 3), "layers.10": (1, 1), "layers.0": (3, 4)}
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    tensors["layers.0.bias"] = torch.randn(3, generator=generator)
    save_file(tensors, tmp_path / "head.safetensors")
    features = torch.randn(5, 4, generator=generator)
    expected = features @ tensors["layers.0.weight"].T + tensors["layers.0.bias"]
    expected = expected @ tensors["layers.2.weight"].T @ tensors["layers.10.weight"].T
    head = FileHead(str(tmp_path / "head.safetensors"))
    torch.testing.assert_close(head(features), expected.squeeze(1))
    with pytest.raises(ValueError, match="takes 4 features, the backbone gives 6"):
        head(torch.zeros(2, 6))
    save_file({"weight": torch.zeros(2, 4)}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match="expected the last to have one output"):
        FileHead(str(tmp_path / "two.safetensors"))
    with pytest.raises(ValueError, match="weights of a head: there is no file .*nothing.safetensors"):
        FileHead(str(tmp_path / "nothing.safetensors"))
    torch.save(tensors, tmp_path / "head.pth")  # as aesthetics predictors are published
    torch.testing.assert_close(FileHead(str(tmp_path / "head.pth"))(features), head(features))
    for content in (torch.zeros(1), {"weight": "text"}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="other.pth holds no tensors by name"):
            FileHead(str(tmp_path / "other.pth"))


def test_resnet_of_torchvision_with_a_random_head(tmp_path: Path, generator: torch.Generator) -> None:
    """The reward of the paper: features of a ResNet-18 at 224 pixels, normalized as for CLIP."""
    from torchvision.models import resnet18

    model = resnet18()
    torch.save(model.state_dict(), tmp_path / "resnet18.pth")
    reward = Reward(NamedBackbone(weights=str(tmp_path / "resnet18.pth")), RandomHead())
    x = 2.4 * torch.rand(2, 3, 32, 32, generator=generator) - 1.2
    value, gradient = reward.value_and_gradient(x)
    image = F.interpolate(((x + 1) / 2).clamp(0, 1), (224, 224), mode="bilinear", antialias=True)
    mean, std = (
        torch.tensor(each)[:, None, None]
        for each in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    model.fc = torch.nn.Identity()
    features = model.eval()((image - mean) / std)
    assert features.shape == (2, 512)
    torch.testing.assert_close(value, RandomHead()(features).detach(), rtol=1e-4, atol=1e-5)
    assert gradient.isfinite().all() and gradient.any() and not reward.state_dict()
    with pytest.raises(ValueError, match="resnet18 has no layer 'head' to leave out; found conv1, .*, fc"):
        Reward(NamedBackbone(without="head"), RandomHead()).value(x)
    with pytest.raises(ValueError, match="there is no network 'torchvision.models.resnet19'"):
        Reward(NamedBackbone("torchvision.models.resnet19"), RandomHead()).value(x)
    with pytest.raises(ValueError, match=r"resnet18 cannot be made with \{'depth': 3\} \(TypeError: .*depth"):
        Reward(NamedBackbone(options={"depth": 3}), RandomHead()).value(x)


def test_any_network_with_one_output_is_a_reward(generator: torch.Generator) -> None:
    x = torch.randn(3, 3, 32, 32, generator=generator)
    named = NamedNetwork("torchvision.models.resnet18", options={"num_classes": 1}, size=32)
    reward = NetworkReward(named)
    value, gradient = reward.value_and_gradient(x)
    torch.testing.assert_close(value, named(x)[:, 0].detach())
    assert gradient.any()
    with pytest.raises(ValueError, match=r"NetworkReward returned a tensor of shape \(3, 1000\) for 3 samples"):
        NetworkReward(NamedNetwork("torchvision.models.resnet18")).checked_value(x)


def test_open_clip_backbone(tmp_path: Path, generator: torch.Generator) -> None:
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt")
    weights = tmp_path / "clip.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    backbone = OpenClipBackbone("ViT-S-32-alt", str(weights))
    features = backbone(torch.rand(1, 3, 40, 40, generator=generator))
    assert features.ndim == 2 and float(features.norm()) == pytest.approx(1, abs=1e-4)


def test_errors(resnet: str) -> None:
    with pytest.raises(ValueError, match=r"Linear takes x of shape \(2,\), the samples have shape \(3,\)"):
        Linear([1.0, 2.0]).value(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="'torch.no_such_thing' cannot be imported"):
        TorchFunction("torch.no_such_thing")
    with pytest.raises(ValueError, match="is a float; expected a function"):
        TorchFunction("torch.pi")
    with pytest.raises(ValueError, match=r"functional.softplus' does not .* \(x and, by name: dims\): .*dims"):
        TorchFunction("torch.nn.functional.softplus", {"dims": 1}).value(torch.zeros(2))
    with pytest.raises(ValueError, match=r"nearness' does not take .*: missing .* 'scale'"):
        TorchFunction("tests.test_objectives.nearness")
    with pytest.raises(ValueError, match=r"nearness' does not take .* \(x and, by name: scale\)"):
        TorchFunction("tests.test_objectives.nearness", {"scale": "wide"}).value(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="there is no file nowhere.safetensors"):
        TimmBackbone("test_resnet", "nowhere.safetensors")(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="resnet_of_dreams cannot be loaded"):
        TimmBackbone("resnet_of_dreams")(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="takes images"):
        Reward(TimmBackbone("test_resnet", resnet), RandomHead()).value(torch.zeros(2, 5))

    class Root(Objective):
        def value(self, x: Tensor) -> Tensor:
            return x.sum(1).abs().sqrt()

    with pytest.raises(ValueError, match="gradient of the objective Root is not finite"):
        Root().value_and_gradient(torch.zeros(1, 3))

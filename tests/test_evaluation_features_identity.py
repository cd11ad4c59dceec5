"""Identities of extractors: names with settings, hashes of weights, and reports."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.evaluation import (
    ClassifierFeatures,
    FrechetDistance,
    InceptionScore,
    ModuleFeatures,
    RawPixels,
    TimmFeatures,
)
from lightning_guide.evaluation.features.base import Identity, weights_hash
from lightning_guide.networks.classifiers import SmallClassifier
from lightning_guide.snapshots import SnapshotStore


def images(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def classifier_run(run: Path, seed: int) -> str:
    """Create a run with a classifier of random weights."""
    torch.manual_seed(seed)
    network = SmallClassifier([1, 8, 8], num_classes=3, widths=[8, 8])
    store = SnapshotStore(run / "snapshots")
    store.save(network.state_dict(), images=8, sigma_rel=0.0, recipe=network.recipe)
    return str(run)


def test_hash_depends_only_on_weights(tmp_path: Path) -> None:
    one, same, other = (ClassifierFeatures(classifier_run(tmp_path / str(i), seed)) for i, seed in enumerate((0, 0, 1)))
    assert one.identity == same.identity != other.identity  # independent of the folder
    assert one.identity.name == other.identity.name == "ClassifierFeatures"
    prefixed = {f"_classifier.{name}": value for name, value in one.network().state_dict().items()}
    assert weights_hash(prefixed) == one.identity.weights and len(one.identity.weights) == 64
    layer = nn.Linear(3, 2)
    before = weights_hash(layer.state_dict())
    assert weights_hash(layer.double().state_dict()) != before
    with torch.no_grad():
        layer.float().bias[1] += 1
    assert weights_hash(layer.state_dict()) != before
    assert str(RawPixels().identity) == "RawPixels, no weights"
    assert str(Identity("net", "0123456789abcdef" * 4)) == "net, weights 0123456789abcdef"


def test_name_contains_settings_that_change_features(tmp_path: Path) -> None:
    file = tmp_path / "resnet.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), file)
    plain, sized = TimmFeatures("test_resnet", str(file)), TimmFeatures("test_resnet", str(file), size=48)
    assert plain.identity.name == "TimmFeatures(test_resnet)"
    assert sized.identity.name == "TimmFeatures(test_resnet, size 48)"
    assert plain.identity.weights == sized.identity.weights
    x = images(2, 3, 20, 30)
    config = timm.create_model("test_resnet", pretrained=False).pretrained_cfg
    small = F.interpolate(x.float() / 255, (48, 48), mode=config["interpolation"], antialias=True)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(sized(x), sized.network()((small - mean) / std))
    with pytest.raises(ValueError, match="TimmFeatures needs size >= 1, got 0"):
        TimmFeatures("test_resnet", size=0)


def test_module_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2)).train()
    x = images(5, 1, 6, 7)
    extractor = ModuleFeatures(module, size=9, channels=3, mean=[0.1, 0.2, 0.3], std=[0.5])
    resized = F.interpolate(x.float().expand(-1, 3, -1, -1) / 255, (9, 9), mode="bicubic", antialias=True)
    mean = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(extractor(x), module((resized - mean) / 0.5).flatten(1))
    assert not module[1].training and not any(p.requires_grad for p in module.parameters())
    # by default pixels in [-1, 1]; points are unchanged
    flat = ModuleFeatures(nn.Flatten())
    torch.testing.assert_close(flat(x), x.flatten(1) / 127.5 - 1)
    points = torch.randn(4, 2)
    assert torch.equal(ModuleFeatures(nn.Identity())(points), points)
    # weights from files, in the identity
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    torch.save(module.state_dict(), tmp_path / "w.pt")
    again = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2))
    found = [ModuleFeatures(again, str(tmp_path / name)).identity.weights for name in ("w.safetensors", "w.pt")]
    assert found == [extractor.identity.weights] * 2
    assert extractor.identity.name.startswith("ModuleFeatures(torch.nn.modules.container.Sequential, size 9, ")


def test_module_loading_errors(tmp_path: Path) -> None:
    marker, file = tmp_path / "ran", tmp_path / "w.pt"

    class Attack:
        def __reduce__(self) -> Any:
            return Path.mkdir, (marker,)

    torch.save(Attack(), file)
    with pytest.raises(ValueError, match=r"weights of Linear cannot be read from .*w\.pt .*; expected its state dict"):
        ModuleFeatures(nn.Linear(2, 2), str(file))
    assert not marker.exists()
    torch.save(nn.Linear(2, 3).state_dict(), file)
    with pytest.raises(ValueError, match="weights of Linear cannot be read .*size mismatch"):
        ModuleFeatures(nn.Linear(2, 2), str(file))
    with pytest.raises(ValueError, match="weights of Linear: there is no file nowhere"):
        ModuleFeatures(nn.Linear(2, 2), "nowhere")
    with pytest.raises(ValueError, match=r"returned shape \(6,\) for 3 samples; expected a tensor \(3, \*\)"):
        ModuleFeatures(nn.Flatten(0))(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="size >= 1, channels >= 1 and std > 0, got size 0"):
        ModuleFeatures(nn.Identity(), size=0)


def test_metric_reports_its_extractors(tmp_path: Path) -> None:
    extractor = ClassifierFeatures(classifier_run(tmp_path, 0))
    assert FrechetDistance(extractor).extractors == [extractor.identity]
    assert InceptionScore(extractor).extractors == [extractor.identity]
    assert FrechetDistance(RawPixels()).clone().extractors == [Identity("RawPixels")]


def test_features_of_the_last_batch_are_cached_until_it_changes() -> None:
    class Counted(RawPixels):
        calls = 0

        def extract(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().extract(x) * 1.0

    extractor = Counted()
    x = torch.ones(2, 3)
    assert extractor(x) is extractor(x) and extractor.calls == 1
    x[0, 0] = 5.0
    assert extractor(x)[0, 0] == 5 and extractor.calls == 2
    assert torch.equal(extractor(x.clone()), x) and extractor.calls == 3
    assert "_last" not in pickle.loads(pickle.dumps(RawPixels())).__dict__
    plain = RawPixels()
    plain(x)
    assert pickle.loads(pickle.dumps(plain))(x) is not None

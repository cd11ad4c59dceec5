"""Feature extractors: values, lazy loading, eval mode, and errors."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.evaluation import ClassifierFeatures, FeatureExtractor, RawPixels, TimmFeatures
from lightning_guide.networks.classifiers import SmallClassifier
from lightning_guide.snapshots import SnapshotStore


def images(*shape: int) -> Tensor:
    """Return random images uint8."""
    return torch.randint(256, shape, dtype=torch.uint8)


def save(network: SmallClassifier, run: Path, *, images: int = 10, sigma_rel: float = 0.0) -> None:
    """Save a network as the run of a classifier does."""
    store = SnapshotStore(run / "snapshots")
    store.save(network.state_dict(), images=images, sigma_rel=sigma_rel, recipe=network.recipe)


@pytest.fixture
def network() -> SmallClassifier:
    """Return an untrained classifier of 2x8x8 images."""
    return SmallClassifier([2, 8, 8], num_classes=3, widths=[8, 16], num_features=5).eval()


def test_raw_pixels_scale_images_and_keep_points() -> None:
    x = torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8)
    assert torch.allclose(RawPixels()(x), torch.tensor([[-1.0, 1.0, -0.6, -0.2]]), atol=1e-6)
    points = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    features = RawPixels()(points)
    assert torch.equal(features, points.float()) and not features.requires_grad


def test_classifier_features_are_the_penultimate_layer(network: SmallClassifier, tmp_path: Path) -> None:
    save(network, tmp_path)
    x = images(4, 2, 8, 8)
    extractor = ClassifierFeatures(str(tmp_path))
    scaled = x.float() / 127.5 - 1
    assert torch.equal(extractor(x), network.features(scaled)) and extractor(x).shape == (4, 5)
    assert torch.equal(extractor.logits(x), network(scaled)) and not extractor.logits(x).requires_grad
    assert torch.equal(extractor.logits(x), network.head(extractor(x)))


def test_newest_raw_weights_are_loaded_at_first_use(network: SmallClassifier, tmp_path: Path) -> None:
    extractor = ClassifierFeatures(str(tmp_path))
    older = SmallClassifier([2, 8, 8], num_classes=3, widths=[8])
    save(older, tmp_path, images=9)
    save(network, tmp_path, images=100)
    save(older, tmp_path, images=200, sigma_rel=0.05)
    state = torch.get_rng_state()
    assert extractor(images(1, 2, 8, 8)).shape == (1, 5)
    torch.set_rng_state(state)
    drawn = torch.rand(3)
    torch.set_rng_state(state)
    ClassifierFeatures(str(tmp_path)).classifier(torch.device("cpu"))
    assert torch.equal(torch.rand(3), drawn)  # loading uses no global random numbers


def test_missing_classifier_raises(network: SmallClassifier, tmp_path: Path) -> None:
    x = images(1, 2, 8, 8)
    with pytest.raises(ValueError, match=r"no classifier in the run 'runs/nowhere': runs/nowhere/snapshots does not"):
        ClassifierFeatures("runs/nowhere")(x)
    save(network, tmp_path / "averages", sigma_rel=0.1)
    with pytest.raises(ValueError, match=r"holds no raw weights; expected the default_root_dir of a finished fit"):
        ClassifierFeatures(str(tmp_path / "averages"))(x)
    mixture = GaussianMixture(torch.zeros(1, 2), torch.eye(2)[None], torch.ones(1))
    store = SnapshotStore(tmp_path / "other" / "snapshots")
    store.save({"x": torch.zeros(1)}, images=1, sigma_rel=0.0, recipe=mixture.recipe)
    with pytest.raises(ValueError, match=r"safetensors holds a GaussianMixture; expected a SmallClassifier"):
        ClassifierFeatures(str(tmp_path / "other"))(x)


def test_images_of_other_type_or_shape_raise(network: SmallClassifier, tmp_path: Path) -> None:
    save(network, tmp_path)
    extractor = ClassifierFeatures(str(tmp_path))
    with pytest.raises(ValueError, match=r"takes images uint8 \(B, C, H, W\), got torch.float32 of"):
        extractor(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ValueError, match=r"images have shape \(2, 9, 8\); this classifier expects \(2, 8, 8\)"):
        extractor.logits(images(1, 2, 9, 8))


def test_eval_mode_without_autocast_and_shared_by_copies(network: SmallClassifier, tmp_path: Path) -> None:
    save(network, tmp_path)
    extractor = ClassifierFeatures(str(tmp_path))
    x = images(2, 2, 8, 8)
    plain = extractor(x)
    extractor.train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(extractor(x), plain)
    assert copy.deepcopy(extractor) is extractor


def save_timm(name: str, path: Path) -> torch.nn.Module:
    """Save random weights of a timm model, head included, to a file; return the model without the head."""
    model = timm.create_model(name, pretrained=False).eval()
    save_file(model.state_dict(), path)
    model.reset_classifier(0)
    return model


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_timm_features_from_a_local_file(name: str, tmp_path: Path) -> None:
    model = save_timm(name, tmp_path / "weights.safetensors")
    config = model.pretrained_cfg
    extractor = TimmFeatures(name, str(tmp_path / "weights.safetensors"))
    x = images(2, 3, 32, 32)
    image = F.interpolate(x.float() / 255, config["input_size"][1:], mode=config["interpolation"], antialias=True)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = model((image - mean) / std)
    assert torch.allclose(extractor(x), expected, atol=1e-5) and extractor(x).shape == (2, model.num_features)
    gray = images(2, 1, 8, 8)
    assert torch.equal(extractor(gray), extractor(gray.repeat(1, 3, 1, 1)))
    assert not any(parameter.requires_grad for parameter in extractor.parameters())


def test_timm_loading_errors(tmp_path: Path) -> None:
    x = images(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"timm has no model 'test_resnett'; names like it: .*test_resnet\b"):
        TimmFeatures("test_resnett")(x)
    with pytest.raises(ValueError, match="weights of test_resnet: there is no file nowhere.safetensors"):
        TimmFeatures("test_resnet", "nowhere.safetensors")(x)
    save_timm("test_vit", tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"weights of test_resnet cannot be loaded from .*vit.safetensors \("):
        TimmFeatures("test_resnet", str(tmp_path / "vit.safetensors"))(x)
    with pytest.raises(ValueError, match=r"cannot be loaded from timm's download .* name the file in `weights`"):
        TimmFeatures("test_resnet")(x)  # tests are offline
    assert isinstance(TimmFeatures("test_resnet"), FeatureExtractor)

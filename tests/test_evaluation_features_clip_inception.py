"""CLIP and Inception: values and loading errors, with random weights of the real architectures in local files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from lightning_guide.data import Batch
from lightning_guide.evaluation import ClipFeatures, ClipScore, InceptionFeatures, InceptionScore
from lightning_guide.evaluation.features.inception import _FILE
from lightning_guide.pretrained.loading import clip_model

NAME = "ViT-S-32-alt"  # the smallest that open_clip has


def images(*shape: int) -> Tensor:
    """Return random images uint8."""
    return torch.randint(256, shape, dtype=torch.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """Return an untrained CLIP and the file of its weights."""
    torch.manual_seed(0)
    model = open_clip.create_model(NAME).eval()
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save(model.state_dict(), path)
    return model, str(path)


def test_clip_features_are_image_embeddings(clip: tuple[Any, str]) -> None:
    model, path = clip
    x = images(3, 3, 40, 40)
    extractor = ClipFeatures(NAME, path)
    big = F.interpolate(x.float() / 255, (224, 224), mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.visual.image_mean, model.visual.image_std))
    with torch.no_grad():
        expected = model.encode_image((big - mean) / std)
    torch.testing.assert_close(extractor(x), expected, rtol=1e-4, atol=1e-5)
    assert extractor(images(2, 1, 8, 8)).shape == extractor(x)[:2].shape


@pytest.mark.parametrize(
    ("name", "weights", "activation"),
    [("ViT-B-32", "openai", "QuickGELU"), ("ViT-B-32-quickgelu", "openai", "QuickGELU"), ("ViT-B-32", None, "GELU")],
)
def test_clip_has_the_activations_that_its_weights_were_trained_with(
    name: str, weights: str | None, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's weights need x sigmoid(1.702 x); the model of that name has the exact GELU."""
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: "weights")
    monkeypatch.setattr(open_clip.factory, "load_checkpoint", lambda *_, **__: None)
    model = clip_model(name, weights=weights)
    found = {type(module).__name__ for name, module in model.named_modules() if name.endswith("gelu")}
    assert found == {activation}


def test_clip_score_is_the_cosine_with_the_prompt_of_the_class(clip: tuple[Any, str]) -> None:
    model, path = clip
    extractor, words = ClipFeatures(NAME, path), ["a photo of a cat", "a photo of a dog"]
    metric = ClipScore(extractor, words)
    with pytest.raises(ValueError, match="ClipScore is not prepared"):
        metric.update(images(1, 3, 8, 8), torch.tensor([0]))
    metric.prepare([])
    x, labels = images(4, 3, 8, 8), torch.tensor([0, 1, -1, 1])
    metric.update(x, labels)
    with torch.no_grad():
        texts = model.encode_text(open_clip.get_tokenizer(NAME)(words))
    cosines = F.cosine_similarity(extractor(x[labels >= 0]), texts[labels[labels >= 0]])
    assert metric.compute()["clip_score"].item() == pytest.approx(100 * cosines.clamp(min=0).mean().item(), abs=1e-4)
    metric.reset()
    metric.update(x, None)
    assert metric.compute()["clip_score"].isnan()
    with pytest.raises(ValueError, match="has 2 prompts, and none for class 2"):
        metric.update(x, torch.tensor([0, 1, 2, 0]))


def test_clip_loading_errors(tmp_path: Path) -> None:
    x = images(1, 3, 8, 8)
    with pytest.raises(ValueError, match="open_clip has no model 'ViT-B-17'"):
        ClipFeatures("ViT-B-17")(x)
    with pytest.raises(ValueError, match="no file missing.pt, nor is it one of open_clip's names: none for"):
        ClipFeatures(NAME, "missing.pt")(x)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=f"weights of {NAME} cannot be loaded from .*other.pt"):
        ClipFeatures(NAME, str(tmp_path / "other.pt"))(x)
    with pytest.raises(ValueError, match="takes images uint8"):
        ClipFeatures(NAME)(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="a prompt for each class, got none"):
        ClipScore(ClipFeatures(NAME), [])


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """Return an untrained Inception-v3 and the file of its weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / "inception.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save({}, path)
        network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    torch.save(network.state_dict(), path)
    return network, str(path)


def test_inception_features_and_score_are_those_of_torch_fidelity(inception: tuple[Any, str]) -> None:
    network, path = inception
    x = images(3, 3, 32, 32)
    with torch.no_grad():
        features, logits = network(x)
    extractor = InceptionFeatures(path)
    assert torch.equal(extractor(x), features) and features.shape == (3, 2048)
    assert torch.equal(extractor.logits(x), logits)
    metric = InceptionScore(extractor)
    metric.prepare([Batch(x)])
    metric.update(x)
    p = logits.double().softmax(1)
    expected = (p * (p / p.mean(0)).log()).sum(1).mean().exp().item()
    assert metric.compute()["inception_score"].item() == pytest.approx(expected, rel=1e-6)
    gray = images(2, 1, 8, 8)
    assert torch.equal(extractor(gray), extractor(gray.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("there", [False, True])
def test_a_download_of_inception_is_announced_before_it_begins(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    said = []

    def download(url: str, **_: Any) -> None:
        said.append(capsys.readouterr().err)
        assert url.endswith(_FILE)
        raise OSError("no network")

    monkeypatch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", download)
    if there:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / _FILE).touch()
    with pytest.raises(ValueError, match="cannot be loaded from the download of torch-fidelity .no network.; expected"):
        InceptionFeatures().load()
    expected = (
        f"InceptionFeatures downloads {_FILE} (96 MB) from github.com/toshas/torch-fidelity. To use a local file,"
    )
    assert [each.startswith(expected) for each in said] == [not there] and (not there or said == [""])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_inception_loading_errors_execute_no_pickle(tmp_path: Path) -> None:
    x = images(1, 3, 8, 8)
    with pytest.raises(ValueError, match="there is no file missing.pth"):
        InceptionFeatures("missing.pth")(x)
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="cannot be loaded from .*weights.pth .*expected its file weights-inception"):
        InceptionFeatures(str(path))(x)

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (tmp_path / "mark",)

    for write in (lambda: torch.save(Bomb(), path), lambda: path.write_bytes(pickle.dumps(Bomb()))):
        write()
        with pytest.raises(ValueError, match="weights.pth is not a file of tensors only"):
            InceptionFeatures(str(path))(x)
    assert not (tmp_path / "mark").exists()

"""Texts as vectors of CLIP, with a small open_clip model of random weights; prompts of motions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules import MotionPrompts
from lightning_guide.objectives import joint_positions
from lightning_guide.objectives.humanml3d import read_moments
from lightning_guide.pretrained import TextVectors
from tests.human_motions import features_of, walk, write_moments
from tests.tiny_clip import write_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_clip(tmp_path_factory.mktemp("clip"))


def test_vectors_are_those_of_the_model(clip: tuple[str, str]) -> None:
    import open_clip

    model, weights = clip
    network = open_clip.create_model(model, pretrained=None).eval()
    network.load_state_dict(torch.load(weights))
    texts = ["a person walks forward", "a person jogs", "a person walks backwards"]
    with torch.no_grad():
        expected = network.encode_text(open_clip.get_tokenizer(model)(texts))
    found = TextVectors(model, weights, batch_size=2).encode(texts)
    assert found.shape == (3, 1, 16) and found.dtype == torch.float32
    torch.testing.assert_close(found[:, 0], expected)
    assert (expected.norm(dim=1) - 1).abs().min() > 1e-2  # not normalized


def test_prompts_of_motions(clip: tuple[str, str], tmp_path: Path) -> None:
    model, weights = clip
    mean, std = write_moments(tmp_path)
    options = {"frames": 30, "clip": model, "weights": weights, "device": "cpu", "cache": str(tmp_path / "cache")}
    data = MotionPrompts(["a person walks", "a person jogs"], mean, std, **options)  # type: ignore[arg-type]
    data.prepare_data()
    assert (data.data_shape, data.token_channels, data.num_classes) == ((263, 30), 16, 0)
    assert list(data.prompt_texts or ()) == ["a person walks", "a person jogs"]
    exact = TextVectors(model, weights).encode(["a person jogs"])
    torch.testing.assert_close(data.prompts()[torch.tensor([1])], exact, atol=2e-3, rtol=1e-3)
    files = list((tmp_path / "cache").rglob("*.npy"))
    again = MotionPrompts(["a person jogs"], mean, std, **options)  # type: ignore[arg-type]
    assert torch.equal(again.prompts()[torch.tensor([0])], data.prompts()[torch.tensor([1])])
    assert list((tmp_path / "cache").rglob("*.npy")) == files and len(files) == 2


def test_samples_decode_to_joints(clip: tuple[str, str], tmp_path: Path) -> None:
    mean, std = write_moments(tmp_path)
    data = MotionPrompts(["a person walks"], mean, std, clip=clip[0], weights=clip[1], device="cpu")
    features = features_of(*walk([0.05] * 30))[None]
    means, deviations = read_moments(mean, std)
    joints = data.decode((features - means) / deviations)
    assert joints.shape == (1, 22, 3, 30) and joints.dtype == torch.float32
    torch.testing.assert_close(joints.double(), joint_positions(features), atol=1e-5, rtol=1e-5)

"""sFID: the spatial features of torch-fidelity's network, and one pass for all outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from lightning_guide.evaluation import SFID, FrechetDistance, InceptionFeatures, RawPixels, SpatialFeatures
from lightning_guide.evaluation.runner import GuidedEvaluations
from tests.features import RandomFeatures, score


class Recorder(nn.Module):
    """A block that keeps its output."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.outputs = block, []

    def forward(self, x: Any) -> Any:
        """Return the output."""
        self.outputs.append(self.block(x))
        return self.outputs[-1]


@pytest.fixture
def inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InceptionFeatures:
    """The extractor with random weights."""
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save({}, tmp_path / "inception.pt")
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(tmp_path / "inception.pt"))
    extractor = InceptionFeatures()
    extractor._held = (network.eval().requires_grad_(False),)
    return extractor


def test_features_logits_and_places_are_those_of_the_network_in_one_pass(inception: InceptionFeatures) -> None:
    network = inception.network()
    x = torch.randint(256, (2, 3, 20, 24), dtype=torch.uint8)
    branch = Recorder(network.Mixed_6d.branch1x1)
    with torch.no_grad():
        network.Mixed_6d.branch1x1 = branch
        pooled, logits = network(x)
        first = Recorder(network.Conv2d_1a_3x3)
        network.Conv2d_1a_3x3 = first
        network.Mixed_6d.branch1x1 = branch.block
    assert torch.equal(inception.logits(x), logits) and torch.equal(inception(x), pooled)
    places = SpatialFeatures(inception)(x)
    assert len(first.outputs) == 1
    (maps,) = branch.outputs
    assert maps.shape == (2, 192, 17, 17) and bool((maps == 0).any())  # behind the activation
    assert places.shape == (2, 2023)
    assert torch.equal(places.reshape(2, 17, 17, 7), maps[:, :7].permute(0, 2, 3, 1))


def test_it_is_the_frechet_distance_of_the_spatial_features(generator: torch.Generator) -> None:
    real, fake = (torch.randint(high, (40, 3, 12, 12), generator=generator).to(torch.uint8) for high in (256, 200))
    ours = score(SFID(RandomFeatures()), real, fake)
    spatial = RandomFeatures().spatial
    theirs = score(FrechetDistance(RawPixels()), spatial(real), spatial(fake))["fd"]
    assert ours == {"sfid": pytest.approx(theirs, rel=1e-6)} and theirs > 1e-3
    with pytest.raises(ValueError, match="RawPixels has no spatial features"):
        SFID(RawPixels())


def test_fid_and_sfid_of_one_evaluation_share_the_network() -> None:
    metrics: list[Any] = [FrechetDistance(RandomFeatures()), SFID(RandomFeatures())]
    evaluations = GuidedEvaluations({}, {})
    for metric in metrics:
        evaluations.share_extractors(metric)
    assert metrics[1].extractor.source is metrics[0].extractor

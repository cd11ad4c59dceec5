"""Text energy, with a small open_clip model of random weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_guide.denoiser import Denoiser
from lightning_guide.distributions.gaussian_mixture import GaussianMixture
from lightning_guide.guidance.training_free import FreeDoMCLIP
from lightning_guide.noise import KarrasGrid
from lightning_guide.objectives import TextMatch
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from tests.tiny_clip import write_clip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a file of weights of the model "tiny-test"."""
    return write_clip(tmp_path_factory.mktemp("clip"))[1]


def test_loss_is_cosine_or_distance(weights: str) -> None:
    import open_clip

    network = open_clip.create_model("tiny-test", pretrained=None).eval()
    network.load_state_dict(torch.load(weights))
    x = 2 * torch.rand(3, 3, 20, 20) - 1
    mean, std = (torch.tensor(each)[:, None, None] for each in (network.visual.image_mean, network.visual.image_std))
    resized = F.interpolate((x + 1) / 2, (32, 32), mode="bicubic", align_corners=False, antialias=True)
    image = network.encode_image((resized - mean) / std)
    text = network.encode_text(open_clip.get_tokenizer("tiny-test")(["a dog"]))
    cosine = TextMatch("a dog", model="tiny-test", weights=weights)(x)
    torch.testing.assert_close(cosine, 1 - F.normalize(image) @ F.normalize(text)[0])
    distance = TextMatch("a dog", model="tiny-test", weights=weights, kind="distance")(x)
    torch.testing.assert_close(distance, (image - text).norm(dim=1))
    assert not torch.allclose(cosine, TextMatch("a cat", model="tiny-test", weights=weights)(x))


def test_guidance_of_images_by_text(weights: str) -> None:
    prior = GaussianMixture(torch.zeros(1, 192), 0.2 * torch.eye(192)[None])

    class Images(Denoiser):
        data_shape, num_classes, sigma_data = (3, 8, 8), 0, 0.5

        def forward(self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
            return prior(x.flatten(1), sigma).reshape(x.shape)

    loss, sampler = TextMatch("a dog", model="tiny-test", weights=weights), Euler(KarrasGrid(8, sigma_max=10.0))
    plain = sampler.sample(Images(), seeds=SampleSeeds(0, range(8))).x
    guided = sampler.sample(FreeDoMCLIP(loss, 0.3, guide_batch=3, positive=Images()), seeds=SampleSeeds(0, range(8)))
    assert float(loss(guided.x).detach().mean()) < float(loss(plain).detach().mean()) - 0.1
    assert not guided.diagnostics["skipped"].any()


def test_errors(weights: str) -> None:
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="open_clip has no model 'ViT-B-61'; names like it: .*ViT-B-16"):
        TextMatch("a dog", model="ViT-B-61")(x)
    with pytest.raises(ValueError, match="weights of ViT-B-16: there is no file nowhere.pt, nor is it one of"):
        TextMatch("a dog", weights="nowhere.pt")(x)
    with pytest.raises(ValueError, match="TextMatch takes kind 'cosine' or 'distance', got 'angle'"):
        TextMatch("a dog", kind="angle")  # type: ignore[arg-type]

"""ControlNets beside their U-Nets: the image, recipes, perturbations, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import lightning_guide as lg
from lightning_guide.guidance.negatives import IdentityAttention
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import ControlledNetwork, DiffusersNetwork
from lightning_guide.utils.recipe import build

diffusers = pytest.importorskip("diffusers", reason="needs the extra `pretrained`")

Tiny = Callable[[str], Path]


def networks(tiny: Tiny) -> tuple[Any, Any]:
    """A U-Net and its ControlNet."""
    kinds = {"unet": diffusers.UNet2DConditionModel, "controlnet": diffusers.ControlNetModel}
    unet, controlnet = (kind.from_pretrained(tiny("controlnet") / part) for part, kind in kinds.items())
    return unet, controlnet


def image(seed: int = 5) -> Tensor:
    """Random pixels (3, 16, 16) that PNG files can hold."""
    return torch.randint(256, (3, 16, 16), generator=torch.Generator().manual_seed(seed)) / 255


def network(tiny: Tiny, **options: Any) -> ControlledNetwork:
    """Both in one network."""
    unet, controlnet = networks(tiny)
    settings: dict[str, Any] = {"image": image(), "empty_length": 77} | options
    return ControlledNetwork.of(unet, controlnet=controlnet, **settings)


def evaluate(found: DiffusersNetwork) -> Tensor:
    """F for two random x and texts."""
    generator = torch.Generator().manual_seed(1)
    x, tokens = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 16, generator=generator)
    with torch.no_grad():
        return found(x, torch.tensor([30.0, 700.0]), found.embed(tokens, 2))


def test_the_image_is_that_of_a_file_and_matters(tiny_pipeline: Tiny, tmp_path: Path) -> None:
    Image.fromarray((255 * image()).byte().movedim(0, -1).numpy()).save(tmp_path / "edges.png")
    found = evaluate(network(tiny_pipeline))
    assert torch.equal(evaluate(network(tiny_pipeline, image=str(tmp_path / "edges.png"))), found)
    assert not torch.allclose(evaluate(network(tiny_pipeline, image=image(6))), found, atol=1e-3)
    plain = evaluate(DiffusersNetwork.of(networks(tiny_pipeline)[0], empty_length=77))
    assert torch.allclose(evaluate(network(tiny_pipeline, scale=0.0)), plain, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_a_recipe_and_a_state_dict_rebuild_both_networks(tiny_pipeline: Tiny) -> None:
    one = network(tiny_pipeline)
    other = build(json.loads(json.dumps(one.recipe))).eval()
    other.load_state_dict(one.state_dict())
    assert torch.equal(evaluate(other), evaluate(one))
    assert evaluate(one.to(torch.bfloat16)).dtype == torch.bfloat16


def test_positive_and_perturbed_negative_see_the_image(tiny_pipeline: Tiny) -> None:
    results = []
    for seed in (5, 6):
        one = Preconditioned(network(tiny_pipeline, image=image(seed)), sigma_data=1.0)
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            results += [f(x, torch.tensor(2.0), None) for f in (one, Perturbed([IdentityAttention()], positive=one))]
    assert all(not torch.allclose(a, b, atol=1e-4) for i, a in enumerate(results) for b in results[:i])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image": None}, "a ControlNet needs a control image, got none; expected a file or a tensor"),
        ({"image": "nowhere.png"}, "a ControlNet needs a control image; there is no file nowhere.png"),
        ({"image": __file__}, "the control image .* cannot be read: cannot identify image file"),
        ({"scale": "x"}, "the scale of a ControlNet is 'x'; expected a finite number"),
        ({"image": torch.zeros(3, 16, 8)}, r"has the shape \(3, 16, 8\); expected \(3, 16, 16\)"),
    ],
)
def test_a_missing_or_wrong_setting_is_refused(tiny_pipeline: Tiny, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        network(tiny_pipeline, **options)


def test_a_controlnet_of_another_model_is_refused(tiny_pipeline: Tiny) -> None:
    unet, controlnet = networks(tiny_pipeline)
    config = dict(controlnet.config) | {"cross_attention_dim": 32}
    with pytest.raises(ValueError, match="the ControlNet has cross_attention_dim=32, its U-Net 16; expected the same"):
        ControlledNetwork("UNet2DConditionModel", dict(unet.config), config, image=image(), empty_length=77)
    dit = {"out_channels": 8, "sample_size": 8, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1}
    with pytest.raises(
        ValueError, match="a ControlNet is for a UNet2DConditionModel; this network is a DiTTransformer"
    ):
        ControlledNetwork("DiTTransformer2DModel", dit, config, image=image())
    with pytest.raises(ValueError, match="the weight .* of the ControlNetModel has the shape"):
        network(tiny_pipeline).set_controlnet(diffusers.ControlNetModel.from_config(config))


def test_a_published_controlnet_is_loaded_beside_its_model(tiny_pipeline: Tiny, tmp_path: Path) -> None:
    Image.fromarray((255 * image()).byte().movedim(0, -1).numpy()).save(tmp_path / "edges.png")
    folder, beside = tiny_pipeline("sd"), tiny_pipeline("controlnet")
    settings = {"source": str(beside / "controlnet"), "image": str(tmp_path / "edges.png"), "scale": 0.5}
    denoiser = lg.load(f"diffusers:{folder}", controlnet=settings)
    assert isinstance(denoiser, Preconditioned) and isinstance(denoiser.network, ControlledNetwork)
    expected = network(tiny_pipeline, scale=0.5)
    expected.empty.copy_(denoiser.network.empty)
    assert bool(expected.empty.any()) and torch.equal(evaluate(denoiser.network), evaluate(expected))
    assert denoiser.sigma_max == lg.load(f"diffusers:{folder}").sigma_max
    pipeline = lg.load(f"diffusers:{beside}", controlnet={"image": settings["image"], "scale": 0.5})
    assert isinstance(pipeline, Preconditioned) and torch.equal(evaluate(pipeline.network), evaluate(denoiser.network))
    with pytest.raises(ValueError, match="has a ControlNet, which needs a control image; expected controlnet: {image"):
        lg.load(f"diffusers:{beside}")
    with pytest.raises(ValueError, match="controlnet has source; expected source, image and perhaps scale"):
        lg.load(f"diffusers:{folder}", controlnet={"source": str(beside / "controlnet")})
    with pytest.raises(ValueError, match="is the folder of a pipeline; expected .*/controlnet$"):
        lg.load(f"diffusers:{folder}", controlnet=settings | {"source": str(beside)})
    with pytest.raises(ValueError, match="the ControlNet .*/vae cannot be loaded|the weights of the ControlNet .*/vae"):
        lg.load(f"diffusers:{folder}", controlnet=settings | {"source": str(folder / "vae")})

"""DINOv2 features: resizing to 224 pixels, interpolated positions, class token, weights of a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.evaluation import DINOv2Features
from lightning_guide.evaluation.features.dinov2 import interpolate_positions

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def cubic(distance: Tensor) -> Tensor:
    """Return Keys' kernel with a = -3/4 (Keys 1981, equation 4 in general form)."""
    a, d = -0.75, distance.abs()
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def resample(values: Tensor, side: int) -> Tensor:
    """Return rows (side, C) of `values` (n, C) at (i + 1/2) n / (side + 0.1) - 1/2, borders repeated."""
    n = len(values)
    points = (torch.arange(side, dtype=torch.float64) + 0.5) * n / (side + 0.1) - 0.5
    reach = torch.arange(-4, n + 4)
    kernel = cubic(points[:, None] - reach)  # (side, n + 8)
    return kernel @ values[reach.clamp(0, n - 1)]


@pytest.mark.parametrize(("n", "side"), [(37, 16), (5, 8)])
def test_positions_are_interpolated_with_the_offset(n: int, side: int, generator: torch.Generator) -> None:
    grid = torch.randn(n, n, 3, generator=generator, dtype=torch.float64)
    token = torch.randn(1, 1, 3, generator=generator, dtype=torch.float64)
    new = interpolate_positions(torch.cat([token, grid.reshape(1, n * n, 3)], 1), side)
    rows = resample(grid.flatten(1), side).reshape(side, n, 3)
    expected = resample(rows.transpose(0, 1).flatten(1), side).reshape(side, side, 3).transpose(0, 1)
    assert torch.equal(new[:, :1], token)
    torch.testing.assert_close(new[0, 1:], expected.reshape(side * side, 3))
    assert torch.equal(interpolate_positions(new, side), new)


def check_features(name: str, width: int, folder: Path) -> None:
    """Compare the features of a local file with a forward pass written out."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    with torch.no_grad():
        model.pos_embed.normal_()
    file = folder / "weights.pth"
    torch.save(model.state_dict() | {"mask_token": torch.zeros(1, width)}, file)  # DINOv2's own files have one
    extractor = DINOv2Features(str(file), name=name)
    x = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        image = F.interpolate(x.float(), (224, 224), mode="bicubic", antialias=True) / 255
        patches = model.patch_embed.proj((image - MEAN[:, None, None]) / STD[:, None, None])
        tokens = torch.cat([model.cls_token.expand(2, -1, -1), patches.flatten(2).mT], 1)
        tokens = model.blocks(tokens + interpolate_positions(model.pos_embed, 16))
        expected = model.norm(tokens)[:, 0]
    found = extractor(x)
    assert found.shape == (2, width)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert extractor.identity.name == f"DINOv2Features({name}, size 224)" and len(extractor.identity.weights) == 64


def test_features_are_the_class_token_at_224_pixels(tmp_path: Path) -> None:
    check_features("vit_small_patch14_dinov2", 384, tmp_path)


@pytest.mark.slow
def test_features_of_the_large_model_of_published_distances(tmp_path: Path) -> None:
    check_features("vit_large_patch14_dinov2", 1024, tmp_path)


def test_other_architectures_raise(tmp_path: Path) -> None:
    for name, sentence in (("test_resnet", "is not a DINOv2"), ("test_vit", "size a multiple of 16, got 225")):
        save_file(timm.create_model(name, pretrained=False).state_dict(), tmp_path / f"{name}.safetensors")
        with pytest.raises(ValueError, match=sentence):
            DINOv2Features(str(tmp_path / f"{name}.safetensors"), name=name, size=225).load()
    with pytest.raises(ValueError, match="weights of vit_large_patch14_dinov2: there is no file nowhere.pth"):
        DINOv2Features("nowhere.pth").load()

"""Resizing conventions of metrics, against the libraries they are named after."""

from __future__ import annotations

import cleanfid.resize
import pytest
import torch
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from datamodules.storage.image_codec import shrink
from datamodules.storage.resizing import Resizing


@pytest.mark.parametrize(("height", "width", "size"), [(40, 40, 13), (20, 31, 57), (16, 16, 16)])
def test_conventions_are_those_of_the_libraries(height: int, width: int, size: int) -> None:
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    theirs = cleanfid.resize.build_resizer("clean")
    pil = cleanfid.resize.make_resizer("PIL", False, "bicubic", (size, size))(image.permute(1, 2, 0).numpy())
    ours = Resizing(size, "clean-fid", rounded=False)(image)
    torch.testing.assert_close(ours, torch.from_numpy(pil).permute(2, 0, 1).clip(0, 255), rtol=0, atol=1e-3)
    at_299 = torch.from_numpy(theirs(image.permute(1, 2, 0).numpy())).permute(2, 0, 1).clip(0, 255)
    torch.testing.assert_close(Resizing(299, "clean-fid", rounded=False)(image), at_299, rtol=0, atol=1e-3)
    bilinear = interpolate_bilinear_2d_like_tensorflow1x(image[None].float(), (size, size), align_corners=False)[0]
    torch.testing.assert_close(Resizing(size, "torch-fidelity", rounded=False)(image), bilinear, rtol=0, atol=1e-3)


def test_rounded_images_are_those_of_a_file() -> None:
    image = torch.randint(256, (3, 30, 30), dtype=torch.uint8)
    for convention in ("clean-fid", "torch-fidelity"):
        exact, rounded = (Resizing(12, convention, rounded=rounded)(image) for rounded in (False, True))
        assert rounded.dtype == torch.uint8 and (rounded.float() - exact).abs().max() <= 0.5
    assert torch.equal(Resizing(12, "area")(image), shrink(image, 12))
    assert str(Resizing(12)) == "clean-fid to 12x12" and str(Resizing()) == "not resized"
    points = torch.randn(3)
    assert Resizing(12)(points) is points and Resizing()(image) is image
    with pytest.raises(ValueError, match="size is 0; expected at least 1 pixel"):
        Resizing(0)

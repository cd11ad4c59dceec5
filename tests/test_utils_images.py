"""Encoding of samples as files: a round trip for every kind of data."""

from __future__ import annotations

import pytest
import torch

from datamodules.storage.image_codec import UndecodableError, decode_sample
from lightning_guide.utils.images import encode_png, encode_sample


@pytest.mark.parametrize(
    ("shape", "dtype", "extension"),
    [
        ((1, 5, 4), torch.uint8, "png"),
        ((3, 5, 4), torch.uint8, "png"),
        ((4, 5, 4), torch.uint8, "npy"),  # not an image
        ((3, 5, 4), torch.float32, "npy"),
        ((2,), torch.float32, "npy"),
        ((2,), torch.float64, "npy"),
    ],
)
def test_round_trip(shape: tuple[int, ...], dtype: torch.dtype, extension: str, generator: torch.Generator) -> None:
    x = (torch.rand(shape, generator=generator) * 255).to(dtype)
    found, data = encode_sample(x)
    back = decode_sample(data)
    assert found == extension and torch.equal(back, x.float() if dtype == torch.float64 else x)
    assert back.dtype == (torch.uint8 if dtype == torch.uint8 else torch.float32)
    assert data == encode_sample(x.clone())[1]


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x01", b"nothing", encode_png(torch.zeros(3, 9, 9).byte())[:45]])
def test_damaged_files_are_refused(data: bytes) -> None:
    with pytest.raises(UndecodableError):
        decode_sample(data)


def test_png_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3\) and torch.uint8"):
        encode_png(torch.zeros(2, 3).byte())

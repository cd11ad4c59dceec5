"""Stored latents: how they are decoded, and the record of how they were encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from datamodules.storage.image_codec import decode_sample
from lightning_guide.pretrained.autoencoders import VariationalAutoencoder
from lightning_guide.utils.recipe import equivalent
from lightning_guide.utils.resume import read_record

__all__ = ["INVENTORY", "LatentDecoder", "Spread", "check_compatibility", "is_same_shard", "shard_identity"]


Spread = Literal["std", "log_variance"]


class LatentDecoder:
    """Decode stored latents (2 C, h, w), means above their `spread`, to float32, means above standard deviations."""

    def __init__(self, spread: Spread) -> None:
        """Set what is stored below the means, "std" or "log_variance"."""
        if spread not in get_args(Spread):
            raise ValueError(f"spread is {spread!r}; expected one of {', '.join(get_args(Spread))}")
        self.spread = spread

    def __call__(self, data: bytes) -> Tensor:
        """Return the latents in the npy file `data`.

        Raises:
            UndecodableError: if it is not an array of numbers.
            ValueError: if numbers are not finite, or cannot be of that spread: negative deviations, or logarithms of
                variances that are all above 1.
        """
        x = decode_sample(data).to(torch.float32)
        if not bool(x.isfinite().all()):
            raise ValueError("the latents are not finite")
        if x.ndim != 3 or len(x) % 2 or not x.numel():
            return x
        mean, spread = x.chunk(2)
        lowest = float(spread.min())
        if self.spread == "std":
            if lowest < 0:
                raise ValueError(
                    f"the second half of the latents goes down to {lowest:g}; expected standard deviations, or spread: "
                    "log_variance for logarithms of variances"
                )
            return x
        if lowest >= 0:
            raise ValueError(
                f"the second half of the latents is at least {lowest:g}; expected logarithms of variances, some below "
                "1, or spread: std for standard deviations"
            )
        return torch.cat([mean, (spread.clamp(-30, 20) / 2).exp()])


INVENTORY = "latents.json"


def shard_identity(shard: Path) -> dict[str, Any]:
    """Return what tells a shard from another: a hash of its bytes, and size and time, by which it need not be read."""
    with shard.open("rb") as file:
        return {"sha256": file_digest(file, "sha256").hexdigest(), "stat": _stat(shard)}


def is_same_shard(shard: Path, recorded: Mapping[str, Any]) -> bool:
    """Return whether `shard` is the one recorded with `shard_identity`.

    Records of older versions hold a hash of size and first 64 KiB, or nothing, which fits every shard.
    """
    if "sha256" in recorded:
        return recorded["stat"] == _stat(shard) or recorded["sha256"] == shard_identity(shard)["sha256"]
    with shard.open("rb") as file:
        start = sha256(f"{shard.stat().st_size} ".encode() + file.read(2**16)).hexdigest()[:16]
    return recorded.get("origin") in (None, start)


def _stat(path: Path) -> list[int]:
    """Return size and time of the last change."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _encoder(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of an autoencoder without what latents of other settings can be decoded with."""
    arguments = {name: each for name, each in recipe.get("init_args", {}).items() if name not in ("tile", "dtype")}
    return recipe | {"init_args": arguments}


def check_compatibility(
    folder: Path, vae: VariationalAutoencoder | None, mean: Sequence[float], std: Sequence[float]
) -> list[str]:
    """Check the provenance of latents in `folder`; return warnings, none for a folder without an inventory.

    Latents may have been encoded by another autoencoder than `vae`; or x = (z - mean) / (2 std) may be far from a mean
    of 0 and a deviation of 0.5: beyond 0.25, or beyond a factor of 1.5, in some channel.
    """
    if not (folder / INVENTORY).is_file():
        return []
    settings, inventory = read_record(folder / INVENTORY)
    found, made = [], settings.get("vae")
    if vae is not None and made is not None and not equivalent(_encoder(vae.recipe), _encoder(made)):
        found.append(f"the latents in {folder} were encoded by {made} and are decoded by {vae.recipe}")
    own = inventory.get("mean", []), inventory.get("std", [])
    far = [
        abs(m - center) > spread / 2 or not 1 / 1.5 <= s / spread <= 1.5
        for m, s, center, spread in zip(*own, mean, std, strict=False)
    ]
    if any(far):
        found.append(
            f"the latents in {folder} have mean {own[0]} and std {own[1]} ({INVENTORY}); with mean {list(mean)} and "
            f"std {list(std)}, as given here, they are far from mean 0 and deviation 0.5"
        )
    return found

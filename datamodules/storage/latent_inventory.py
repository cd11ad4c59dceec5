"""Inventory `latents.json` of shards of latents: settings of their encoding, and complete shards."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from lightning_guide.pretrained.autoencoders import VariationalAutoencoder
from lightning_guide.utils.recipe import equivalent
from lightning_guide.utils.resume import read_record

__all__ = ["INVENTORY", "check_compatibility", "shard_fingerprint"]


INVENTORY = "latents.json"


def shard_fingerprint(shard: Path) -> str:
    """Hash size and first 64 KiB of a shard, to distinguish shards of the same name."""
    with shard.open("rb") as file:
        return sha256(f"{shard.stat().st_size} ".encode() + file.read(2**16)).hexdigest()[:16]


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
    if vae is not None and made is not None and not equivalent(vae.recipe, made):
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

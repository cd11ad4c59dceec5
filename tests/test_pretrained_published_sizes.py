"""Published models at their real size on the meta device: numbers of parameters, parts, and memory by counting."""

from __future__ import annotations

import pytest
import torch

from lightning_guide.utils.modules import names_of_layers

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")

from scripts.benchmarks.fine_tuning_memory import activations, count  # noqa: E402
from scripts.benchmarks.model_memory import LiveMemory, call_bytes, decode_bytes  # noqa: E402
from scripts.lib.published_models import PUBLISHED, autoencoder, text_encoder  # noqa: E402


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_parts(name: str) -> None:
    published = PUBLISHED[name]
    network = published.build()
    assert sum(weight.numel() for weight in network.parameters()) == published.parameters
    assert all(weight.is_meta for weight in network.parameters())
    for kind, patterns in network.parts.items():
        assert names_of_layers(network, patterns, kind)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("CLIP-L", 123_060_480), ("CLIP-H", 340_387_840), ("CLIP-G", 694_659_840), ("T5-XXL", 4_762_310_656)],
)
def test_text_encoders(name: str, parameters: int) -> None:
    assert sum(weight.numel() for weight in text_encoder(name).parameters()) == parameters


def test_autoencoders() -> None:
    assert sum(weight.numel() for weight in autoencoder(4).parameters()) == 83_653_863
    assert sum(weight.numel() for weight in autoencoder(16).parameters()) == 83_819_683


def test_memory_counts_tensors_that_exist_at_once() -> None:
    x = torch.empty(1000, device="meta")
    with LiveMemory() as memory:
        y = x * 2  # 4000 bytes
        y.add_(1).view(10, 100)  # the same memory
        z = y + 1
        del y
        z = z * 2
        assert memory.peak == 8000
        z = torch.cat([z, z])  # 4000 and 8000 bytes
    assert memory.peak == 12000 and z.shape == (2000,)


def test_memory_of_a_call_grows_with_the_batch() -> None:
    network = PUBLISHED["DDPM CIFAR-10"].build()
    one, four = (call_bytes(network, batch=batch) for batch in (1, 4))
    largest = 2 * 256 * 32 * 32 * 2  # two feature maps of the widest level, in 16 bits
    assert largest < one and 3.9 < four / one <= 4.0


def test_tiles_bound_the_memory_of_decoding() -> None:
    whole, larger, tiled = decode_bytes(32), decode_bytes(64), decode_bytes(64, tile=32)
    image = 4 * 3 * 512 * 512
    assert 3.9 < larger / whole <= 4.0 and whole < tiled < whole + 3 * image


def test_additions_to_attention_are_counted() -> None:
    """797,184 numbers for each 4 ranks of Stable Diffusion 1.5, as diffusers' first LoRA files had."""
    assert count(PUBLISHED["Stable Diffusion 1.5"].build(), 8) == (859_520_964, 2 * 797_184, 128)


def test_activations_are_counted() -> None:
    """Recomputed, a transformer keeps the tokens before each block, in 16 bits; else queries, keys, values and more."""
    kept, recomputed = (
        activations(PUBLISHED["DiT-XL/2 256"].build(), recompute=recompute) for recompute in (False, True)
    )
    tokens = 28 * 256 * 1152 * 2
    assert tokens <= recomputed < 1.2 * tokens and 10 * tokens < kept < 40 * tokens

"""Diffusion transformer: explicit formula, shapes, training as a denoiser."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_guide.guidance.negatives import IdentityAttention
from lightning_guide.guidance.perturbation import Perturbed
from lightning_guide.networks import DiffusionTransformer
from lightning_guide.networks.attention import AttentionCore
from lightning_guide.networks.dit_block import TokenAttention, TransformerBlock
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.training.losses import EDMLoss
from lightning_guide.utils.modules import matching_names, replace_modules
from lightning_guide.utils.recipe import build

PAPER = {  # channels, depth, heads, millions of parameters in table 1 of the paper
    "S": (384, 12, 6, 33),
    "B": (768, 12, 12, 130),
    "L": (1024, 24, 16, 458),
    "XL": (1152, 28, 16, 675),
}


def small(data_shape: tuple[int, ...] = (3, 8, 12), **options: int) -> DiffusionTransformer:
    """Return a small network in float64 with all parameters random, including those initialized to zero."""
    options = {"num_classes": 5, "channels": 24, "depth": 3, "heads": 3, **options}
    network = DiffusionTransformer(data_shape, **options).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    return network.eval()


def call(network: DiffusionTransformer, x: Tensor, labels: Tensor | None = None) -> Tensor:
    c_noise = torch.linspace(-1, 1, len(x), dtype=torch.float64)
    with torch.no_grad():
        return network(x, c_noise, network.embed(labels, len(x)))


# Sizes


@pytest.mark.parametrize("name", PAPER)
def test_published_sizes(name: str) -> None:
    channels, depth, heads, millions = PAPER[name]
    with torch.device("meta"):
        network = DiffusionTransformer((4, 32, 32), num_classes=1000, channels=channels, depth=depth, heads=heads)
    count = sum(parameter.numel() for parameter in network.parameters())
    C = channels
    block = (C * 6 * C + 6 * C) + (C * 3 * C + 3 * C) + (C * C + C) + (C * 4 * C + 4 * C) + (4 * C * C + C)
    ends = (16 * C + C) + (C * 2 * C + 2 * C) + (C * 16 + 16)
    embeddings = (256 * C + C) + (C * C + C) + 1000 * C
    assert count == depth * block + ends + embeddings
    assert f"{count:,}" in (DiffusionTransformer.__doc__ or "")
    assert abs(count / 1e6 - millions) < 1


# The formula


def layer_norm(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()


def affine(layer: nn.Module, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias  # type: ignore[operator, union-attr]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def test_attention_equals_softmax_attention_of_each_head() -> None:
    attention = TokenAttention(12, 3).double()
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    q, k, v = affine(attention.qkv, x).split(12, dim=-1)
    heads = []
    for head in range(3):
        rows = slice(4 * head, 4 * head + 4)
        heads.append((q[..., rows] @ k[..., rows].mT / 2).softmax(-1) @ v[..., rows])
    torch.testing.assert_close(attention(x, (2, 3)), affine(attention.output, torch.cat(heads, dim=-1)))


def test_qk_norm_ignores_the_scale_of_queries_and_keys() -> None:
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    for qk_norm in (True, False):
        attention = TokenAttention(12, 3, qk_norm=qk_norm).double()
        before = attention(x, (2, 3))
        with torch.no_grad():
            attention.qkv.weight[:24] *= 3
            attention.qkv.bias[:24] *= 3
        assert torch.allclose(attention(x, (2, 3)), before, atol=1e-4) == qk_norm


def test_block_equals_its_formula() -> None:
    block = small().blocks[0]
    assert isinstance(block, TransformerBlock)
    x, e = torch.randn(2, 6, 24, dtype=torch.float64), torch.randn(2, 24, dtype=torch.float64)
    m = affine(block.modulation.linear, silu(e))[:, None].split(24, dim=-1)
    y = x + m[2] * block.attention(layer_norm(x) * (1 + m[1]) + m[0], (2, 3))
    h = affine(block.mlp.fc1, layer_norm(y) * (1 + m[4]) + m[3])
    h = 0.5 * h * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())
    torch.testing.assert_close(block(x, e, (2, 3)), y + m[5] * affine(block.mlp.fc2, h))


def test_patches_and_positions_without_blocks() -> None:
    """Without blocks, each patch is computed from its own pixels, row and column, and returned to its place."""
    network = small(depth=0)
    assert network.embedding_label is not None
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    c_noise, labels = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([4, -1])
    noise = network.embedding_noise
    e = affine(noise.second, silu(affine(noise.first, noise.fourier(c_noise))))
    e = e + torch.stack([network.embedding_label.weight[:, 4], torch.zeros(24)])
    shift, scale = affine(network.output.modulation.linear, silu(e)).split(24, dim=-1)
    f = 10000.0 ** (-torch.arange(6, dtype=torch.float64) / 6)
    expected = torch.empty_like(x)
    for row in range(4):
        for column in range(6):
            here = (..., slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2))
            position = torch.cat([(row * f).sin(), (column * f).sin(), (row * f).cos(), (column * f).cos()])
            token = x[here].flatten(1) @ network.patches.proj.weight.flatten(1).T + network.patches.proj.bias
            values = affine(network.output.linear, layer_norm(token + position) * (1 + scale) + shift)
            expected[here] = values.reshape(2, 2, 2, 3).permute(0, 3, 1, 2)
    actual = network(x, c_noise, network.embed(labels, 2))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)  # positions are computed in float32


# Shapes


class Spy(AttentionCore):
    """Plain attention core that records its tokens and grid."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int] | None) -> Tensor:
        self.seen = (q.shape, size)
        return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize(
    ("shape", "patch_size", "tokens", "grid"),
    [
        ((3, 8, 8), 2, 16, (4, 4)),
        ((3, 4, 12), 2, 12, (2, 6)),
        ((1, 6, 9), 3, 6, (2, 3)),
        ((2, 5, 7), 1, 35, (5, 7)),
        ((3, 10), 2, 5, None),
        ((6,), 2, 3, None),
        ((2,), 1, 2, None),
    ],
    ids=str,
)
def test_shapes(shape: tuple[int, ...], patch_size: int, tokens: int, grid: tuple[int, int] | None) -> None:
    network = small(shape, patch_size=patch_size)
    spy = Spy()
    x = torch.randn(2, *shape, dtype=torch.float64)
    y = call(network, x)
    assert y.shape == x.shape
    assert torch.equal(call(replace_modules(network, {"blocks.2.attention.core": spy}), x), y)  # type: ignore[arg-type]
    assert spy.seen == ((2, 3, tokens, 8), grid)
    reached = torch.autograd.functional.jacobian(lambda x: network(x, x.new_zeros(2), None)[0].sum(), x)
    assert bool((reached[0] != 0).all()) and bool((reached[1] == 0).all())


@pytest.mark.parametrize("shape", [(3, 8, 12), (3, 4, 4), (3, 16, 6)], ids=str)
def test_other_size_equals_the_network_of_that_size(shape: tuple[int, ...]) -> None:
    network, other = (
        small((3, 8, 8)),
        DiffusionTransformer(shape, num_classes=5, channels=24, depth=3, heads=3).double(),
    )
    other.load_state_dict(network.state_dict())
    x, sigma = torch.randn(2, *shape, dtype=torch.float64), torch.tensor(0.7)
    with torch.no_grad():
        assert torch.equal(Preconditioned(network)(x, sigma), Preconditioned(other.eval())(x, sigma))


def test_sequence_equals_an_image_of_one_row() -> None:
    sequence, image = small((3, 10), patch_size=1), small((3, 1, 10), patch_size=1)
    image.load_state_dict(sequence.state_dict())
    x = torch.randn(2, 3, 10, dtype=torch.float64)
    assert torch.equal(call(sequence, x), call(image, x[:, :, None])[:, :, 0])


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data_shape is \(3, 4, 8, 8\); expected \(channels, height, width\), "):
        small((3, 4, 8, 8))
    with pytest.raises(ValueError, match="size 8x9 cannot be cut into patches of 2x2"):
        small((3, 8, 9))
    with pytest.raises(ValueError, match="size 1x9 cannot be cut into patches of 1x2"):
        small((3, 9))
    with pytest.raises(ValueError, match="24 channels must be a multiple of 5 heads and of 4"):
        small(heads=5)
    with pytest.raises(ValueError, match="size 6x7 cannot be cut"):
        call(small(), torch.zeros(1, 3, 6, 7, dtype=torch.float64))
    with pytest.raises(ValueError, match="class label 5 is out of range"):
        small().embed(torch.tensor([5]), 1)


# As a denoiser


@pytest.mark.parametrize("shape", [(3, 8, 12), (3, 10), (2,)], ids=str)
def test_untrained_denoiser_is_c_skip_x(shape: tuple[int, ...]) -> None:
    denoiser = Preconditioned(DiffusionTransformer(shape, num_classes=5, channels=24, depth=3, heads=3))
    x = torch.randn(4, *shape)
    for sigma in (0.1, 2.0):
        c_skip = 0.25 / (sigma**2 + 0.25)
        torch.testing.assert_close(denoiser(x, torch.tensor(sigma), torch.tensor([0, 4, -1, 2])), c_skip * x)


def test_untrained_blocks_are_the_identity() -> None:
    x, e = torch.randn(2, 6, 24), torch.randn(2, 24)
    for block in DiffusionTransformer((3, 4, 6), channels=24, depth=3, heads=3).blocks:
        assert torch.equal(block(x, e, (2, 3)), x)


def test_output_depends_on_labels_and_noise_and_minus_one_is_no_condition() -> None:
    network = small()
    x = torch.randn(1, 3, 8, 12, dtype=torch.float64).expand(2, -1, -1, -1)
    c_noise = torch.zeros(2, dtype=torch.float64)
    none = network(x, c_noise, network.embed(None, 2))
    assert torch.equal(none, network(x, c_noise, network.embed(torch.tensor([-1, -1]), 2)))
    first, second = network(x, c_noise, network.embed(torch.tensor([0, 1]), 2))
    assert (first - second).abs().max() > 0.01 < (first - none[0]).abs().max()
    first, second = network(x, torch.tensor([0.0, 0.5], dtype=torch.float64), None)
    assert (first - second).abs().max() > 0.01
    assert small(num_classes=0).embed(None, 2) is None


def test_parts_exist_and_attention_is_perturbable() -> None:
    network = small(dropout=0.1)
    for kind, patterns in network.parts.items():
        for pattern in patterns:
            assert matching_names(network, pattern, kind)
    assert matching_names(network, *network.parts["dropout"], "dropout") == [f"blocks.{i}.mlp.drop1" for i in range(3)]
    assert network.parts["attention"] == ("blocks.1.attention.core",)
    assert "label_embedding" not in small(num_classes=0).parts
    model = Preconditioned(network)
    x, sigma = torch.randn(2, 3, 8, 12, dtype=torch.float64), torch.tensor(0.5)
    perturbed = Perturbed([IdentityAttention()], positive=model)
    assert not torch.allclose(perturbed(x, sigma), model(x, sigma))


def test_dropout_only_in_training() -> None:
    network = small(dropout=0.5)
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    assert torch.equal(call(network, x), call(network, x))
    network.train()
    assert not torch.equal(call(network, x), call(network, x))


def test_recipe_round_trip() -> None:
    network = small(patch_size=4, qk_norm=True)
    other = build(network.recipe).double().eval()
    other.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    assert torch.equal(call(network, x), call(other, x))


def test_weights_in_bfloat16_stay_close() -> None:
    network = small().float()
    model = Preconditioned(network)
    x, sigma = torch.randn(2, 3, 8, 12), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        full = model(x, sigma)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x, sigma)
        half = Preconditioned(network.bfloat16())(x, sigma)
    for other in (mixed, half):
        assert other.dtype == torch.float32
        assert 0 < (other - full).abs().max() < 0.05 * full.abs().max()


def test_training_on_digits_with_adam() -> None:
    """At held-out noise levels the error is far below that of c_skip x."""
    images = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1  # (1797, 1, 8, 8) in [-1, 1]
    labels = torch.from_numpy(load_digits().target)
    network = DiffusionTransformer((1, 8, 8), num_classes=10, channels=48, depth=2, heads=3)
    model, loss, generator = Preconditioned(network), EDMLoss(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=3e-3, betas=(0.9, 0.99))
    noise = torch.randn(256, 1, 8, 8, generator=generator)

    def error(sigma: float) -> float:
        with torch.no_grad():
            denoised = model(images[-256:] + sigma * noise, torch.tensor(sigma), labels[-256:])
        return float((denoised - images[-256:]).square().mean())

    before = {sigma: error(sigma) for sigma in (0.3, 1.0)}
    for _ in range(80):
        rows = torch.randint(1500, (64,), generator=generator)
        terms = loss(model, images[rows], labels[rows], generator)
        optimizer.zero_grad()
        terms.objective.mean().backward()
        optimizer.step()
        model.constrain()
        loss.constrain()
    for sigma, untrained in before.items():
        assert error(sigma) < 0.6 * untrained

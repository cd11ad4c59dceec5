"""EDM2 U-Net: published parameter counts, initial output of zero, labels, shapes, names."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_guide.networks import EDM2UNet, MPConv, MPLinear, SelfAttention
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.utils.recipe import build

HEAD = 128  # the uncertainty head, a magnitude-preserving linear layer 128 -> 1, which published counts include


def small(**options: Any) -> EDM2UNet:
    """Return a network of two levels, 8x8 and 4x4."""
    settings = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attention_resolutions": [4]}
    return EDM2UNet(**{"data_shape": (3, 8, 8), "num_classes": 10, **settings, **options})


def with_gains(net: EDM2UNet) -> EDM2UNet:
    """Set all learned gains to nonzero values."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("gain"):
                parameter.fill_(0.7)
    return net


def run(net: EDM2UNet, x: Tensor, condition: Tensor | None = None) -> Tensor:
    """Return F of x at fixed noise levels."""
    return net(x, torch.linspace(-1, 1, len(x)), net.embed(condition, len(x)))


def count(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("channels", "published"),
    [
        (64, 31_309_029),
        (128, 124_713_253),
        (192, 280_212_837),
        (256, 497_807_781),
        (320, 777_498_085),
        (384, 1_119_283_749),
        (448, 1_523_164_773),
    ],
    ids=["XXS", "XS", "S", "M", "L", "XL", "XXL"],
)
def test_published_parameter_counts(channels: int, published: int) -> None:
    with torch.device("meta"):
        net = EDM2UNet((4, 64, 64), num_classes=1000, model_channels=channels)
    assert count(net) + HEAD == published
    assert sum(isinstance(module, SelfAttention) for module in net.modules()) == 15


@pytest.mark.parametrize(
    ("channels", "gmac"),
    [(64, 11.35)]
    + [
        pytest.param(*preset, marks=pytest.mark.slow)
        for preset in ((128, 44.95), (192, 100.8), (256, 179.0), (320, 279.3), (384, 402.0), (448, 546.9))
    ],
)
def test_multiply_adds_of_convolutions_and_products(channels: int, gmac: float) -> None:
    with torch.device("meta"):
        net = EDM2UNet((4, 64, 64), num_classes=1000, model_channels=channels)
        x, c_noise, label = torch.empty(1, 4, 64, 64), torch.empty(1), torch.empty(1, dtype=torch.int64)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(x, c_noise, net.embed(label, 1))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=1e-3)


def test_parameter_counts_of_the_small_nets() -> None:
    def of(shape: tuple[int, int, int], **options: Any) -> int:
        with torch.device("meta"):
            return count(EDM2UNet(shape, num_classes=10, **options))

    pilot = {"model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "attention_resolutions": [8, 4]}
    assert of((3, 8, 8), **pilot) == 2_938_059
    assert of((3, 32, 32), model_channels=32) + HEAD == 7_421_317
    assert (
        of((3, 32, 32), model_channels=32, channel_mult=[1, 2, 2], num_blocks=1, attention_resolutions=[8]) == 1_202_800
    )
    assert of((3, 16, 16), model_channels=32, channel_mult=[1, 2], num_blocks=2, attention_resolutions=[8]) == 1_009_263


@pytest.mark.parametrize("num_classes", [0, 10])
def test_untrained_network_is_zero_and_its_denoiser_is_c_skip_x(num_classes: int, generator: torch.Generator) -> None:
    net = small(num_classes=num_classes)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    assert torch.count_nonzero(run(net, x)) == 0
    sigma = torch.tensor([0.1, 3.0])
    expected = (0.25 / (sigma**2 + 0.25)).reshape(2, 1, 1, 1) * x
    torch.testing.assert_close(Preconditioned(net)(x, sigma), expected)


def test_labels_have_influence_only_after_training(generator: torch.Generator) -> None:
    net = small()
    with torch.no_grad():
        net.output.gain.fill_(1.0)  # type: ignore[union-attr]
    x = torch.randn(2, 3, 8, 8, generator=generator)
    first, second = torch.tensor([0, 1]), torch.tensor([7, 3])
    assert run(net, x, first).abs().max() > 0.1
    assert torch.equal(run(net, x, first), run(net, x, second))
    with_gains(net)
    assert not torch.allclose(run(net, x, first), run(net, x, second))


def test_minus_one_is_no_condition(generator: torch.Generator) -> None:
    net = with_gains(small())
    x = torch.randn(3, 3, 8, 8, generator=generator)
    nothing = run(net, x)
    assert torch.equal(run(net, x, torch.full((3,), -1)), nothing)
    mixed = run(net, x, torch.tensor([-1, 4, -1]))
    torch.testing.assert_close(mixed[[0, 2]], nothing[[0, 2]])
    assert not torch.allclose(mixed[1], nothing[1])


def test_label_embedding_is_its_column_with_unit_rms() -> None:
    net = small(num_classes=40, model_channels=64)
    embedding = net.embed(torch.arange(40), 40)
    assert embedding is not None
    assert isinstance(net.embedding_label, MPLinear)
    torch.testing.assert_close(embedding, net.embedding_label.effective_weight().T * 40**0.5)
    assert embedding.square().mean().sqrt().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("label", [10, -2, 1000])
def test_label_out_of_range_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=rf"class label {label} is out of range; expected 0 to 9"):
        small().embed(torch.tensor([0, label, 3]), 3)


@pytest.mark.parametrize("labels", [torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(3, 10)])
def test_labels_of_wrong_type_or_shape_are_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected integers of shape \(3,\)"):
        small().embed(labels, 3)


def test_unconditional_network_ignores_labels(generator: torch.Generator) -> None:
    net = with_gains(small(num_classes=0))
    x = torch.randn(2, 3, 8, 8, generator=generator)
    assert net.embed(torch.tensor([99, -7]), 2) is None
    assert torch.equal(run(net, x, torch.tensor([99, -7])), run(net, x))


def test_output_depends_on_the_noise_level(generator: torch.Generator) -> None:
    net = with_gains(small())
    x = torch.randn(1, 3, 8, 8, generator=generator).expand(2, -1, -1, -1)
    y = net(x, torch.tensor([-1.0, 0.5]), net.embed(None, 2))
    assert not torch.allclose(y[0], y[1])


def test_non_square_data_and_other_sizes_than_declared(generator: torch.Generator) -> None:
    net = with_gains(small(data_shape=(1, 8, 12), attention_resolutions=[4]))
    assert "4x6_block0" in net.encoder
    assert "decoder.4x6_block0.attention.core" in dict(net.named_modules())
    assert run(net, torch.randn(2, 1, 8, 12, generator=generator)).shape == (2, 1, 8, 12)
    assert run(net, torch.randn(2, 1, 16, 6, generator=generator)).shape == (2, 1, 16, 6)


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match="size 8x10 .* multiples of 4"):
        small(data_shape=(3, 8, 10), channel_mult=[1, 2, 2], attention_resolutions=[])
    with pytest.raises(ValueError, match="size 7x8 .* multiples of 2"):
        run(small(), torch.zeros(1, 3, 7, 8))
    with pytest.raises(ValueError, match=r"data_shape is \(2,\); expected \(channels, height, width\)"):
        small(data_shape=(2,))


def test_attention_at_a_missing_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"names \[16\], which no level has; .* \[8, 4\]"):
        small(attention_resolutions=[16, 4])


def test_blocks_with_attention() -> None:
    with torch.device("meta"):
        net = EDM2UNet((3, 32, 32), model_channels=32)  # levels 32, 16, 8, 4; attention at 16 and 8
    blocks = {name.rpartition(".attention.core")[0] for name, _ in net.named_modules() if name.endswith(".core")}
    expected = {f"encoder.{size}_block{i}" for size in ("16x16", "8x8") for i in range(3)}
    expected |= {f"decoder.{size}_block{i}" for size in ("16x16", "8x8") for i in range(4)} | {"decoder.4x4_in0"}
    assert blocks == expected
    assert all(re.fullmatch(r"\d+x\d+_(down|up|in[01]|block\d)", name) for name in [*net.encoder, *net.decoder])


def test_narrow_networks_have_attention(generator: torch.Generator) -> None:
    net = with_gains(small(model_channels=8))
    attention = net.encoder["4x4_block0"].attention
    assert attention.heads == 1
    x = torch.randn(1, 3, 8, 8, generator=generator)
    before = run(net, x)
    with torch.no_grad():
        attention.output.weight.neg_()
    assert not torch.allclose(run(net, x), before)


def test_every_parameter_has_a_gradient_tangent_to_its_sphere(generator: torch.Generator) -> None:
    net = with_gains(small(dropout=0.1))
    x = torch.randn(4, 3, 8, 8, generator=generator)
    run(net, x, torch.tensor([0, 1, -1, 2])).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    for name, layer in net.named_modules():
        if isinstance(layer, MPConv | MPLinear):
            assert layer.weight.grad is not None
            gradient, weight = layer.weight.grad.flatten(1), layer.weight.detach().flatten(1)
            radial = (gradient * weight).sum(1).abs()
            # eps leaves 1e-4 of the radial part; the rest is float32
            assert (radial <= 2e-3 * gradient.norm(dim=1) * weight.norm(dim=1) + 1e-9).all(), name


def test_activations_have_unit_magnitude() -> None:
    torch.manual_seed(0)
    net = with_gains(
        EDM2UNet((3, 16, 16), model_channels=32, channel_mult=[1, 2], num_blocks=2, attention_resolutions=[8])
    )
    with torch.no_grad():
        net.output.gain.fill_(1.0)  # type: ignore[union-attr]
        y = run(net, torch.randn(16, 3, 16, 16))
    assert 0.5 < y.square().mean().sqrt().item() < 1.5


def test_weights_start_on_their_spheres_and_constrain_projects_them() -> None:
    net = small()

    def distance() -> float:
        layers = [layer for layer in net.modules() if isinstance(layer, MPConv | MPLinear)]
        return max((layer.weight.flatten(1).square().mean(1).sqrt() - 1).abs().max().item() for layer in layers)

    assert distance() < 1e-3
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5)
    assert distance() > 0.4
    Preconditioned(net).constrain()
    assert distance() < 1e-3


def test_forward_pass_does_not_change_weights(generator: torch.Generator) -> None:
    net = with_gains(small())
    with torch.no_grad():
        net.input.weight.mul_(1.3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for training in (True, False):
        run(net.train(training), torch.randn(2, 3, 8, 8, generator=generator))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_dropout_only_in_training(generator: torch.Generator) -> None:
    net = with_gains(small(dropout=0.5))
    x = torch.randn(1, 3, 8, 8, generator=generator)
    assert torch.equal(run(net.eval(), x), run(net, x))
    assert not torch.equal(run(net.train(), x), run(net, x))


def test_recipe_round_trip(generator: torch.Generator) -> None:
    net = with_gains(small(num_classes=4, dropout=0.1))
    recipe = json.loads(json.dumps(net.recipe))
    torch.manual_seed(99)
    twin = build(recipe)
    assert list(twin.state_dict()) == list(net.state_dict())
    assert torch.equal(twin.embedding_noise.fourier.frequencies, net.embedding_noise.fourier.frequencies)
    twin.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 8, 8, generator=generator)
    assert torch.equal(run(twin.eval(), x), run(net.eval(), x))


def test_bfloat16_autocast_stays_near_float32(generator: torch.Generator) -> None:
    net = with_gains(small())
    x = torch.randn(4, 3, 8, 8, generator=generator)
    with torch.no_grad():
        exact = run(net, x, torch.tensor([0, 1, 2, -1]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = run(net, x, torch.tensor([0, 1, 2, -1]))
    assert (rough.float() - exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()


@pytest.mark.slow
def test_compiles_into_one_graph_with_label_checks(generator: torch.Generator) -> None:
    denoiser = Preconditioned(with_gains(small()))
    compiled = torch.compile(denoiser, backend="eager", fullgraph=True)
    x, sigma = torch.randn(3, 3, 8, 8, generator=generator), torch.tensor([0.1, 1.0, 9.0])
    torch.testing.assert_close(
        compiled(x, sigma, torch.tensor([0, -1, 9])), denoiser(x, sigma, torch.tensor([0, -1, 9]))
    )
    with pytest.raises(RuntimeError, match="class label outside -1 ... 9"):
        compiled(x, sigma, torch.tensor([0, 10, 9]))

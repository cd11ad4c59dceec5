"""Compilation and recomputation leave training, averages and snapshots unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks import PostHocEMA, TrainingOptimizations
from lightning_guide.network import Network
from lightning_guide.networks import MDM, DDPMpp, DiffusionTransformer, EDM2UNet, NCSNpp
from lightning_guide.preconditioning import Preconditioned
from tests.runs import TinyImages, assert_same, evaluation, snapshots, tiny_module, tiny_trainer

SHAPE = (1, 8, 8)


def unet(*, dropout: float = 0.2) -> EDM2UNet:
    """Return a tiny EDM2 U-Net."""
    return EDM2UNet(SHAPE, num_classes=3, model_channels=8, channel_mult=[1, 2], num_blocks=1,
                    attention_resolutions=[4], dropout=dropout)  # fmt: skip


def ddpmpp(kind: type[DDPMpp] = DDPMpp) -> DDPMpp:
    """Return a tiny DDPM++, or a NCSN++."""
    return kind(SHAPE, num_classes=3, model_channels=8, channel_mult=[1, 2], num_blocks=1, attention_resolutions=[4])


def transformer() -> DiffusionTransformer:
    """Return a tiny transformer."""
    return DiffusionTransformer(SHAPE, num_classes=3, channels=16, depth=2, heads=2, dropout=0.2)


NETWORKS: dict[str, Callable[[], Network]] = {
    "EDM2UNet": unet,
    "DDPMpp": ddpmpp,
    "NCSNpp": lambda: ddpmpp(NCSNpp),
    "DiffusionTransformer": transformer,
}


def trained(folder: Path, network: Callable[[], Network] = unet, **options: Any) -> dict[str, Tensor]:
    """Return the weights after 3 steps, with averages and an evaluation."""
    torch.manual_seed(0)
    module = tiny_module(network(), evaluations={"plain": evaluation()}, average=0.05)
    callbacks = [PostHocEMA(8), *([TrainingOptimizations(**options)] if options else [])]
    trainer = tiny_trainer(folder, *callbacks, steps=3, limit_val_batches=1.0, val_check_interval=3)
    trainer.fit(module, datamodule=TinyImages(shape=SHAPE))
    return dict(module.denoiser.state_dict())


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_recomputing_is_bit_identical(network: Callable[[], Network], tmp_path: Path) -> None:
    """Dropout masks are the same in the recomputation."""
    plain, recomputed = trained(tmp_path / "a", network), trained(tmp_path / "b", network, recompute=True)
    assert_same(recomputed, plain)
    assert_same(snapshots(tmp_path / "b"), snapshots(tmp_path / "a"))


@pytest.mark.parametrize("network", [*NETWORKS.values(), lambda: MDM((5, 8), channels=16, depth=4, heads=2, hidden=16)])
def test_recomputing_stores_fewer_activations(network: Callable[[], Network], generator: torch.Generator) -> None:
    tried = network()
    x = torch.randn(16, *tried.data_shape, generator=generator)
    kept, gradients = [], []
    for recompute in (False, True):
        tried.recompute = recompute
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(0 if isinstance(tensor, torch.nn.Parameter) else tensor.numel())
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            found = tried(x, torch.zeros(16), None)
        kept.append(sum(sizes))
        found.sum().backward()
        gradients.append([parameter.grad for parameter in tried.parameters() if parameter.grad is not None])
        tried.zero_grad()
    assert kept[1] < kept[0] / 2
    assert all(map(torch.equal, *gradients)) and gradients[0]


def test_settings_reach_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the comparisons of this file could hold because no setting was applied."""
    compiled: list[Any] = []
    monkeypatch.setattr(EDM2UNet, "compile", lambda network, mode: compiled.append((network, mode)))
    for options in ({"recompute": True}, {"compile": True}, {"compile": True, "mode": "max-autotune"}, {}):
        network = unet()
        trainer, module = tiny_trainer(tmp_path, steps=1), tiny_module(network, average=None)
        TrainingOptimizations(**options).on_fit_start(trainer, module)  # type: ignore[arg-type]
        assert network.recompute is ("recompute" in options)
        assert compiled == ([(network, options.get("mode", "default"))] if "compile" in options else [])
        compiled.clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # by the compiler
def test_compiled_training_equals_eager_training(tmp_path: Path) -> None:
    """Dropout is off: compiled code draws other masks."""
    plain, compiled = (trained(tmp_path / name, lambda: unet(dropout=0), compile=name == "b") for name in "ab")
    assert plain.keys() == compiled.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, rtol=1e-5, atol=2e-5)


def test_unsupported_models_are_rejected(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, TrainingOptimizations(recompute=True), steps=1)
    with pytest.raises(ValueError, match="a TinyNetwork cannot recompute its blocks"):
        trainer.fit(tiny_module(average=None), datamodule=TinyImages())
    assert isinstance(tiny_module().denoiser, Preconditioned)

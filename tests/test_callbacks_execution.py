"""Compilation and recomputation leave training, averages and snapshots unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks import PostHocEMA, TrainingOptimizations
from lightning_guide.networks import EDM2UNet
from lightning_guide.networks.dit import DiffusionTransformer
from lightning_guide.preconditioning import Preconditioned
from tests.runs import TinyImages, assert_same, evaluation, snapshots, tiny_module, tiny_trainer

SHAPE = (1, 8, 8)


def trained(folder: Path, *, dropout: float = 0.2, **options: Any) -> dict[str, Tensor]:
    """Return the weights after 3 steps, with averages and an evaluation."""
    torch.manual_seed(0)
    network = EDM2UNet(SHAPE, num_classes=3, model_channels=8, channel_mult=[1, 2], num_blocks=1,
                       attention_resolutions=[4], dropout=dropout)  # fmt: skip
    module = tiny_module(network, evaluations={"plain": evaluation()}, average=0.05)
    callbacks = [PostHocEMA(8), *([TrainingOptimizations(**options)] if options else [])]
    trainer = tiny_trainer(folder, *callbacks, steps=3, limit_val_batches=1.0, val_check_interval=3)
    trainer.fit(module, datamodule=TinyImages(shape=SHAPE))
    return dict(module.denoiser.state_dict())


def test_recomputing_is_bit_identical(tmp_path: Path) -> None:
    """Dropout masks are the same in the recomputation."""
    plain, recomputed = trained(tmp_path / "a"), trained(tmp_path / "b", recompute=True)
    assert_same(recomputed, plain)
    assert_same(snapshots(tmp_path / "b"), snapshots(tmp_path / "a"))


def test_recomputing_stores_fewer_activations(generator: torch.Generator) -> None:
    network = EDM2UNet(SHAPE, model_channels=8, channel_mult=[1, 2], num_blocks=1, attention_resolutions=[4])
    x = torch.randn(2, *SHAPE, generator=generator)
    kept = []
    for recompute in (False, True):
        network.recompute = recompute
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(x, torch.zeros(2), None)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 3


def test_settings_reach_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the comparisons of this file could hold because no setting was applied."""
    compiled: list[Any] = []
    monkeypatch.setattr(EDM2UNet, "compile", lambda network, mode: compiled.append((network, mode)))
    for options in ({"recompute": True}, {"compile": True}, {"compile": True, "mode": "max-autotune"}, {}):
        network = EDM2UNet(SHAPE, model_channels=8, channel_mult=[1, 2], num_blocks=1, attention_resolutions=[4])
        trainer, module = tiny_trainer(tmp_path, steps=1), tiny_module(network, average=None)
        TrainingOptimizations(**options).on_fit_start(trainer, module)  # type: ignore[arg-type]
        assert network.recompute is ("recompute" in options)
        assert compiled == ([(network, options.get("mode", "default"))] if "compile" in options else [])
        compiled.clear()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # by the compiler
def test_compiled_training_equals_eager_training(tmp_path: Path) -> None:
    """Dropout is off: compiled code draws other masks."""
    plain, compiled = trained(tmp_path / "a", dropout=0), trained(tmp_path / "b", dropout=0, compile=True)
    assert plain.keys() == compiled.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, rtol=1e-5, atol=2e-5)


def test_unsupported_models_are_rejected(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, TrainingOptimizations(recompute=True), steps=1)
    with pytest.raises(ValueError, match="a TinyNetwork cannot recompute its blocks"):
        trainer.fit(tiny_module(average=None), datamodule=TinyImages())
    network = DiffusionTransformer(SHAPE, num_classes=3, channels=16, depth=1, heads=2)
    with pytest.raises(ValueError, match="a DiffusionTransformer cannot recompute its blocks"):
        trainer.fit(tiny_module(network, average=None), datamodule=TinyImages(shape=SHAPE))
    assert isinstance(tiny_module().denoiser, Preconditioned)

"""Networks whose layers accelerate moves to the device one after another, from the CPU to the CPU here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import lightning_guide as lg
from lightning_guide.cli import main
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.optimization import LowRank
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersNetwork
from lightning_guide.seeds import SampleSeeds
from lightning_guide.training.losses import EDMLoss
from tests.runs import TinyImages, tiny_trainer

pytest.importorskip("accelerate", reason="needs the extra `pretrained`")
pytest.importorskip("diffusers", reason="needs the extra `pretrained`")


@pytest.mark.parametrize(
    "name", ["sd", "sdxl", "dit", "ddpm", "if", "pixart", "sd3", pytest.param("flux", marks=pytest.mark.slow)]
)
def test_an_offloaded_network_draws_the_same(name: str, tiny_pipeline: Callable[[str], Path]) -> None:
    model = lg.load(f"diffusers:{tiny_pipeline(name)}")
    assert isinstance(model, Preconditioned) and isinstance(model.network, DiffusersNetwork)
    generator = torch.Generator().manual_seed(0)
    condition = None
    if model.token_channels:
        condition = torch.randn(2, len(model.network.empty), model.token_channels, generator=generator)
    elif model.num_classes:
        condition = torch.tensor([3, -1])
    guidance = lg.ClassifierFreeGuidance(2.0, positive=model) if model.conditional else model

    def draw() -> torch.Tensor:
        return lg.Euler(3).sample(guidance, seeds=SampleSeeds(0, range(2)), condition=condition).x

    expected = draw()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.network.offload()
    assert all(weight.is_meta for weight in model.network.model.parameters())
    torch.testing.assert_close(draw(), expected)
    after = model.to("cpu").state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    model.network.offload("cpu")  # again, as for another device
    torch.testing.assert_close(draw(), expected)
    with pytest.raises(ValueError, match="has its forward replaced .by offloading hooks, for example"):
        lg.PerturbedAttentionGuidance(2.0, positive=model)(expected, torch.tensor(1.0), condition)


def test_an_imported_run_draws_the_same_offloaded(
    tiny_pipeline: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    drawn = {}
    for name in ("whole", "offloaded"):
        run = tmp_path / name
        words = ["import", "diffusers", str(tiny_pipeline("sd")), str(run), "--num_steps", "2"]
        main([*words, "--offload", "true" if name == "offloaded" else "false"])
        few = ["--model.prediction.num_samples", "2", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
        main(["predict", str(run), *few])
        drawn[name] = [path.read_bytes() for path in sorted(run.rglob("*.png"))]
    assert drawn["whole"] == drawn["offloaded"] and len(drawn["whole"]) == 2
    settings = yaml.safe_load((tmp_path / "offloaded/config.yaml").read_text())["model"]["init_args"]
    assert settings["denoiser"]["init_args"]["offload"] is True
    model = lg.load(settings["denoiser"]["init_args"]["source"], offload=True)
    assert isinstance(model, Preconditioned) and model.network.offloaded


def test_what_offloaded_weights_cannot_do_is_one_sentence(tiny_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    source = f"diffusers:{tiny_pipeline('ddpm')}"
    module = DiffusionModule(lg.Pretrained(source, offload=True), EDMLoss(), evaluations={}, average=None)
    with pytest.raises(ValueError, match="a network that is offloaded cannot be trained; expected offload: false"):
        tiny_trainer(tmp_path, steps=1).fit(module, TinyImages(shape=(3, 8, 8), classes=0, batch_size=2))
    with pytest.raises(ValueError, match="has its forward replaced .*; expected offload: false"):
        LowRank(lg.Pretrained(source, offload=True), rank=2)
    with pytest.raises(ValueError, match="QuantizedWeights cannot change weights that are offloaded; expected offload"):
        lg.QuantizedWeights(model=lg.Pretrained(source, offload=True)).resolve(None)
    with pytest.raises(ValueError, match="Neon cannot change weights that are offloaded; expected offload: false"):
        lg.Neon(lg.load(source), base=lg.load(source, offload=True)).resolve(None)
    words = ["import", "diffusers", source.removeprefix("diffusers:"), str(tmp_path / "run"), "--offload", "true"]
    with pytest.raises(SystemExit, match="expected copy or offload, not both"):
        main([*words, "--copy", "true"])
    with pytest.raises(SystemExit, match="offload is True, which the import of EDM2 snapshots does not have"):
        main(["import", "edm2", "a.pkl", str(tmp_path / "run"), "--offload", "true"])

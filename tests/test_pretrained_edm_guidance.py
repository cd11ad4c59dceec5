"""Every guidance of configs/guidance on the networks of EDM's snapshots, and their conditions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_guide as lg
from lightning_guide.denoiser import Denoiser
from lightning_guide.noise import KarrasGrid
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds
from lightning_guide.utils.modules import names_of_layers
from tests.direct_edm import ddpmpp_weights
from tests.direct_edm_adm import adm_weights
from tests.guidance_files import NO_TEXTS, OF_TEXTS, guidances_of
from tests.test_pretrained_edm import write

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")

FILES = sorted((Path(__file__).parent.parent / "configs" / "guidance").glob("*.yaml"))
EULER = Euler(KarrasGrid(2, sigma_min=0.3, sigma_max=5.0))
LABELS = torch.tensor([3, 0])


class Two:
    """A snapshot, and the same with weights far off."""

    def __init__(self, path: Path, weights: dict[str, Tensor]) -> None:
        self.main = lg.load(f"edm:{write(path, weights)}")
        self.other = copy.deepcopy(self.main)
        generator = torch.Generator().manual_seed(5)
        for parameter in self.other.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
        self.prompts = None
        self.plain = self.sample(self.main)

    def snapshot(self, **_: Any) -> Denoiser:
        return self.other

    def sample(self, denoiser: Denoiser) -> Tensor:
        x = EULER.sample(denoiser, seeds=SampleSeeds(0, range(2)), condition=LABELS).x
        assert x.isfinite().all()
        return x


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Two]:
    found: dict[str, Two] = {}

    def load(kind: str) -> Two:
        if kind not in found:
            weights = adm_weights() if kind == "ADM" else ddpmpp_weights(fourier=kind == "NCSN++")
            found[kind] = Two(tmp_path_factory.mktemp("edm") / "a.pkl", weights)
        return found[kind]

    return load


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("kind", ["DDPM++", "NCSN++", "ADM"])
def test_a_guidance_guides(loaded: Callable[[str], Two], kind: str, file: Path) -> None:
    models = loaded(kind)
    for guidance in guidances_of(file).values():
        if file.stem in OF_TEXTS:
            with pytest.raises(ValueError, match=NO_TEXTS):
                guidance.resolve(models)
            continue
        change = (models.sample(guidance.resolve(models)) - models.plain).abs().max() / models.plain.abs().max()
        assert change > 1e-5, "it does nothing"
    assert torch.equal(models.sample(models.main), models.plain), "the positive network has changed"


@pytest.mark.parametrize("kind", ["DDPM++", "NCSN++", "ADM"])
def test_parts_are_found(loaded: Callable[[str], Two], kind: str) -> None:
    main = loaded(kind).main
    assert isinstance(main, Preconditioned)
    assert {"attention", "block", "dropout", "noise_embedding", "label_embedding"} <= set(main.network.parts)
    for part, patterns in main.network.parts.items():
        assert names_of_layers(main.network, patterns, part)

"""SIMS and Neon of published models: sets of prompts in latents, auxiliaries whole and low-rank, merged weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_guide as lg
from callbacks import PostHocEMA, RunCheckpoint
from datamodules import Prompts, SelfSynthesized
from lightning_guide.cli import main
from lightning_guide.commands.averages import neon
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import SIMS, ClassifierFreeGuidance, Neon, Snapshot, Unadapted
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.optimization import LowRank
from lightning_guide.pretrained import Pretrained
from lightning_guide.runs.models import RunModels, finished_model
from lightning_guide.samplers import Euler
from lightning_guide.seeds import SampleSeeds, mix
from lightning_guide.training.losses import EpsilonLoss
from tests.processes import Processes
from tests.runs import evaluation, tiny_trainer

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")
TEXTS = ["a cat", "two dogs", "a tree"]
CFG = ClassifierFreeGuidance(2.0)


@pytest.fixture(scope="module")
def source(tiny_pipeline: Callable[[str], Path]) -> Path:
    return tiny_pipeline("sd")


def synthetic(source: Path | str, folder: Path | str, **changed: Any) -> SelfSynthesized:
    prompts = Prompts(changed.pop("texts", TEXTS), str(source), cache=str(Path(source).parent / "cache"))
    settings: dict[str, Any] = {"guidance": CFG, "sampler": Euler(4), "chunk_size": 2, "batch_size": 4}
    data = SelfSynthesized(prompts, f"diffusers:{source}", str(folder), 7, **settings | changed)
    data.prepare_data()
    return data


def draw(source: str, folder: str, rank: int, world: int) -> None:
    """Draw the share of one rank."""
    data = synthetic(source, folder)
    data._place = lambda: (rank, world)  # type: ignore[method-assign]
    data.setup("fit")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("synthetic")}


def test_a_set_of_prompts_is_drawn_in_latents_and_resumed(source: Path, tmp_path: Path) -> None:
    data = synthetic(source, tmp_path)
    data.setup("fit")
    z, tokens = data.training().take(torch.arange(7))
    assert tokens is not None and z.shape == (7, 4, 8, 8) and tokens.shape == (7, 77, 16)
    assert torch.equal(tokens, data.prompts()[torch.arange(7) % 3])
    model = CFG.resolve(RunModels(lg.load(f"diffusers:{source}"), run=".", device=torch.device("cpu")))
    x = Euler(4).sample(model, seeds=SampleSeeds(mix(0, "synthesis"), range(2)), condition=tokens[:2]).x
    torch.testing.assert_close(data.encode(z[:2]), x, rtol=1e-5, atol=1e-5)
    assert data.decode(x).shape == (2, 3, 16, 16) and data.decode(x).dtype == torch.uint8
    before = files(tmp_path)
    (tmp_path / "synthetic-000002.tar").unlink()  # as if it had been killed there
    (tmp_path / "synthetic-000001.tar").write_bytes(before["synthetic-000001.tar"][:700])
    synthetic(source, tmp_path).setup("fit")
    assert files(tmp_path) == before
    assert b"two dogs" in before["synthetic-000000.tar"]
    for changed, message in (
        ({"texts": ["a cat", "two dogs", "a car"]}, "prompts_sha256 was"),
        ({"guidance": ClassifierFreeGuidance(3.0)}, "guidance.*weight was 2.0 and is now 3.0"),
        ({"options": {"negative_prompt": "blurry"}}, "weights_sha256 was"),
    ):
        with pytest.raises(ValueError, match=message):
            synthetic(source, tmp_path, **changed).setup("fit")


@pytest.mark.slow
def test_two_ranks_write_the_bytes_of_one(source: Path, processes: Processes, tmp_path: Path) -> None:
    synthetic(source, tmp_path / "one").setup("fit")
    call = ("tests.test_sims_pretrained", "fit_two")
    (tmp_path / "two").mkdir()
    processes.call_ranks(2, call, tmp_path / "log", source=str(source), folder=str(tmp_path / "two"))
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one.keys() == two.keys() and all(one[name] == two[name] for name in one if name.endswith(".tar"))


def fit_two(source: str, folder: str) -> None:
    """Synthesize on two ranks and train a step."""
    from tests.ranks import options

    train(
        LowRank(Pretrained(f"diffusers:{source}"), rank=2),
        Path(folder) / "run",
        synthetic(source, folder),
        **options(2),
    )


def train(denoiser: Denoiser, run: Path, data: SelfSynthesized, **settings: Any) -> DiffusionModule:
    torch.manual_seed(0)
    module = DiffusionModule(
        denoiser, EpsilonLoss(), average=None, label_dropout=0.1, learning_rate=lg.training.ConstantRate(1e-2)
    )
    tiny_trainer(run, PostHocEMA(8), RunCheckpoint(2), steps=4, **settings).fit(module, datamodule=data)
    return module


def whole(source: Path) -> Denoiser:
    return Pretrained(f"diffusers:{source}")


def low_rank(source: Path) -> Denoiser:
    return LowRank(Pretrained(f"diffusers:{source}"), rank=2)


def output(model: Denoiser, tokens: Tensor) -> Tensor:
    x = 3 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return model.eval()(x, torch.tensor(3.0), tokens[:2])


@pytest.mark.parametrize("adapt", [pytest.param(whole, marks=pytest.mark.slow), low_rank])
def test_a_published_model_improves_on_its_own_samples(
    adapt: Callable[[Path], Denoiser], source: Path, tmp_path: Path
) -> None:
    """Synthesize, retrain, guide by SIMS and Neon, and write Neon as a pipeline of diffusers."""
    from diffusers import StableDiffusionPipeline

    data = synthetic(source, tmp_path / "set")
    train(adapt(source), tmp_path / "auxiliary", data)
    base, auxiliary = lg.load(f"diffusers:{source}"), finished_model(tmp_path / "auxiliary", 8)
    tokens = data.prompts()[torch.arange(2)]
    a, b = output(auxiliary, tokens), output(base, tokens)
    assert not torch.allclose(a, b, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output(auxiliary.merged, tokens), a, rtol=1e-4, atol=1e-4)

    tuned = lg.load(tmp_path / "auxiliary")
    reference = Unadapted() if isinstance(tuned, LowRank) else Pretrained(f"diffusers:{source}")
    models = RunModels(tuned, run=tmp_path / "auxiliary", device=torch.device("cpu"))
    sims = SIMS(Snapshot(8, 0.05), weight=1.5, base=reference).resolve(models)
    torch.testing.assert_close(output(sims, tokens), a + 1.5 * (b - a), rtol=1e-4, atol=1e-4)
    merged = Neon(Snapshot(8, 0.05), 1.5, base=reference).resolve(models)
    loops = {
        "sims": evaluation(SIMS(Snapshot(8, 0.05), 1.5, base=reference)),
        "neon": evaluation(Neon(Snapshot(8, 0.05), 1.5, base=reference)),
    }
    judged = DiffusionModule(tuned, EpsilonLoss(), average=None, evaluations=loops)
    tiny_trainer(tmp_path / "auxiliary").test(judged, datamodule=data, verbose=False)
    results = judged.evaluations.results
    assert results["sims"]["nfe"] == 2 * results["neon"]["nfe"]

    neon(f"diffusers:{source}", str(tmp_path / "auxiliary"), weight=1.5, auxiliary_images=8, out=str(tmp_path / "neon"))
    written = finished_model(tmp_path / "neon")
    torch.testing.assert_close(output(written, tokens), output(merged, tokens), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(output(written, tokens), b, rtol=1e-3, atol=1e-3)
    assert json.loads((tmp_path / "neon/neon.json").read_text())["base"] == {"run": f"diffusers:{source}"}
    main(["export", str(tmp_path / "neon"), str(tmp_path / "pipeline"), "--form", "diffusers", "--source", str(source)])
    StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline", local_files_only=True)
    again = lg.load(f"diffusers:{tmp_path / 'pipeline'}")
    torch.testing.assert_close(output(again, tokens), output(written, tokens), rtol=1e-4, atol=1e-4)

"""Low-rank fine-tuning of published models and runs: what is stored, how the model under it is found and shared."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lightning_guide as lg
from lightning_guide.cli import main
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Snapshot, Unadapted
from lightning_guide.optimization import LowRank
from lightning_guide.runs.models import RunModels, pretrained
from lightning_guide.training.sharding import clone_sharded
from tests.runs import checkpoint
from tests.test_pretrained_training import config, fit, published

pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")
Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tiny_pipeline: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(tiny_pipeline("ddpm"), tmp_path_factory.mktemp("models") / "published")


def other(folder: Path) -> Path:
    """Another model of the same architecture."""
    if not (target := folder.with_name("other")).exists():
        path = shutil.copytree(folder, target) / "unet/diffusion_pytorch_model.safetensors"
        save_file({name: 0.8 * weight for name, weight in load_file(path).items()}, path)
    return target


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of low-rank fine-tuning."""
    place = tmp_path_factory.mktemp("runs")
    settings = config(place / "run", low_rank(published(folder)), other(folder))
    settings["trainer"]["callbacks"][1]["init_args"]["every_images"] = 4
    unadapted = {"class_path": "Autoguidance", "init_args": {"guider": {"class_path": "Unadapted"}, "weight": 2}}
    early = {"class_path": "Snapshot", "init_args": {"images": "1/2", "sigma_rel": 0.05}}
    by_early = {"class_path": "Autoguidance", "init_args": {"guider": early, "weight": 2}}
    settings["model"]["init_args"]["guidances"] = {"unadapted": unadapted, "early": by_early}
    fit(settings, place / "config.yaml")
    return place / "run"


def low_rank(denoiser: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"class_path": "LowRank", "init_args": {"denoiser": denoiser, "rank": 2, **options}}


def moved(model: Denoiser, seed: int = 0) -> LowRank:
    """A model with U that is not zero."""
    assert isinstance(model, LowRank)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, added in model.additions():
            added.up.normal_(generator=generator)
    return model


def output(model: Denoiser, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return model.eval()(torch.randn(2, *model.data_shape, generator=generator), torch.tensor(1.5))


def shared(one: Denoiser, other: Denoiser) -> set[str]:
    """Names of large weights of `one` whose memory is that of `other` as well."""
    places = {each.data_ptr() for each in other.parameters()}
    return {name for name, each in one.named_parameters() if each.data_ptr() in places}


@pytest.mark.parametrize("name", ["sd", "sdxl", "dit", "sd3", "flux", "ddpm", "pixart", "if"])
def test_the_layers_are_those_that_peft_adapts(tiny_pipeline: Tiny, name: str) -> None:
    """With the target modules of diffusers' own scripts for fine-tuning."""
    peft = pytest.importorskip("peft", reason="needs peft, which is missing")
    model = LowRank(lg.Pretrained(f"diffusers:{tiny_pipeline(name)}"), rank=2)
    trained = {each for each, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * len(model.adapted) and all(each.endswith((".up", ".down")) for each in trained)
    theirs: Any = lg.load(f"diffusers:{tiny_pipeline(name)}").get_submodule("network.model")
    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=targets), theirs)
    chosen = [each.removesuffix(".lora_A") for each, _ in theirs.named_modules() if each.endswith(".lora_A")]
    assert model.adapted and sorted(model.adapted) == sorted(f"network.model.{each}" for each in chosen)


@pytest.mark.parametrize("layers", ["default", None], ids=["linear", "all"])
def test_the_sum_beside_a_layer_is_that_of_its_weight(tiny_pipeline: Tiny, layers: str | None) -> None:
    """Linear layers and convolutions compute c U (V x); the weight that they show is W + c U V."""
    plain = lg.load(f"diffusers:{tiny_pipeline('sd')}")
    model = moved(LowRank(lg.load(f"diffusers:{tiny_pipeline('sd')}"), rank=2, alpha=1.0, layers=layers))
    before = output(plain)
    with torch.no_grad():
        for name, added in model.additions():
            weight = plain.get_submodule(name).weight
            change = 0.5 * (added.up @ added.down).reshape(weight.shape)
            torch.testing.assert_close(model.denoiser.get_submodule(name).weight, weight + change)
            weight += change
    assert (output(model) - before).abs().max() > 0.01
    torch.testing.assert_close(output(model), output(plain), rtol=1e-4, atol=1e-4)


def test_a_model_in_half_precision_is_adapted_in_full(tiny_pipeline: Tiny) -> None:
    model = LowRank(lg.Pretrained(f"diffusers:{tiny_pipeline('sd')}", dtype="bfloat16"), rank=2)
    types = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}
    before = output(model)
    x = torch.randn(2, *model.data_shape)
    model.train()(x, torch.tensor(1.5)).square().mean().backward()
    gradients = [added.up.grad for _, added in model.additions()]
    assert all(each is not None and each.dtype == torch.float32 and each.isfinite().all() for each in gradients)
    average = clone_sharded(model)
    assert {weight.dtype for weight in average.parameters()} == {torch.float32, torch.bfloat16}
    torch.testing.assert_close(output(average), before, rtol=0.02, atol=0.02)
    assert (output(moved(model)) - before).abs().max() > 1e-3


def test_a_few_kilobytes_are_stored_and_found_again(folder: Path, run: Path) -> None:
    model = lg.load(run)
    stored = [name for name in checkpoint(run)["state_dict"] if not name.startswith("loss.")]
    assert all(name.endswith((".up", ".down", ".base")) for name in stored)
    (states,) = checkpoint(run)["optimizer_states"]
    assert len(states["param_groups"][0]["params"]) == len(stored) - 1 + len(checkpoint(run)["state_dict"]) - len(
        stored
    )
    published_size = sum(path.stat().st_size for path in (folder / "unet").glob("*.safetensors"))
    snapshots = list((run / "snapshots").glob("*.safetensors"))
    assert snapshots and all(path.stat().st_size < published_size / 2 for path in snapshots)
    tensors = load_file(snapshots[-1])
    assert tensors.keys() == model.state_dict().keys()
    assert {name.rpartition(".")[2] for name in tensors} == {"up", "down", "base"}
    assert not torch.equal(output(model), output(lg.load(f"diffusers:{folder}")))


def test_averages_of_the_factors_are_rebuilt(run: Path, tmp_path: Path) -> None:
    main(["reconstruct", str(run), "[0.08]", "--max_error", "2"])
    rebuilt = lg.load(run / "reconstructed", sigma_rel=0.08)
    assert rebuilt.state_dict().keys() == lg.load(run).state_dict().keys()
    assert output(rebuilt).isfinite().all()
    main(["export", str(run), str(tmp_path / "exported")])
    main(["pull", str(tmp_path / "exported"), str(tmp_path / "pulled")])
    assert torch.equal(output(lg.load(tmp_path / "pulled")), output(lg.load(run)))


def test_additions_to_another_model_are_refused(folder: Path, run: Path, tmp_path: Path) -> None:
    path, kept = folder / "unet/diffusion_pytorch_model.safetensors", folder.with_name("kept")
    weights = load_file(path)
    save_file({name: weight + 1e-7 * weight.abs().max() for name, weight in weights.items()}, path)  # rounding
    lg.load(run)
    save_file({name: 1.001 * weight for name, weight in weights.items()}, path)
    with pytest.raises(ValueError, match="were trained on another model than diffusers:.*published: its weights") as no:
        lg.load(run)
    assert "\n" not in str(no.value)
    copied = shutil.copytree(run, tmp_path / "run")
    with pytest.raises(SystemExit, match="were trained on another model than"):  # nor is the training continued
        main(["fit", "-c", str(copied / "config.yaml"), "--trainer.max_steps", "4"])
    save_file(weights, path)
    folder.rename(kept)
    try:
        with pytest.raises(ValueError, match="under the low-rank additions cannot be loaded again: .*published") as no:
            lg.load(run)
    finally:
        kept.rename(folder)
    assert "\n" not in str(no.value)


@pytest.mark.slow
def test_a_run_is_adapted_and_adapted_again(run: Path, folder: Path, tmp_path: Path) -> None:
    """A whole fine-tuning as the base of additions, and these as the base of others."""
    whole, first, second = tmp_path / "whole", tmp_path / "first", tmp_path / "second"
    fit(config(whole, published(folder), other(folder)), tmp_path / "config.yaml")
    for base, target in ((whole, first), (first, second)):
        denoiser = low_rank({"class_path": "lightning_guide.runs.pretrained", "init_args": {"run": str(base)}})
        fit(config(target, denoiser, other(folder)), tmp_path / "config.yaml")
    models = [lg.load(each) for each in (whole, first, second)]
    below = [model.unadapted for model in models[1:]]
    for model, base in zip(below, models[:2], strict=True):
        assert model is not None and torch.equal(output(model), output(base))
    assert all(len(model.state_dict()) == 2 * len(model.adapted) + 1 for model in models[1:])  # type: ignore[arg-type]
    assert not torch.equal(output(models[2]), output(models[1]))


def test_a_model_that_changed_since_it_was_loaded_is_stored_whole(folder: Path) -> None:
    model = lg.load(f"diffusers:{folder}")
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    adapted = LowRank(model, rank=2)
    assert adapted.state_dict().keys() >= {name for name, _ in adapted.named_parameters()}
    assert "base" not in adapted.state_dict() and adapted.recipe["init_args"]["denoiser"]["class_path"].endswith(
        "Preconditioned"
    )


def test_the_average_shares_the_model(folder: Path) -> None:
    model = moved(LowRank(lg.Pretrained(f"diffusers:{folder}"), rank=2))
    average = clone_sharded(model)
    names = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert shared(average, model) == names
    torch.testing.assert_close(output(average), output(model), rtol=1e-4, atol=1e-4)


def test_guiders_share_the_weights_of_the_model(run: Path, folder: Path) -> None:
    """Autoguidance by the model that is adapted and by an early snapshot: no second copy of the published weights."""
    tuned = lg.load(run)
    models = RunModels(tuned, run=run, device=torch.device("cpu"))
    frozen = {name for name, weight in tuned.named_parameters() if not name.endswith((".up", ".down"))}
    early, plain = Snapshot("1/2", 0.05).resolve(models), Unadapted().resolve(models)
    assert shared(early, tuned) == frozen
    assert shared(plain, tuned) == {name for name, _ in plain.named_parameters()}
    torch.testing.assert_close(output(plain), output(lg.load(f"diffusers:{folder}")), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output(early), output(lg.load(run, images=4)), rtol=1e-5, atol=1e-5)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(1.0)
    found = lg.Autoguidance(Unadapted(), weight=3.0).resolve(models)(x, sigma)
    torch.testing.assert_close(found, plain(x, sigma) + 3 * (tuned(x, sigma) - plain(x, sigma)))
    assert not torch.equal(output(early), output(tuned)) and not torch.equal(output(plain), output(early))
    with pytest.raises(
        ValueError, match="Unadapted is a LowRank model without its additions; .* Preconditioned, has n"
    ):
        Unadapted().resolve(RunModels(plain, run=run, device=torch.device("cpu")))


def test_a_run_is_evaluated_after_its_model_was_moved(
    folder: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The config names the new place; the weights are those of the snapshots by their fingerprint."""
    moved_to = tmp_path / "elsewhere"
    folder.rename(moved_to)
    try:
        place = ["--model.denoiser.init_args.denoiser.init_args.source", f"diffusers:{moved_to}"]
        copied = shutil.copytree(run, tmp_path / "run")
        main(["validate", str(copied), *place])
        assert "validate has ended" in capsys.readouterr().out
    finally:
        moved_to.rename(folder)


def test_the_additions_of_a_run_are_trained_further(run: Path) -> None:
    """Not the model under them, whose weights no checkpoint holds."""
    model = pretrained(str(run))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained and all(name.endswith((".up", ".down")) for name in trained)
    assert {name for name, weight in model.requires_grad_(False).named_parameters() if weight.requires_grad} == set()

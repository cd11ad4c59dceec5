"""Fine-tuned models back in the formats of diffusers and peft, read by these libraries themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

import lightning_guide as lg
from lightning_guide.cli import main
from lightning_guide.denoiser import Denoiser
from lightning_guide.networks import LogDensityMLP
from lightning_guide.optimization import LowRank
from lightning_guide.pretrained.diffusers_network import DiffusersNetwork, find_network
from lightning_guide.pretrained.lora import FILES
from lightning_guide.runs.writing import write_run
from tests.test_pretrained_low_rank import moved, output
from tests.test_pretrained_pipelines import PROMPTS, SIZES, STEPS, error, noise, sample, texts
from tests.tiny_pipelines import CLASSES

diffusers = pytest.importorskip("diffusers", reason="needs the extra `pretrained`")
pytest.importorskip("transformers", reason="needs the extra `pretrained`")
peft = pytest.importorskip("peft", reason="needs peft, which is missing")
Tiny = Callable[[str], Path]
# the tiny autoencoders halve sides, and diffusers' DiT has another embedding of the time than the published networks
OPTIONS: dict[str, dict[str, Any]] = {
    "sdxl": {"constants": SIZES},
    "dit": {"constants": {"downscale_freq_shift": 1.0}},
    "flux": {"data_shape": [4, 8, 8]},
}
ATTENTION = ("*.to_q", "*.to_k", "*.to_v", "*.to_out.0")


def source(tiny: Tiny, name: str) -> tuple[str, dict[str, Any]]:
    return f"diffusers:{tiny(name)}", OPTIONS.get(name, {})


def tuned(tiny: Tiny, name: str, **options: Any) -> LowRank:
    place, given = source(tiny, name)
    return moved(LowRank(lg.Pretrained(place, **given), **{"rank": 2, "alpha": 3.0} | options))


def run_of(model: Denoiser, run: Path) -> str:
    write_run(run, model, model.state_dict(), images=64, sigma_rel=0.05, planned_images=64)
    return str(run)


def network_of(model: Denoiser) -> DiffusersNetwork:
    found = find_network(model)
    assert found is not None
    return found[1]


def plain(tiny: Tiny, name: str, **options: Any) -> Denoiser:
    place, given = source(tiny, name)
    return lg.load(place, **given, **options)


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("layers", ["default", ["*.to_q", "*.ff.net.2", "*.resnets.0.conv1"]], ids=["default", "more"])
def test_diffusers_loads_the_lora(tiny_pipeline: Tiny, tmp_path: Path, name: str, layers: Any) -> None:
    if layers != "default" and name in ("sd3", "flux"):
        layers = ["*.to_q", "*.ff.net.2"]
    model = tuned(tiny_pipeline, name, layers=layers)
    main(["export", run_of(model, tmp_path / "run"), str(tmp_path / "lora"), "--form", "lora"])
    theirs = plain(tiny_pipeline, name)
    before = output(theirs)
    prefix = "unet" if name.startswith("sd") and name != "sd3" else "transformer"
    network_of(theirs).model.load_lora_adapter(str(tmp_path / "lora"), prefix=prefix, weight_name=FILES[0])
    assert error(output(theirs), output(model)) < 1e-4 < 1e-2 < error(before, output(model))
    assert error(output(plain(tiny_pipeline, name, lora=str(tmp_path / "lora"))), output(model)) < 1e-4
    with safe_open(tmp_path / "lora/pytorch_lora_weights.safetensors", "pt") as file:
        assert file.metadata()["base"] == str(tiny_pipeline(name))


@pytest.mark.parametrize("name", ["dit", "pixart", "sd"])
def test_peft_loads_the_lora(tiny_pipeline: Tiny, tmp_path: Path, name: str) -> None:
    model = tuned(tiny_pipeline, name)
    main(["export", run_of(model, tmp_path / "run"), str(tmp_path / "lora"), "--form", "peft"])
    theirs = plain(tiny_pipeline, name)
    peft.PeftModel.from_pretrained(network_of(theirs).model, str(tmp_path / "lora"))  # adds to the layers in place
    assert error(output(theirs), output(model)) < 1e-4
    assert error(output(plain(tiny_pipeline, name)), output(model)) > 1e-2


def test_training_starts_from_a_lora_of_peft(tiny_pipeline: Tiny, tmp_path: Path) -> None:
    """A file of rank 2 by peft, continued with rank 3, and the other way round."""
    theirs = plain(tiny_pipeline, "sd")
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=targets, init_lora_weights=False)
    adapted = peft.get_peft_model(network_of(theirs).model, config)
    adapted.save_pretrained(str(tmp_path / "theirs"))
    expected = output(theirs)
    place, _ = source(tiny_pipeline, "sd")
    model = LowRank(lg.Pretrained(place), rank=3, alpha=1.0, lora=str(tmp_path / "theirs"))
    assert error(output(model), expected) < 1e-4
    weights = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(weights) == 2 * len(model.adapted)
    run = run_of(model, tmp_path / "run")  # whose snapshots need the file no more
    (tmp_path / "theirs/adapter_model.safetensors").unlink()
    assert torch.equal(output(lg.load(run)), output(model))
    main(["export", run, str(tmp_path / "ours"), "--form", "lora"])
    again = LowRank(lg.Pretrained(place), rank=3, lora=str(tmp_path / "ours"))
    assert error(output(again), expected) < 1e-4
    with pytest.raises(ValueError, match=r"changes .*to_[a-z0.]+ with rank 3; LowRank has rank 2"):
        LowRank(lg.Pretrained(place), rank=2, lora=str(tmp_path / "ours"))
    with pytest.raises(ValueError, match="changes .*, which LowRank does not adapt; expected layers with it"):
        LowRank(lg.Pretrained(place), rank=3, layers=["*.resnets.0.conv1"], lora=str(tmp_path / "ours"))
    sdxl, _ = source(tiny_pipeline, "sdxl")
    with pytest.raises(ValueError, match="which the UNet2DConditionModel does not have|which do not fit the weight"):
        LowRank(lg.Pretrained(sdxl), rank=3, lora=str(tmp_path / "ours"))
    with pytest.raises(ValueError, match="is for a network of diffusers, which this model does not have"):
        LowRank(LogDensityMLP(width=8), rank=2, lora=str(tmp_path / "ours"))


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_several_are_stacked_with_weights(tiny_pipeline: Tiny, tmp_path: Path) -> None:
    places = []
    for seed in (0, 1):
        model = moved(tuned(tiny_pipeline, "sd", layers=ATTENTION if seed else "default"), seed)
        main(["export", run_of(model, tmp_path / f"run{seed}"), str(tmp_path / f"lora{seed}"), "--form", "lora"])
        places.append(str(tmp_path / f"lora{seed}"))
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_pipeline("sd"), local_files_only=True)
    for name, place in zip("ab", places, strict=True):
        pipe.load_lora_weights(place, adapter_name=name, weight_name=FILES[0])
    pipe.set_adapters(["a", "b"], adapter_weights=[0.5, -0.25])
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = {name.replace(".base_layer", ""): weight for name, weight in pipe.unet.state_dict().items()}
    ours = network_of(plain(tiny_pipeline, "sd", lora=places, lora_scale=[0.5, -0.25])).model.state_dict()
    for name, weight in fused.items():
        torch.testing.assert_close(ours[name], weight, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="lora names 2 and lora_scale 3; expected one factor, or one for each"):
        plain(tiny_pipeline, "sd", lora=places, lora_scale=[1.0, 1.0, 1.0])


def final_latents(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Tensor]:
    """The pipeline in `folder`, and its final latents under guidance."""
    pipe = getattr(diffusers, CLASSES[name]).from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if name != "sdxl":
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, set_alpha_to_one=True)
    if name == "dit":
        decoded: list[Tensor] = []
        decode = pipe.vae.decode
        monkeypatch.setattr(pipe.vae, "decode", lambda latents: decoded.append(latents) or decode(latents))  # type: ignore[func-returns-value]
        generator = torch.Generator().manual_seed(3)
        pipe([3, 7], guidance_scale=4.0, generator=generator, num_inference_steps=STEPS, output_type="np")
        return pipe, decoded[0] * pipe.vae.config.scaling_factor
    sizes = {"height": 16, "width": 16, "output_type": "latent", "num_inference_steps": STEPS}
    return pipe, pipe(PROMPTS, guidance_scale=4.0, latents=noise(), **sizes).images


@pytest.mark.parametrize("name", ["sd", pytest.param("sdxl", marks=pytest.mark.slow), "dit"])
@pytest.mark.parametrize("kind", ["whole", pytest.param("low rank", marks=pytest.mark.slow), "low rank of a run"])
def test_diffusers_opens_the_folder(
    tiny_pipeline: Tiny, tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Final latents of the real pipeline are those of our sampler with the tuned model."""
    place, options = source(tiny_pipeline, name)
    model: Denoiser = lg.Pretrained(place, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters() if kind != "low rank" else ():
            weight += 0.1 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    run = run_of(model, tmp_path / "run")
    if kind != "whole":
        base = model if kind == "low rank" else lg.load(run)
        model = moved(LowRank(base, rank=2, alpha=0.5))
        run = run_of(model, tmp_path / "adapted")
    link = ["--link", "true"] if kind == "whole" else []
    given = [] if kind == "low rank" else ["--source", place.removeprefix("diffusers:")]
    main(["export", run, str(tmp_path / "out"), "--form", "diffusers", *given, *link])
    pipe, expected = final_latents(tmp_path / "out", name, monkeypatch)
    condition, empty = (torch.tensor([3, 7]), None) if name == "dit" else texts(tiny_pipeline(name), None)
    network = network_of(model)
    if empty is not None:
        torch.testing.assert_close(network.empty, empty)
    assert error(sample(pipe, network, noise(), condition, 4.0), expected) < 1e-4
    _, before = final_latents(tiny_pipeline(name), name, monkeypatch)
    assert error(before, expected) > 1e-2
    assert (tmp_path / "out/vae/config.json").is_symlink() == bool(link)


def test_what_cannot_be_exported_is_named(tiny_pipeline: Tiny, tmp_path: Path) -> None:
    place, _ = source(tiny_pipeline, "sd")
    whole = run_of(lg.Pretrained(place), tmp_path / "whole")
    other = run_of(LogDensityMLP(width=8), tmp_path / "mlp")
    for words, said in (
        ([whole, "--form", "lora"], "has no low-rank additions; expected a LowRank, got a Preconditioned"),
        ([whole, "--form", "diffusers"], "names no source diffusers:PLACE; expected --source, its pipeline"),
        ([other, "--form", "peft"], "is no network of diffusers, which the form peft is for; expected model"),
        ([whole, "--form", "lora", "--link", "true"], "source and link are of the form diffusers"),
        (
            [whole, "--form", "diffusers", "--source", str(tiny_pipeline("sdxl"))],
            "of the model has the shape .*; expected the model that it was made of",
        ),
        ([whole, "--form", "diffusers", "--source", str(tiny_pipeline("dit"))], "the model is a UNet2DConditionModel"),
    ):
        with pytest.raises(SystemExit, match=said) as refused:
            main(["export", words[0], str(tmp_path / "out"), *words[1:]])
        assert str(refused.value).count("\n") <= 1 and not (tmp_path / "out/model_index.json").exists()

"""Published models by one name: folders of diffusers, read as the denoisers and latent spaces that they describe."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

import lightning_guide as lg
from lightning_guide.preconditioning import EpsilonPrediction, Preconditioned
from lightning_guide.pretrained import DiffusersFolder, DiffusersNetwork, Pretrained
from lightning_guide.pretrained.diffusers_folder import _wanted
from lightning_guide.pretrained.text_encoders import _wanted as of_encoders
from lightning_guide.utils.recipe import build

diffusers = pytest.importorskip("diffusers", reason="needs diffusers (the extra pretrained), which is missing")
transformers = pytest.importorskip("transformers", reason="needs transformers (the extra pretrained), which is missing")

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def folders(tiny_pipeline: Callable[[str], Path]) -> dict[str, Path]:
    """Tiny pipelines as they are published."""
    return {name: tiny_pipeline(name) for name in ("sd", "ddpm", "dit")}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp()))


def test_a_folder_is_the_model_that_it_describes(folders: dict[str, Path]) -> None:
    model = lg.load(f"diffusers:{folders['sd']}")
    assert isinstance(model, Preconditioned) and isinstance(model.network, DiffusersNetwork)
    assert isinstance(model.preconditioning, EpsilonPrediction) and model.sigma_data == 1
    assert model.sigma_max == pytest.approx(14.6146, abs=1e-3) and (model.data_shape, model.token_channels) == (
        (4, 8, 8),
        16,
    )
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    unet = diffusers.UNet2DConditionModel.from_pretrained(folders["sd"], subfolder="unet")
    tokens, x, sigma = torch.randn(2, 77, 16), torch.randn(2, 4, 8, 8), torch.tensor([3.0, 0.4])
    levels = model.preconditioning.schedule.timestep(sigma.double()).float()  # type: ignore[union-attr]
    s = sigma.reshape(2, 1, 1, 1)
    with torch.no_grad():
        expected = x - s * unet(x / (1 + s**2).sqrt(), levels, tokens).sample
    torch.testing.assert_close(model(x, sigma, tokens), expected, rtol=1e-4, atol=1e-4)


def test_weights_that_are_not_finite_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["ddpm"], tmp_path / "ddpm")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    for bad in (float("nan"), float("inf")):
        weights = load_file(file)
        weights["conv_out.bias"][1] = bad
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"the weight network\.model\.conv_out\.bias of diffusers:.* not finite"):
            lg.load(f"diffusers:{folder}")


def test_a_folder_or_kind_that_is_no_run_is_explained(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="is a folder of diffusers, and no run; expected diffusers:.*"):
        lg.load(folders["sd"])
    with pytest.raises(ValueError, match="source of a published model is 'sd:.*'; expected diffusers:PLACE, edm2:"):
        lg.load(f"sd:{folders['sd']}")


def test_no_condition_is_the_empty_or_a_negative_prompt(folders: dict[str, Path]) -> None:
    source = f"diffusers:{folders['sd']}"
    texts = lg.encode_prompts(folders["sd"], ["", "ugly"])
    x, sigma = torch.randn(2, 4, 8, 8), torch.tensor(2.0)
    for number, chosen in enumerate((None, "ugly")):
        model = lg.load(source, negative_prompt=chosen)
        expected = model(x, sigma, texts[number].expand(2, 77, 16))
        torch.testing.assert_close(model(x, sigma), expected, rtol=2e-3, atol=2e-3)  # kept in half precision
    with pytest.raises(ValueError, match="reads no texts; expected no negative_prompt, got 'ugly'"):
        lg.load(f"diffusers:{folders['ddpm']}", negative_prompt="ugly")


def test_latents_are_those_of_the_autoencoder(folders: dict[str, Path]) -> None:
    space = DiffusersFolder(folders["sd"]).latent_space()
    vae = diffusers.AutoencoderKL.from_pretrained(folders["sd"], subfolder="vae").eval()
    x = torch.randn(2, 4, 8, 8)
    assert space is not None and DiffusersFolder(folders["ddpm"]).latent_space() is None
    with torch.no_grad():
        torch.testing.assert_close(space(x), vae.decode(x / 0.18215).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_float32_samples(folders: dict[str, Path], dtype: Any) -> None:
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(2.0)
    half, full = (lg.load(f"diffusers:{folders['ddpm']}", dtype=each) for each in (dtype, "float32"))
    assert {weight.dtype for weight in half.parameters()} == {getattr(torch, dtype)}
    assert half(x, sigma).dtype == torch.float32
    torch.testing.assert_close(half(x, sigma), full(x, sigma), rtol=0.1, atol=0.1)


def test_it_trains_and_is_built_again_without_its_folder(folders: dict[str, Path]) -> None:
    model = Pretrained(f"diffusers:{folders['dit']}")
    assert all(parameter.requires_grad for parameter in model.parameters())
    x, sigma, labels = torch.randn(2, 4, 8, 8), torch.tensor(1.5), torch.tensor([3, -1])
    copy = build(json.loads(json.dumps(model.recipe)))
    copy.load_state_dict(model.state_dict())
    model.eval()
    torch.testing.assert_close(copy.eval()(x, sigma, labels), model(x, sigma, labels))


def unet_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    """A change of the tensors of the network."""

    def changed(folder: Path) -> None:
        path = folder / "unet/diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return changed


def json_of(part: str, **settings: Any) -> Change:
    """A change of settings in a JSON file."""

    def changed(folder: Path) -> None:
        content = json.loads((folder / part).read_text())
        (folder / part).write_text(json.dumps(content | settings))

    return changed


def pickled(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


def wider(folder: Path) -> None:
    config = transformers.CLIPTextConfig.from_pretrained(folder / "text_encoder", hidden_size=24)
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")


BROKEN: dict[str, tuple[Change, str]] = {
    "no network": (lambda f: shutil.rmtree(f / "unet"), "holds no network: expected unet/config.json"),
    "no weights": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(),
        "holds no diffusion_pytorch_model.safetensors, but no weights",
    ),
    "pickles": (pickled, "but diffusion_pytorch_model.bin; pickled weights are not read"),
    "missing": (unet_weights(lambda t: t.pop("conv_in.weight")), r"lack conv_in.weight; expected those of the UNet2D"),
    "unexpected": (unet_weights(lambda t: t.update(more=torch.zeros(1))), "hold more; expected those of the UNet2D"),
    "other shape": (unet_weights(lambda t: t.update({"conv_in.bias": torch.zeros(5)})), "conv_in.bias"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "does not say what its network predicts"),
    "unknown scheduler": (
        json_of("scheduler/scheduler_config.json", _class_name="KDPM2DiscreteScheduler"),
        "the scheduler KDPM2DiscreteScheduler is not supported",
    ),
    "unknown network": (json_of("unet/config.json", _class_name="UVit2DModel"), "UVit2DModel is not supported"),
    "inpainting": (json_of("unet/config.json", in_channels=9), "in_channels=9 and out_channels=4"),
    "damaged": (lambda f: (f / "unet/config.json").write_text("{"), "config.json"),
    "mixed encoders": (
        wider,
        "the text encoders of .* give 24 channels, but its UNet2DConditionModel reads 16; expected parts of one model",
    ),
    "mixed autoencoder": (
        json_of("vae/config.json", latent_channels=16),
        "the autoencoder of .* has 16 channels, but its UNet2DConditionModel denoises 4; expected parts of one model",
    ),
    "no index": (lambda f: (f / "model_index.json").write_text("[]"), "model_index.json holds a list; expected a JSON"),
    "no encoders": (lambda f: (f / "model_index.json").unlink(), "no model_index.json with text encoders"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    change, expected = BROKEN[name]
    folder = tmp_path / "model"
    shutil.copytree(folders["sd"], folder)
    change(folder)
    with pytest.raises(ValueError, match=expected) as refused:
        lg.load(f"diffusers:{folder}")
    assert "\n" not in str(refused.value)


def test_settings_that_the_library_does_not_know_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["ddpm"], tmp_path / "model")
    json_of("unet/config.json", another_norm="layer", _name_or_path="somewhere")(tmp_path / "model")
    with pytest.warns(UserWarning, match="config of the UNet2DModel has another_norm, which this version of diffusers"):
        found = lg.load(f"diffusers:{tmp_path / 'model'}")
    x, expected = torch.randn(1, 3, 8, 8), lg.load(f"diffusers:{folders['ddpm']}")
    assert torch.equal(found(x, torch.tensor(1.0)), expected(x, torch.tensor(1.0)))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("diffusers:", "the source of a published model is 'diffusers:'; expected diffusers:PLACE"),
        ("keras:model", "the source of a published model is 'keras:model'"),
        ("diffusers:/nowhere/model", "the folder /nowhere/model does not exist; expected one written by diffusers"),
        ("diffusers:owner/name", "owner/name is neither a folder nor can it be read from the Hugging Face hub"),
    ],
)
def test_sources_that_do_not_exist_are_named(source: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Pretrained(source)


class Hub(BaseHTTPRequestHandler):
    """A hub that answers with the error of its status, as the real one does."""

    def do_GET(self) -> None:
        status, code = (401, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        code, status = ("RevisionNotFound", 404) if "revision/old" in self.path else (code, status)
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("owner/gated", {}, r"owner/gated is gated: accept its terms at https://huggingface.co/owner/gated and log in"),
        ("owner/none", {}, r"the Hugging Face hub has no owner/none, or it is private"),
        ("owner/name", {"revision": "old"}, r"owner/name on the Hugging Face hub has no revision old"),
    ],
)
def test_what_the_hub_refuses_is_named(
    name: str, options: Any, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ValueError, match=expected):
        Pretrained(f"diffusers:{name}", **options)
    server.shutdown()
    server.server_close()


def test_one_copy_of_the_weights_is_downloaded() -> None:
    """Of files as they lie beside each other in published repositories."""
    stem = "diffusion_pytorch_model"
    copies = [f"{stem}.{end}" for end in ("safetensors", "fp16.safetensors", "non_ema.safetensors", "bin")]
    files = [f"unet/{each}" for each in copies] + [f"vae/{stem}.safetensors", f"vae/{stem}.fp16.safetensors"]
    files += [f"text_encoder/{each}" for each in ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin")]
    files += ["v1-5.safetensors", "model_index.json", f"transformer/{stem}-00001-of-00002.safetensors"]
    files += [f"transformer/{stem}.fp16-00001-of-00002.safetensors"]
    full = list(filter_repo_objects(files, allow_patterns=_wanted(None) + of_encoders(None)))
    assert full == [files[0], files[4], files[6], files[10], files[11]]
    half = list(filter_repo_objects(files, allow_patterns=_wanted("fp16") + of_encoders("fp16")))
    assert half == [files[1], files[4], files[7], files[10], files[12]]


def test_options_of_runs_and_of_published_models_are_kept_apart(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a published model, which has no images and sigma_rel"):
        lg.load(f"diffusers:{folders['sd']}", images=3)
    with pytest.raises(ValueError, match="is a run, which has no variant; expected images and sigma_rel"):
        lg.load(tmp_path, variant="fp16")

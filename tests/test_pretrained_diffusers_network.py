"""Networks of diffusers: outputs, conditions, precision, recipes, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lightning_guide as lg
from lightning_guide.guidance.negatives import (
    GaussianCondition,
    IdentityAttention,
    NoisyNoiseEmbedding,
    SamplingDropout,
    SkipBlocks,
)
from lightning_guide.guidance.perturbation import Perturbation, Perturbed
from lightning_guide.network import Network
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained import DiffusersNetwork
from lightning_guide.utils.modules import names_of_layers
from lightning_guide.utils.recipe import build
from tests.tiny_pipelines import TEXT_LENGTHS

diffusers = pytest.importorskip("diffusers", reason="needs the extra `pretrained`")

Tiny = Callable[[str], Path]
FOLDERS = {
    "sd": "unet",
    "sdxl": "unet",
    "if": "unet",
    "ddpm": "unet",
    "consistency": "unet",
    "dit": "transformer",
    "pixart": "transformer",
    "sd3": "transformer",
    "flux": "transformer",
}


def model(tiny: Tiny, name: str) -> Any:
    """The denoising network in the folder of a pipeline."""
    folder = tiny(name) / FOLDERS[name]
    kind = json.loads((folder / "config.json").read_text())["_class_name"]
    return getattr(diffusers, kind).from_pretrained(folder, local_files_only=True)


def network(tiny: Tiny, name: str, **options: Any) -> DiffusersNetwork:
    """Our network around it."""
    defaults: dict[str, Any] = {"empty_length": TEXT_LENGTHS[name]} if name in TEXT_LENGTHS else {}
    if name == "flux":
        defaults["data_shape"] = (4, 8, 8)
    return DiffusersNetwork.of(model(tiny, name), **defaults | options)


def condition(network: Network, batch: int = 3) -> Tensor | None:
    """Random labels or tokens."""
    generator = torch.Generator().manual_seed(2)
    if network.token_channels:
        return torch.randn(batch, len(network.empty), network.token_channels, generator=generator)  # type: ignore[arg-type]
    return torch.randint(network.num_classes, (batch,), generator=generator) if network.num_classes else None


def evaluate(network: Network, given: Tensor | None, batch: int = 3) -> Tensor:
    """F at random x and three times."""
    x = torch.randn(batch, *network.data_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(x, torch.tensor([1.0, 250.5, 999.0])[:batch], network.embed(given, batch))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_recipe_and_a_state_dict_rebuild_the_network(tiny_pipeline: Tiny, name: str) -> None:
    one = network(tiny_pipeline, name)
    other = build(json.loads(json.dumps(one.recipe))).eval()
    assert not torch.equal(evaluate(other, condition(one)), evaluate(one, condition(one)))
    other.load_state_dict(one.state_dict())
    assert torch.equal(evaluate(other, condition(one)), evaluate(one, condition(one)))


@pytest.mark.parametrize("name", FOLDERS)
def test_parts_exist(tiny_pipeline: Tiny, name: str) -> None:
    found = network(tiny_pipeline, name)
    for kind, patterns in found.parts.items():
        if kind != "attention":
            assert names_of_layers(found, patterns, kind)


def test_samples_without_a_text_get_the_empty_one(tiny_pipeline: Tiny) -> None:
    found = network(tiny_pipeline, "sd")
    given = condition(found)
    assert given is not None
    found.empty.copy_(given[1])
    missing = given.clone()
    missing[0] = 0
    assert torch.equal(evaluate(found, missing)[0], evaluate(found, given[[1, 1, 2]])[0])
    assert torch.equal(evaluate(found, None), evaluate(found, given[[1, 1, 1]]))


def test_the_null_class_and_the_shared_embedder_of_a_dit(tiny_pipeline: Tiny) -> None:
    theirs, ours = model(tiny_pipeline, "dit"), network(tiny_pipeline, "dit", constants={"downscale_freq_shift": 1.0})
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    t, labels = torch.tensor([1.0, 250.5, 999.0]), torch.tensor([3, 1000, 0])
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=labels).sample
    assert torch.allclose(evaluate(ours, torch.tensor([3, -1, 0])), expected, atol=1e-5)
    assert not torch.allclose(evaluate(network(tiny_pipeline, "dit"), torch.tensor([3, -1, 0])), expected, atol=1e-3)
    assert torch.equal(evaluate(ours.train(), torch.tensor([3, -1, 0])), evaluate(ours, torch.tensor([3, -1, 0])))


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.1), (torch.float64, 1e-5)])
def test_other_precisions(tiny_pipeline: Tiny, name: str, dtype: torch.dtype, tolerance: float) -> None:
    found = network(tiny_pipeline, name)
    expected = evaluate(found, condition(found))
    other = evaluate(found.to(dtype), condition(found))
    assert other.dtype == dtype
    assert float((other - expected).abs().max() / expected.abs().max()) < tolerance


@pytest.mark.parametrize("name", ["sd", "dit", "sd3"])
def test_recomputing_gives_the_same_gradients_with_fewer_activations(tiny_pipeline: Tiny, name: str) -> None:
    found = network(tiny_pipeline, name)
    gradients, kept = [], []
    for found.recompute in (False, True):
        found.zero_grad()
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        x = torch.randn(2, *found.data_shape, generator=torch.Generator().manual_seed(1))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = found(x, torch.tensor([1.0, 500.0]), found.embed(condition(found, 2), 2)).square().sum()
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in found.parameters() if p.grad is not None]))
        kept.append(sum(sizes))
    assert found.recompute and torch.allclose(*gradients, rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max()))
    assert kept[1] < kept[0] / 2


PERTURBATIONS: dict[str, Perturbation] = {
    "noise_embedding": NoisyNoiseEmbedding(),
    "label_embedding": GaussianCondition(),
    "dropout": SamplingDropout(0.3),
    "block": SkipBlocks(),
    "attention": IdentityAttention(),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_every_part_can_be_perturbed(tiny_pipeline: Tiny, name: str) -> None:
    one = Preconditioned(network(tiny_pipeline, name), sigma_data=1.0)
    x = torch.randn(3, *one.data_shape, generator=torch.Generator().manual_seed(1))
    given, sigma = condition(one.network), torch.tensor(2.0)
    with torch.no_grad():
        plain = one(x, sigma, given)
        parts = one.network.parts
        assert {"noise_embedding", "dropout", "block", "attention"} <= parts.keys()
        assert ("label_embedding" in parts) == one.conditional
        for kind in parts.keys() - {"projection"}:  # for low-rank additions
            perturbed = Perturbed([PERTURBATIONS[kind]], positive=one)(x, sigma, given)
            assert float((perturbed - plain).abs().max() / plain.abs().max()) > 1e-5, kind
        assert torch.equal(one(x, sigma, given), plain)


def test_transformers_of_old_folders_are_found_by_their_norm(tiny_pipeline: Tiny, tmp_path: Path) -> None:
    for name in ("dit", "pixart"):
        folder = tmp_path / name
        shutil.copytree(tiny_pipeline(name), folder)
        path = folder / "transformer/config.json"
        config = json.loads(path.read_text()) | {"_class_name": "Transformer2DModel", "num_vector_embeds": None}
        path.write_text(json.dumps(config))
        old = lg.load(f"diffusers:{folder}")
        new = lg.load(f"diffusers:{tiny_pipeline(name)}")
        x, sigma = torch.randn(2, 4, 8, 8), torch.tensor(2.0)
        assert torch.equal(old(x, sigma), new(x, sigma))


UNET = {"sample_size": 8, "block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1}
CROSS = UNET | {
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 8,
}


@pytest.mark.parametrize(
    ("architecture", "config", "options", "sentence"),
    [
        ("UVit2DModel", {}, {}, "the architecture UVit2DModel is not supported; supported: UNet2DModel, "),
        (
            "UNet2DConditionModel",
            CROSS | {"time_cond_proj_dim": 256},
            {},
            "with time_cond_proj_dim=256 is not supported",
        ),
        ("UNet2DConditionModel", CROSS | {"in_channels": 9}, {}, "in_channels=9 and out_channels=4 is not supported"),
        ("UNet2DConditionModel", CROSS | {"addition_embed_type": "image"}, {}, "addition_embed_type='image' is not"),
        ("UNet2DConditionModel", CROSS, {}, "empty_length of UNet2DConditionModel is 0; expected the number of tokens"),
        ("UNet2DConditionModel", CROSS, {"empty_length": 4, "data_shape": (3, 8, 8)}, r"expected \(4, height, width\)"),
        ("UNet2DConditionModel", CROSS, {"empty_length": 4, "data_shape": (4, 9, 8)}, "the size 9x8 cannot be halved"),
        ("UNet2DConditionModel", CROSS, {"empty_length": 4, "vector": 8}, "vector is 8; the config of UNet2DCondition"),
        ("UNet2DConditionModel", CROSS, {"empty_length": 4, "constants": {"guidance": 1}}, "has no constant guidance"),
    ],
)
def test_refusals(architecture: str, config: dict[str, Any], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DiffusersNetwork(architecture, config, **options)


def test_conditions_that_do_not_fit_are_refused(tiny_pipeline: Tiny) -> None:
    found = network(tiny_pipeline, "sd")
    with pytest.raises(ValueError, match="a text has 76 tokens; UNet2DConditionModel has no mask for them and expects"):
        found.embed(torch.ones(2, 76, 16), 2)
    with pytest.raises(ValueError, match=r"expected embeddings \(2, tokens, 16\)"):
        found.embed(torch.ones(2, 77, 8), 2)
    labels = DiffusersNetwork(
        "UNet2DModel", network(tiny_pipeline, "ddpm").recipe["init_args"]["config"] | {"num_class_embeds": 5}
    )
    with pytest.raises(ValueError, match="-1 is out of range; expected 0 to 4, this network has no class for no"):
        labels.embed(None, 2)


def test_another_model_is_refused_by_its_first_weight(tiny_pipeline: Tiny) -> None:
    found = network(tiny_pipeline, "ddpm")
    config = dict(found.model.config) | {"block_out_channels": (8, 8)}
    with pytest.raises(ValueError, match="the weight .* of the UNet2DModel has the shape .*; expected "):
        found.set_model(diffusers.UNet2DModel.from_config(config))
    with pytest.raises(ValueError, match="the model is a UNet2DConditionModel; expected a UNet2DModel"):
        found.set_model(model(tiny_pipeline, "sd"))
    with pytest.raises(ValueError, match="the embedders of blocks 0 and 1 of this DiTTransformer2DModel differ"):
        network(tiny_pipeline, "dit").set_model(
            diffusers.DiTTransformer2DModel.from_config(model(tiny_pipeline, "dit").config)
        )

"""Import of published EDM2 snapshots as runs: `lightning-guide import edm2 FILE.pkl RUN`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_guide.networks.edm2_unet import EDM2UNet
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.runs.edm2_pickle import Stored, read_edm2_pickle, tensors_of
from lightning_guide.runs.writing import check_new, write_run
from lightning_guide.utils.errors import did_you_mean

__all__ = ["import_snapshot", "read_edm2"]


# arguments of the published network -> ours
_ARGUMENTS = {
    "model_channels": "model_channels",
    "channel_mult": "channel_mult",
    "num_blocks": "num_blocks",
    "attn_resolutions": "attention_resolutions",
    "label_balance": "label_balance",
    "concat_balance": "concat_balance",
    "res_balance": "res_balance",
    "attn_balance": "attn_balance",
    "clip_act": "clip_act",
    "dropout": "dropout",
}


_POSITIONS = ("img_resolution", "img_channels", "label_dim")


_IRRELEVANT = {"use_fp16", "sigma_data", "logvar_channels", *_POSITIONS}


# published names -> ours, by pattern, inside the denoiser
_NAMES = [
    (r"unet\.emb_fourier\.freqs", "embedding_noise.fourier.frequencies"),
    (r"unet\.emb_fourier\.phases", "embedding_noise.fourier.phases"),
    (r"unet\.emb_noise\.weight", "embedding_noise.linear.weight"),
    (r"unet\.emb_label\.weight", "embedding_label.weight"),
    (r"unet\.enc\.\d+x\d+_conv\.weight", "input.weight"),
    (r"unet\.out_conv\.weight", "output.weight"),
    (r"unet\.out_gain", "output.gain"),
    (r"unet\.(?:enc|dec)\.\w+\.emb_gain", "modulation.gain"),
    (r"unet\.(?:enc|dec)\.\w+\.emb_linear\.weight", "modulation.weight"),
    (r"unet\.(?:enc|dec)\.\w+\.conv_res0\.weight", "residual_in.weight"),
    (r"unet\.(?:enc|dec)\.\w+\.conv_res1\.weight", "residual_out.weight"),
    (r"unet\.(?:enc|dec)\.\w+\.conv_skip\.weight", "projection.weight"),
    (r"unet\.(?:enc|dec)\.\w+\.attn_qkv\.weight", "attention.qkv.weight"),
    (r"unet\.(?:enc|dec)\.\w+\.attn_proj\.weight", "attention.output.weight"),
]


def import_snapshot(
    format: Literal["edm2"],
    file: str,
    run: str,
    *,
    images: int | None = None,
    sigma_rel: float | None = None,
) -> None:
    """Turn a published snapshot into a run of one snapshot, for `validate`, `predict` or as a guider.

    Nothing in the file is executed. Weights keep the type they are stored in. The uncertainty of the training loss is
    not part of a denoiser and is left out. Latents are decoded by the autoencoder that the file names.

    Args:
        format: of the file.
        file: the published pickle.
        run: folder of the new run.
        images: age of the snapshot in images; default: from the file name (NAME-<thousands>-<sigma_rel>.pkl).
        sigma_rel: relative width of its average; default: likewise.

    Raises:
        ValueError: if the file is not such a snapshot, its network is not supported, its age or width is unknown, or
            the run exists.
    """
    check_new(run)
    _check_exists(file)
    age, width = _age(file)
    images, sigma_rel = images if images is not None else age, sigma_rel if sigma_rel is not None else width
    if images is None or sigma_rel is None:
        raise ValueError(
            f"the name of {file} does not end in -<thousands of images>-<sigma_rel>.pkl; expected --images and "
            "--sigma_rel, or such a name"
        )
    content, denoiser, tensors = _read(file)
    latents = _latents(content.get("encoder"), file)
    path = write_run(run, denoiser, tensors, images=images, sigma_rel=sigma_rel, planned_images=images, latents=latents)
    print(f"sigma_rel {sigma_rel:g} after {images} images: {path}")
    print(f"decoded by {latents['vae']['init_args']['path']}" if latents else "data are not latents")


def read_edm2(place: str, *, dtype: str = "float32") -> Preconditioned:
    """Return the denoiser of a published snapshot, without a run.

    Raises:
        ValueError: as `import_snapshot`.
    """
    _check_exists(place)
    _, denoiser, tensors = _read(place)
    denoiser.load_state_dict(tensors, assign=True)
    return denoiser.to(getattr(torch, dtype)).eval()


def _check_exists(file: str) -> None:
    if not Path(file).is_file():
        raise ValueError(f"{file} does not exist{did_you_mean(file)}; expected a published snapshot, a pickle")


def _read(file: str) -> tuple[dict[str, Any], Preconditioned, dict[str, Tensor]]:
    """Return the content of a file, its denoiser on the meta device, and the tensors of the denoiser."""
    content = read_edm2_pickle(file)
    try:
        with torch.device("meta"):  # only names and shapes are needed
            denoiser = _denoiser(content["ema"], file)
        tensors = _renamed(content["ema"], file)
    except ValueError:
        raise
    except Exception as error:  # a damaged file can describe anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{file}: the network in it cannot be built again: {reason}") from None
    _check_fits(denoiser, tensors, file)
    return content, denoiser, tensors


def _latents(encoder: Any, file: str) -> dict[str, Any] | None:
    """Return vae, mean and std of `LatentSpace` for the stored data encoder; None if it encodes no latents.

    The file has x = scale z + bias.
    """
    if not isinstance(encoder, Stored) or encoder.class_name != "StabilityVAEEncoder":
        return None
    try:
        scale, bias = (np.asarray(encoder.state[name], dtype=np.float64).reshape(-1) for name in ("scale", "bias"))
        mean, std = (-bias / scale).tolist(), (0.5 / scale).tolist()
        vae = {"class_path": "DiffusersVAE", "init_args": {"path": str(encoder.state["vae_name"])}}
        if len(mean) != len(std) or not np.isfinite([mean, std]).all() or min(std) <= 0:
            raise ValueError(f"mean {mean} and std {std}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: its StabilityVAEEncoder is damaged ({type(error).__name__}: {error}); expected positive numbers"
        ) from None
    return {"vae": vae, "mean": [round(each, 6) for each in mean], "std": [round(each, 6) for each in std]}


def _age(file: str) -> tuple[int | None, float | None]:
    """(images, sigma_rel) from the file name.

    Published names count 1000 images, rounded down; runs keep multiples of 1024.
    """
    match = re.search(r"-(\d{7})-(\d\.\d{3})\.pkl$", file)
    if not match:
        return None, None
    return (int(match[1]) * 1000 + 999) // 1024 * 1024, float(match[2])


def _denoiser(stored: Stored, file: str) -> Preconditioned:
    """Our network of the same shape, with weights of no meaning."""
    positional = dict(zip(_POSITIONS, stored.state.get("_init_args", ()), strict=False))
    given: dict[str, Any] = positional | dict(stored.state.get("_init_kwargs", {}))
    missing = [name for name in ("img_resolution", "img_channels") if name not in given]
    if missing:
        raise ValueError(f"{file}: the {stored.class_name} in it lacks its {' and '.join(missing)}")
    for name in ("channel_mult_noise", "channel_mult_emb"):
        if given.pop(name, None) is not None:
            raise ValueError(f"{file}: its network sets {name}; expected the width of the first level")
    unknown = sorted(set(given) - set(_ARGUMENTS) - _IRRELEVANT)
    if unknown:
        raise ValueError(f"{file}: its network has the unknown arguments {unknown}")
    side = int(given["img_resolution"])
    network = EDM2UNet(
        (int(given["img_channels"]), side, side),
        num_classes=int(given.get("label_dim") or 0),
        **{ours: given[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in given},
    )
    return Preconditioned(network, sigma_data=float(given.get("sigma_data", 0.5)))


def _renamed(stored: Stored, file: str) -> dict[str, Tensor]:
    """The tensors of the denoiser under our names."""
    tensors = {}
    for name, tensor in tensors_of(stored):
        if name.startswith("logvar_"):
            continue
        ours = next((ours for pattern, ours in _NAMES if re.fullmatch(pattern, name)), None)
        if ours is None:
            raise ValueError(f"{file}: its network has a tensor {name}, which an EDM2 U-Net does not have")
        if block := re.match(r"unet\.(enc|dec)\.(\d+x\d+_(?:down|up|in\d|block\d+))\.", name):
            ours = f"{'encoder' if block[1] == 'enc' else 'decoder'}.{block[2]}.{ours}"
        tensors[f"network.{ours}"] = tensor
    return tensors


def _check_fits(denoiser: Preconditioned, tensors: dict[str, Tensor], file: str) -> None:
    """Refuse tensors that are not exactly those of the network."""
    expected = {name: tuple(tensor.shape) for name, tensor in denoiser.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            here, there = found.get(name, "missing"), expected.get(name, "no such tensor")
            raise ValueError(f"{file}: {name} is {here}; expected {there} by the settings of its network")

"""Published low-rank additions (LoRA) to the weights of a network, W + scale (alpha / r) U V: Hu et al. 2021.

Files are safetensors as diffusers, peft or kohya's scripts write them: U is called `lora_B`, `lora.up` or `lora_up`, V
`lora_A`, `lora.down` or `lora_down`. https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lightning_guide.pretrained.loading import explain_hub
from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.files import parse_json

__all__ = ["Addition", "add_lora", "find_lora", "find_loras", "read_lora"]

FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_FACTOR = re.compile(r"(.+?)[._]lora(?:_linear_layer)?[._](B|up|A|down)(?:\.default)?\.weight")


def find_lora(place: str, *, revision: str | None = None) -> Path:
    """Return the file of a LoRA: a safetensors file, a folder with one, or OWNER/NAME or OWNER/NAME/FILE on the hub.

    Raises:
        ValueError: naming the place, if there is none.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        named = [path / name for name in FILES if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
        if len(named) == 1:
            return named[0]
        found = ", ".join(each.name for each in named) or "no safetensors (pickled files are not read)"
        raise ValueError(f"the folder {place} of a LoRA holds {found}; expected one file, or the path of one of them")
    if path.is_file():
        return path
    parts = Path(place).parts
    if not 2 <= len(parts) <= 3 or path.is_absolute() or place.startswith("."):
        wrong = f"{place} does not exist{did_you_mean(path)}"
        raise ValueError(f"the LoRA {wrong}; expected FILE.safetensors, a folder, or OWNER/NAME/FILE")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download("/".join(parts[:2]), parts[2] if parts[2:] else FILES[0], revision=revision))
    except Exception as error:  # of many types
        raise ValueError(f"the LoRA {explain_hub('/'.join(parts[:2]), error, revision=revision)}") from None


def find_loras(places: str | Sequence[str] | None, scales: float | Sequence[float]) -> list[tuple[Path, float]]:
    """Return the file of each LoRA and its factor; one factor serves all.

    Raises:
        ValueError: if there are as many of neither, a factor is no finite number, or as `find_lora`.
    """
    names = [places] if isinstance(places, str) else list(places or ())
    factors = list(scales) if isinstance(scales, Sequence) else [scales] * len(names)
    if not all(isinstance(each, int | float) and math.isfinite(each) for each in factors):
        raise ValueError(f"lora_scale is {scales!r}; expected a finite number, or a list with one for each lora")
    if len(factors) != len(names):
        raise ValueError(f"lora names {len(names)} and lora_scale {len(factors)}; expected one factor, or one for each")
    return [(find_lora(name), float(factor)) for name, factor in zip(names, factors, strict=True)]


class Addition(NamedTuple):
    """Addition factor U V to one weight: U (out, r) and V (r, in, *)."""

    up: Tensor
    down: Tensor
    factor: float


def add_lora(model: nn.Module, file: Path, *, scale: float = 1.0, pipeline: str | None = None) -> None:
    """Add the LoRA in `file` to the weights of `model`, a network of diffusers, in place; see `read_lora`."""
    for name, (up, down, factor) in read_lora(file, model, pipeline=pipeline).items():
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        with torch.no_grad():
            weight.copy_(weight.float() + scale * factor * (up @ down.flatten(1)).reshape(weight.shape))


def read_lora(file: Path, model: nn.Module, *, pipeline: str | None = None) -> dict[str, Addition]:
    """Return the additions in `file` to weights of `model`, a network of diffusers, by the names of its modules.

    Additions to text encoders are left out, with a warning. `pipeline` reads the names of kohya's scripts.

    Raises:
        ValueError: naming the file and the first tensor that does not belong to the network, or is no such addition.
    """
    tensors, alphas, left_out = _read(file, pipeline, model)
    if left_out:
        warnings.warn(f"{file} also changes {left_out}, which is left as it is: only the network is read", stacklevel=2)
    modules = dict(model.named_modules())
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _FACTOR.fullmatch(name)
        if found is None:
            raise ValueError(f"{file} holds {name}, which is no low-rank addition to a weight; expected U and V alone")
        pairs.setdefault(found[1], {})["up" if found[2] in ("B", "up") else "down"] = tensor
    additions: dict[str, Addition] = {}
    for name, pair in pairs.items():
        own = name if name in modules else _renamed(name)
        weight = getattr(modules.get(own), "weight", None)
        if not isinstance(weight, Tensor):
            raise ValueError(f"{file} changes {name}, which the {type(model).__name__} does not have")
        if len(pair) < 2:
            raise ValueError(f"{file} holds one factor of {name} alone; expected two")
        up, down = pair["up"].flatten(1).float(), pair["down"].float()
        if (len(up), up.shape[1], down[0].numel()) != (len(weight), len(down), weight[0].numel()):
            raise ValueError(
                f"the factors of {name} in {file} have the shapes {tuple(pair['up'].shape)} and "
                f"{tuple(pair['down'].shape)}, which do not fit the weight {tuple(weight.shape)} of the network"
            )
        additions[own] = Addition(up, down, alphas.get(name, float(len(down))) / len(down))
    return additions


def _read(file: Path, pipeline: str | None, model: Any) -> tuple[dict[str, Tensor], dict[str, float], str]:
    """Return tensors and alphas of the network by its own names, and the other part that the file changes, if any."""
    try:
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"the LoRA {file} is no safetensors file ({error}); pickled files are not read") from None
    alphas: dict[str, float] = {}
    if any(name.startswith(("lora_unet", "lora_te", "lora_transformer")) for name in tensors):
        tensors, alphas = _converted(file, tensors, pipeline, model)
    found = {re.sub(r"^base_model\.model\.", "", name): tensor for name, tensor in tensors.items()}
    own = {name: each for name, each in found.items() if not name.startswith("text_encoder")}
    left_out = next((name.partition(".")[0] for name in found.keys() - own.keys()), "")
    own = {re.sub(r"^(unet|transformer)\.", "", name): tensor for name, tensor in own.items()}
    if not own:
        raise ValueError(f"{file} holds no addition to a network, but {next(iter(found), 'nothing')}")
    given = {
        re.sub(r"^(unet|transformer)\.|(_lora\.down\.weight)?\.alpha$", "", name): float(value)
        for name, value in alphas.items()
    }
    given |= {name[: -len(".alpha")]: float(own.pop(name)) for name in list(own) if name.endswith(".alpha")}
    return own, _alphas(file, own, metadata) | given, left_out


def _converted(
    file: Path, tensors: dict[str, Tensor], pipeline: str | None, model: Any
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return a file of kohya's scripts under the names of diffusers, which has the tables."""
    import diffusers

    convert = getattr(getattr(diffusers, str(pipeline), None), "lora_state_dict", None)
    if convert is None:
        raise ValueError(f"{file} has the names of kohya's scripts, which are not read for a {pipeline or 'network'}")
    try:
        result = convert(dict(tensors), unet_config=model.config)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(f"the names in the LoRA {file} cannot be read: {' '.join(str(error).split())[:300]}") from None
    state, alphas = result if isinstance(result, tuple) else (result, None)
    return state, alphas or {}


def _alphas(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, float]:
    """Return alpha of each module by the settings of peft, in the file or next to it; none: alpha = r."""
    beside = file.parent / "adapter_config.json"
    if file.name == FILES[1] and beside.is_file():
        settings: dict[str, Any] = parse_json(beside.read_bytes(), beside)
    else:
        stored = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        own = {name: each for name, each in stored.items() if not name.startswith("text_encoder")}
        settings = {re.sub(r"^(unet|transformer)\.", "", name): each for name, each in own.items()}
    if settings.get("use_dora") or settings.get("use_rslora"):
        raise ValueError(f"the LoRA {file} uses DoRA or rank-stabilized scales, which are not supported")
    if settings.get("lora_alpha") is None:
        return {}
    names = {found[1] for found in map(_FACTOR.fullmatch, tensors) if found}
    patterns = settings.get("alpha_pattern") or {}

    def alpha(name: str) -> float:
        fits = (value for pattern, value in patterns.items() if re.search(rf"(^|\.){pattern}$", name))
        return float(next(fits, settings["lora_alpha"]))

    return {name: alpha(name) for name in names}


def _renamed(name: str) -> str:
    """Return the module of a name of old versions of diffusers: attn.processor.to_q_lora -> attn.to_q."""
    return re.sub(r"\.to_out$", ".to_out.0", re.sub(r"\.processor\.(to_\w+)$", r".\1", name))

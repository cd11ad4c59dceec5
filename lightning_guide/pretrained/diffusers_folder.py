"""Folders written by diffusers, and names on the Hugging Face hub: read as denoisers and latent spaces.

Weights are read from safetensors alone. What the folder says is used: the class and config of the network, the
scheduler (prediction, noise levels), the scaling of latents, the null prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.pretrained.autoencoders import DiffusersVAE, VariationalAutoencoder
from lightning_guide.pretrained.diffusers_controlnet import add_controlnet
from lightning_guide.pretrained.diffusers_families import find_architecture
from lightning_guide.pretrained.diffusers_network import DiffusersNetwork
from lightning_guide.pretrained.folder_parts import check_part
from lightning_guide.pretrained.latent_space import LatentSpace
from lightning_guide.pretrained.loading import find_folder, read_object
from lightning_guide.pretrained.lora import add_lora, find_loras
from lightning_guide.pretrained.schedulers import ScheduledSampling, scheduled_sampling
from lightning_guide.pretrained.text_encoders import TextEncoders

__all__ = ["DiffusersFolder", "read_diffusers"]

WEIGHTS = "diffusion_pytorch_model"


class DiffusersFolder:
    """A folder with a pipeline of diffusers, or with a network alone; nothing but JSON is read at first.

    Attributes:
        folder: the folder, of a name on the hub its local copy.
        architecture: class of the network.
        config: its config.
    """

    def __init__(self, source: str | Path, *, revision: str | None = None, variant: str | None = None) -> None:
        """Find the folder, or download a name on the hub: configs and safetensors of network and autoencoder.

        Its text encoders are downloaded when they are needed.

        Raises:
            ValueError: naming what is missing or not supported.
        """
        self.source, self.variant, self.revision = str(source), variant, revision
        self.folder = find_folder(self.source.removeprefix("diffusers:"), _wanted(variant), revision=revision)
        found = [
            part for part in ("unet", "transformer", "") if (self.folder / part / "config.json").is_file()
        ]  # a network alone lies in the folder itself
        if not found:
            raise ValueError(
                f"{self.source} holds no network: expected unet/config.json, transformer/config.json or config.json"
            )
        self.part = self.folder / found[0]
        self.config = read_object(self.part / "config.json")
        try:
            self.architecture = find_architecture(self.config)
        except ValueError as error:
            raise ValueError(f"the network of {self.source}: {error}") from None
        self.index = (
            read_object(self.folder / "model_index.json") if (self.folder / "model_index.json").is_file() else {}
        )

    @property
    def data_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of x by the config.

        Raises:
            ValueError: if it names no size.
        """
        packed = self.architecture == "FluxTransformer2DModel"  # 2 x 2 pixels of x in one token, made for 1024 pixels
        side: int | list[int] | None = 128 if packed else self.config.get("sample_size")
        if side is None:
            raise ValueError(f"the config of the network of {self.source} has no sample_size; expected data_shape")
        height, width = (side, side) if isinstance(side, int) else side
        return int(self.config["in_channels"]) // (4 if packed else 1), height, width

    @property
    def has_texts(self) -> bool:
        """Whether the network reads texts."""
        return self.architecture not in ("UNet2DModel", "DiTTransformer2DModel")

    @property
    def has_vae(self) -> bool:
        """Whether x are latents of an autoencoder in the folder."""
        return (self.folder / "vae" / "config.json").is_file()

    @property
    def lacks_vae(self) -> bool:
        """Whether x are latents, but the autoencoder that the pipeline names is not in the folder."""
        return not self.has_vae and (self.index.get("vae") or [None])[-1] is not None

    @property
    def factor(self) -> int:
        """Side of an image over that of its x: 8 for most autoencoders, 1 for x that are images."""
        if not self.has_vae:
            return 1
        blocks = read_object(self.folder / "vae" / "config.json").get("block_out_channels", (64,))
        return int(2 ** (len(blocks) - 1))

    @property
    def reads_sizes(self) -> bool:
        """Whether the network is conditioned on the sizes of each image and its crop, as SDXL is."""
        return self.config.get("addition_embed_type") == "text_time"

    def scheduled(self, num_steps: int = 20, *, data_shape: Sequence[int] | None = None) -> ScheduledSampling:
        """Return how the scheduler of the folder reads and samples the model.

        Raises:
            ValueError: if there is none, or it is not supported.
        """
        places = [self.folder / part / "scheduler_config.json" for part in ("scheduler", "")]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise ValueError(f"{self.source} does not say what its network predicts: it has no {places[0].name}")
        settings, shape = read_object(found), data_shape
        if shape is None and settings.get("use_dynamic_shifting"):
            shape = self.data_shape
        tokens = None if shape is None else (shape[1] // 2) * (shape[2] // 2)
        return scheduled_sampling(settings, num_steps, tokens=tokens)

    def latent_space(self, vae: VariationalAutoencoder | None = None) -> LatentSpace | None:
        """Return the space of the folder's autoencoder, or of `vae`, x = scaling (z - shift); None if x are images."""
        if not self.has_vae:
            return None
        config = read_object(self.folder / "vae" / "config.json")
        channels = int(config.get("latent_channels", 4))
        vae = vae or DiffusersVAE(str(self.folder), subfolder="vae", lowest=-1.0)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            return LatentSpace(vae, list(mean), [each / (2 * config["scaling_factor"]) for each in std])
        shift, scaling = config.get("shift_factor") or 0.0, config.get("scaling_factor") or 0.18215
        return LatentSpace(vae, [float(shift)] * channels, [1 / (2 * float(scaling))] * channels)

    def controlnet(self, settings: Mapping[str, Any] | None = None) -> Mapping[str, Any] | None:
        """Return `settings` of `add_controlnet`, by default with the ControlNet of the folder as source, if it has one.

        Raises:
            ValueError: if it has one and there are no settings, or it has several.
        """
        named = self.index.get("controlnet")
        kind = named[-1] if isinstance(named, list) and named else None
        if kind is None:
            return settings
        if kind != "ControlNetModel":
            raise ValueError(f"{self.source} has a {kind}, which is not supported; expected one ControlNetModel")
        if settings is None:
            raise ValueError(
                f"{self.source} has a ControlNet, which needs a control image; expected "
                "controlnet: {image: FILE} (in the command import --control_image FILE)"
            )
        return {"source": str(self.folder / "controlnet")} | dict(settings)

    def empty(self, negative_prompt: str | None = None) -> Tensor | None:
        """Return what "no condition" is (L, C), by the text encoders of the folder; None without texts.

        Raises:
            ValueError: if the folder has no text encoders, or a negative prompt is given without texts.
        """
        if not self.has_texts:
            if negative_prompt is not None:
                raise ValueError(f"{self.source} reads no texts; expected no negative_prompt, got {negative_prompt!r}")
            return None
        if not self.index:
            raise ValueError(
                f"{self.source} holds a network that reads texts, but no model_index.json with text encoders; expected "
                "the folder of the whole pipeline"
            )
        return TextEncoders(self.source, revision=self.revision, variant=self.variant).empty(negative_prompt)

    def network(
        self,
        *,
        empty: Tensor | None = None,
        dtype: str = "float32",
        lora: str | Sequence[str] | None = None,
        lora_scale: float | Sequence[float] = 1.0,
        **options: Any,
    ) -> DiffusersNetwork:
        """Return the network with its weights, `lora` added; `empty` (L, C) of `empty()`, `options` as of its class.

        Raises:
            ValueError: naming the first weight that is missing, unexpected or of another shape, or parts of the folder
                that do not fit each other.
        """
        import diffusers  # takes seconds, and most runs do not need it

        with torch.device("meta"):  # refuses what is not supported before gigabytes are read
            length = 0 if empty is None else len(empty)
            network = DiffusersNetwork(self.architecture, self.config, empty_length=length, **options)
        self._check_parts(network, 0 if empty is None else empty.shape[1])
        check_part(self.part, WEIGHTS, variant=self.variant)
        additions = find_loras(lora, lora_scale)
        try:
            model, report = getattr(diffusers, self.architecture).from_pretrained(
                self.part,
                torch_dtype=getattr(torch, dtype),
                variant=self.variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ValueError(f"the weights of {self.part} cannot be loaded: {_short(error)}") from None
        for kind, said in (("missing_keys", "lack"), ("unexpected_keys", "hold"), ("mismatched_keys", "do not fit in")):
            names = sorted(map(str, report.get(kind) or ()))
            if names:
                raise ValueError(
                    f"the weights in {self.part} {said} {names[0]}"
                    + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                    + f"; expected those of the {self.architecture} of its config.json"
                )
        for addition, scale in additions:
            add_lora(model, addition, scale=scale, pipeline=self.index.get("_class_name"))
        network.set_model(model)
        if empty is not None:
            network.empty.copy_(empty)
        return network

    def _check_parts(self, network: DiffusersNetwork, width: int) -> None:
        """Refuse text encoders and an autoencoder of another model."""
        if width != network.token_channels:
            raise ValueError(
                f"the text encoders of {self.source} give {width} channels, but its {self.architecture} reads "
                f"{network.token_channels}; expected parts of one model"
            )
        channels = read_object(self.folder / "vae" / "config.json").get("latent_channels", 4) if self.has_vae else None
        if channels not in (None, network.data_shape[0]):
            raise ValueError(
                f"the autoencoder of {self.source} has {channels} channels, but its {self.architecture} denoises "
                f"{network.data_shape[0]}; expected parts of one model"
            )


def read_diffusers(
    place: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: str = "float32",
    negative_prompt: str | None = None,
    data_shape: Sequence[int] | None = None,
    constants: Mapping[str, Any] | None = None,
    lora: str | Sequence[str] | None = None,
    lora_scale: float | Sequence[float] = 1.0,
    controlnet: Mapping[str, Any] | None = None,
) -> Denoiser:
    """Return the denoiser of a folder or a name on the hub; arguments as those of `Pretrained`.

    Raises:
        ValueError: naming what is missing or not supported.
    """
    if lora is None and lora_scale != 1:
        raise ValueError(f"lora_scale={lora_scale} without a lora has no effect; expected the file of one")
    folder = DiffusersFolder(place, revision=revision, variant=variant)
    controlnet = folder.controlnet(controlnet)
    folder.scheduled()  # refused before gigabytes are read
    empty = folder.empty(negative_prompt)
    options: dict[str, Any] = {"constants": constants, "data_shape": data_shape}
    network = folder.network(empty=empty, dtype=dtype, lora=lora, lora_scale=lora_scale, **options)
    if controlnet is not None:
        network = add_controlnet(network, controlnet)
    preconditioning = folder.scheduled(data_shape=network.data_shape).preconditioning
    return Preconditioned(network, preconditioning, sigma_data=1.0 if folder.has_vae or folder.lacks_vae else 0.5)


def _wanted(variant: str | None) -> list[str]:
    """Return patterns of the files that are downloaded of a name on the hub: one copy of the weights, no pickles."""
    stem = WEIGHTS if variant is None else f"{WEIGHTS}.{variant}"
    ends = [f"{stem}.safetensors", f"{stem}-*-of-*.safetensors"]
    ends += [] if variant is None else [f"{WEIGHTS}-*-of-*.{variant}.safetensors"]
    networks = [f"{part}{end}" for part in ("unet/", "transformer/", "") for end in ends]
    networks += [f"controlnet/{WEIGHTS}.safetensors"]
    return ["*.json", "*/*.json", *networks, f"vae/{WEIGHTS}.safetensors"]


def _short(error: Exception) -> str:
    """The message in one line, without advice on how to load weights that do not fit."""
    return " ".join(str(error).split()).partition(". If you want")[0][:300]

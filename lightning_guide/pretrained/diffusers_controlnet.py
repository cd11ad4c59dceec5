"""ControlNets of the diffusers library beside their U-Nets.

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models", https://arxiv.org/abs/2302.05543.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lightning_guide.networks.attention import WholeText
from lightning_guide.pretrained.diffusers_network import DiffusersNetwork, check_weights, find_class
from lightning_guide.pretrained.folder_parts import check_part
from lightning_guide.pretrained.loading import find_folder
from lightning_guide.utils.errors import did_you_mean

__all__ = ["ControlledNetwork", "add_controlnet"]


class ControlledNetwork(DiffusersNetwork):
    """A U-Net of diffusers with a `controlnet` that reads one control image, the same for all samples.

    F = U-Net(x, residuals of ControlNet(x, image) times `scale`). The image belongs to the model: positives and
    negatives of a guidance see it. Perturbations act on the U-Net.
    """

    resizable = False
    image: Tensor

    def __init__(
        self,
        architecture: str,
        config: Mapping[str, Any],
        controlnet: Mapping[str, Any],
        *,
        image: str | Tensor | Sequence[int] | None,
        scale: float = 1.0,
        data_shape: Sequence[int] | None = None,
        empty_length: int = 0,
        vector: int = 0,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        """Build both networks with random weights.

        Args:
            architecture: as `DiffusersNetwork`, UNet2DConditionModel.
            config: that of the U-Net.
            controlnet: config of the ControlNetModel.
            image: control image: a file, or a tensor (3, H, W) in [0, 1], of the size of the decoded samples; or its
                (H, W), if a state dict will bring the image, as it does for snapshots.
            scale: factor of the residuals.
            data_shape: as `DiffusersNetwork`.
            empty_length: as `DiffusersNetwork`.
            vector: as `DiffusersNetwork`.
            constants: as `DiffusersNetwork`.

        Raises:
            ValueError: as `DiffusersNetwork`; if the image is missing or has another size; if `scale` is no finite
                number, or the ControlNet is that of another U-Net.
        """
        options = {"data_shape": data_shape, "empty_length": empty_length, "vector": vector, "constants": constants}
        super().__init__(architecture, config, **options)  # type: ignore[arg-type]
        if self.architecture != "UNet2DConditionModel":
            raise ValueError(f"a ControlNet is for a UNet2DConditionModel; this network is a {self.architecture}")
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise ValueError(f"the scale of a ControlNet is {scale!r}; expected a finite number")
        self.scale, self.texts = scale, WholeText()
        self.controlnet: nn.Module = find_class("ControlNetModel").from_config(dict(controlnet))
        for key in ("in_channels", "cross_attention_dim", "block_out_channels", "addition_embed_type"):
            inside, expected = (
                tuple(value) if isinstance(value := each.config[key], list) else value  # type: ignore[index]
                for each in (self.controlnet, self.model)
            )
            if inside != expected:
                raise ValueError(f"the ControlNet has {key}={inside}, its U-Net {expected}; expected the same")
        factor = 2 ** (len(self.controlnet.config["conditioning_embedding_out_channels"]) - 1)
        pixels, shape = _read_image(image), (3, factor * self.data_shape[1], factor * self.data_shape[2])
        if tuple(pixels.shape) != shape:
            raise ValueError(f"the control image has the shape {tuple(pixels.shape)}; expected {shape}")
        self.register_buffer("image", pixels)
        self._move_image()

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe, with the size of the image in place of its file or its pixels, which are in the state dict."""
        recipe = super().recipe
        recipe["init_args"]["image"] = list(self.image.shape[1:])
        return recipe

    @classmethod
    def of(cls, model: Any, **options: Any) -> ControlledNetwork:
        """Return the network with a U-Net `model` and a ControlNet `controlnet` of diffusers, weights shared."""
        controlnet = options.pop("controlnet")
        config = {key: value for key, value in controlnet.config.items() if not key.startswith("_")}
        network = super().of(model, controlnet=config, **options)
        assert isinstance(network, ControlledNetwork)
        network.set_controlnet(controlnet)
        return network

    def _insert(self, model: Any) -> None:
        super()._insert(model)
        self.stages = ["controlnet", *self.stages]

    def set_controlnet(self, controlnet: Any) -> None:
        """Exchange `controlnet` for another one of the same config, with its weights and its device.

        Raises:
            ValueError: if a weight has another name or shape.
        """
        check_weights(controlnet, self.controlnet.state_dict())
        self.controlnet = controlnet
        self._move_image()

    def _move_image(self) -> None:
        """Follow the ControlNet to its device."""
        device = next(self.controlnet.parameters()).device
        if device.type != "meta":
            self.image = self.image.to(device)

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        """Return F `(B, *data_shape)`, as `DiffusersNetwork`."""
        inside = x.to(self.image.dtype)
        image = self.image.expand(len(x), *self.image.shape)
        texts = self.family.arguments(inside, embedding)
        texts["encoder_hidden_states"] = self.texts(texts["encoder_hidden_states"])
        down, middle = self.controlnet(
            inside,
            c_noise,
            controlnet_cond=image,
            conditioning_scale=self.scale,
            return_dict=False,
            **texts,
        )
        return self.evaluate(
            x, c_noise, embedding, down_block_additional_residuals=down, mid_block_additional_residual=middle
        )


def add_controlnet(network: DiffusersNetwork, settings: Mapping[str, Any]) -> ControlledNetwork:
    """Return `network` with a published ControlNet; `settings`: its `source`, the `image`, and perhaps its `scale`.

    The source is a folder with config.json and safetensors, or OWNER/NAME on the Hugging Face hub.

    Raises:
        ValueError: as `ControlledNetwork`, or if a setting or the folder is missing, or its weights do not fit.
    """
    if not {"source", "image"} <= settings.keys() <= {"source", "image", "scale"}:
        raise ValueError(f"controlnet has {', '.join(settings) or 'nothing'}; expected source, image and perhaps scale")
    source, stem = str(settings["source"]), "diffusion_pytorch_model"
    folder = find_folder(source, ["config.json", f"{stem}.safetensors"])
    if (folder / "controlnet").is_dir():
        raise ValueError(f"the ControlNet {source} is the folder of a pipeline; expected {folder / 'controlnet'}")
    check_part(folder, stem)
    try:
        controlnet, report = find_class("ControlNetModel").from_pretrained(
            folder,
            torch_dtype=next(network.model.parameters()).dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"the ControlNet {source} cannot be loaded: {' '.join(str(error).split())[:300]}") from None
    if wrong := [*report["missing_keys"], *report["unexpected_keys"]]:
        raise ValueError(f"the weights of the ControlNet {source} lack, or have beside others, {sorted(wrong)[0]}")
    controlled = ControlledNetwork.of(
        network.model,
        controlnet=controlnet,
        image=settings["image"],
        scale=settings.get("scale", 1.0),
        data_shape=network.data_shape,
        empty_length=len(network.empty) if network.token_channels else 0,
        constants=network.family.constants,
    )
    controlled.empty.copy_(network.empty)
    return controlled


def _read_image(image: Any) -> Tensor:
    """Return the image (3, H, W) in [0, 1], float32."""
    if image is None:
        raise ValueError("a ControlNet needs a control image, got none; expected a file or a tensor (3, H, W)")
    if not isinstance(image, str | Path):
        pixels = torch.as_tensor(image, dtype=torch.float32, device="cpu")
        return pixels if pixels.ndim > 1 else torch.zeros(3, *map(int, pixels), device="cpu")
    path = Path(image).expanduser()
    if not path.is_file():
        raise ValueError(f"a ControlNet needs a control image; there is no file {image}{did_you_mean(path)}")
    try:
        file = np.asarray(Image.open(path).convert("RGB"))
    except (OSError, ValueError) as error:
        raise ValueError(f"the control image {image} cannot be read: {error}") from None
    return torch.from_numpy(file.copy()).movedim(-1, 0) / 255

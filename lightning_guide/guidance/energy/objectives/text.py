"""What a picture has to do with a prompt, in the eyes of an open_clip model."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_guide.guidance.energy.objectives.objective import Objective

__all__ = ["TextMatch"]


class TextMatch(Objective):
    """1 - cos(image, text), or |image - text| of the unnormalised embeddings, both of pictures in [-1, 1].

    The cosine is what universal guidance and the ImageNet experiments of FreeDoM and Shen et al. take, the distance
    what their faces take. The picture is resized, bicubic, and normalised as the model was trained. Score samples with
    another model than the one that guides (ViT-L/14 when ViT-B/16 guides).
    """

    def __init__(
        self,
        prompt: str,
        *,
        model: str = "ViT-B-16",
        weights: str | None = "openai",
        kind: Literal["cosine", "distance"] = "cosine",
    ) -> None:
        """`model` as in `open_clip.list_models()`; `weights`: a local file, a name of open_clip's, None for random.

        Raises:
            ValueError: if `kind` is unknown.
        """
        super().__init__()
        if kind not in ("cosine", "distance"):
            raise ValueError(f"TextMatch measures 'cosine' or 'distance', got {kind!r}")
        self.prompt, self.model, self.weights, self.kind = prompt, model, weights, kind
        self._loaded: list[Any] = []

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """The loss (B,) of pictures `x` (B, 1 or 3, H, W), computed in float32.

        Raises:
            ValueError: if the model or its weights cannot be found.
        """
        with torch.autocast(x.device.type, enabled=False):
            return self._loss(x.to(torch.float32)).to(x.dtype)

    def _loss(self, x: Tensor) -> Tensor:
        network, text = self._network(x.device)
        size, mean, std = (network.visual.image_size, network.visual.image_mean, network.visual.image_std)
        shape = (size, size) if isinstance(size, int) else tuple(size)
        picture = (x + 1).expand(-1, 3, -1, -1) / 2
        picture = F.interpolate(picture, shape, mode="bicubic", align_corners=False, antialias=True)
        scale = [picture.new_tensor(each)[:, None, None] for each in (mean, std)]
        image = network.encode_image((picture - scale[0]) / scale[1])
        if self.kind == "distance":
            distance: Tensor = (image - text).norm(dim=1)
            return distance
        return 1 - torch.cosine_similarity(image, text, dim=1)

    def _network(self, device: torch.device) -> tuple[Any, Tensor]:
        if not self._loaded:
            self._loaded.append(self._load())
        network = self._loaded[0].to(device)
        if len(self._loaded) == 1:
            import open_clip

            with torch.no_grad():
                tokens = open_clip.get_tokenizer(self.model)([self.prompt]).to(device)
                self._loaded.append(network.encode_text(tokens))
        return network, self._loaded[1].to(device)

    def _load(self) -> Any:
        import open_clip  # takes seconds, and most runs have no use for it

        if self.model not in open_clip.list_models():
            near = get_close_matches(self.model, open_clip.list_models(), cutoff=0.5)
            raise ValueError(f"open_clip has no model {self.model!r}; names like it: {', '.join(near) or 'none'}")
        known = open_clip.list_pretrained_tags_by_model(self.model)
        if self.weights is not None and self.weights not in known and not Path(self.weights).is_file():
            raise ValueError(
                f"weights of {self.model}: there is no file {self.weights}, nor is it one of open_clip's names: "
                f"{', '.join(known) or 'none'}"
            )
        try:
            with torch.random.fork_rng(devices=[]):
                network = open_clip.create_model(self.model, pretrained=self.weights)
        except Exception as error:  # whatever hub, file system or checkpoint reader have to say
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"weights of {self.model} cannot be loaded from {self.weights!r} ({reason})") from None
        return network.eval().requires_grad_(False)

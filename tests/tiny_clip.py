"""A CLIP model of open_clip with few channels and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

__all__ = ["write_clip"]

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def write_clip(folder: Path) -> tuple[str, str]:
    """Register the model "tiny-test" with open_clip; return its name and a file of its weights."""
    import open_clip

    (folder / "tiny-test.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / "tiny-test.json")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = open_clip.create_model("tiny-test", pretrained=None)
    torch.save(network.state_dict(), folder / "weights.pt")
    return "tiny-test", str(folder / "weights.pt")

"""EDM's ADM networks as the network of ADM's own checkpoints.

Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 8, take the architecture of Dhariwal and Nichol 2021,
https://arxiv.org/abs/2105.05233, as it is, for a preconditioning of their own. Other than in ADM's checkpoints the rows
of attention have q, k and v together, the table of labels is transposed, and no label adds nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_guide.pretrained.adm import ADM, filled_adm
from lightning_guide.pretrained.adm_layout import find_layout
from lightning_guide.pretrained.edm_layout import BLOCK, image_side, outer_layers, sorted_rows
from lightning_guide.pretrained.published import Rule, rename

__all__ = ["ADMWithoutLabels", "read_edm_adm"]


class ADMWithoutLabels(ADM):
    """ADM to which no label, -1, is a vector of zeros in the place of the row of a label."""

    def _insert(self, model: Any) -> None:
        if self.num_classes:
            self.family.null_class = -1
            model.class_embedding = _Rows.from_pretrained(model.class_embedding.weight, freeze=False)
        super()._insert(model)


class _Rows(nn.Embedding):
    """Rows of a table, zeros for -1."""

    def forward(self, labels: Tensor) -> Tensor:
        """Return `(B, columns)` for `labels` (B,)."""
        return super().forward(labels.clamp(min=0)) * (labels >= 0)[:, None]


def read_edm_adm(tensors: Mapping[str, Tensor], file: str) -> ADMWithoutLabels:
    """Return the network with the stored `tensors` as its weights.

    Raises:
        ValueError: naming the first weight that is missing, wrong or of no known layer; if a level has fewer channels
            than 128, for which the groups of normalizations are not known.
    """
    renamed = rename(tensors, _rules(tensors, file), file=file, kind="a network of the kind ADM")
    layout = find_layout(renamed, file)
    if min(layout.channels) < 128:
        raise ValueError(f"{file}: its ADM network has levels of {min(layout.channels)} channels; expected 128 or more")
    network = filled_adm(
        ADMWithoutLabels, renamed, layout, size=image_side(tensors), heads=None, by_head=False, file=file
    )
    assert isinstance(network, ADMWithoutLabels)
    return network


_LAYERS = {
    "norm0": "0.in_layers.0",
    "conv0": "0.in_layers.2",
    "affine": "0.emb_layers.1",
    "norm1": "0.out_layers.0",
    "conv1": "0.out_layers.3",
    "skip": "0.skip_connection",
    "norm2": "1.norm",
    "qkv": "1.qkv",
    "proj": "1.proj_out",
}


def _rules(tensors: Mapping[str, Tensor], file: str) -> dict[str, str | Rule]:
    """Return the rules that give the tensors the names of ADM's checkpoints."""
    places = _places(tensors)

    def layer(match: re.Match[str], tensor: Tensor) -> Mapping[str, Tensor]:
        part, _, name = _LAYERS[match["layer"]].partition(".")
        tensor = sorted_rows(tensor) if match["layer"] == "qkv" else tensor
        return {f"{places[match['block']][int(part)]}.{name}.{match['parameter']}": tensor}

    def labels(match: re.Match[str], tensor: Tensor) -> Mapping[str, Tensor]:
        return {"label_emb.weight": tensor.T.contiguous()}

    ends = {"norm": "out.0", "output": "out.2"}
    return {
        rf"(?P<block>{BLOCK})\.(?P<layer>{'|'.join(_LAYERS)})\.(?P<parameter>weight|bias)": layer,
        r"map_layer0\.(weight|bias)": r"time_embed.0.\1",
        r"map_layer1\.(weight|bias)": r"time_embed.2.\1",
        r"map_label\.weight": labels,
        r"enc\.\d+x\d+_conv\.(weight|bias)": r"input_blocks.0.0.\1",
        **{
            rf"{re.escape(name)}\.(weight|bias)": rf"{ends.get(place, place)}.\1"
            for place, name in outer_layers(tensors, file).items()
        },
    }


def _places(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    """Return the modules of the residual block and of the attention of each block, in the order of the file."""
    places: dict[str, tuple[str, str]] = {}
    inputs, outputs, last = 1, 0, ""
    for match in (each for name in tensors if (each := re.match(rf"{BLOCK}(?=\.)", name))):
        block, kind = match[0], match[4]
        if block in places:
            continue
        if match[1] == "enc":
            places[block] = (f"input_blocks.{inputs}.0", f"input_blocks.{inputs}.1")
            inputs += 1
        elif kind.startswith("in"):
            places[block] = (f"middle_block.{2 * int(kind[2:])}", f"middle_block.{2 * int(kind[2:]) + 1}")
        elif kind == "up":  # in ADM the end of the level before
            after = 2 if f"{last}.qkv.weight" in tensors else 1
            places[block] = (f"output_blocks.{outputs - 1}.{after}", f"output_blocks.{outputs - 1}.3")
        else:
            places[block] = (f"output_blocks.{outputs}.0", f"output_blocks.{outputs}.1")
            outputs += 1
        last = block
    return places

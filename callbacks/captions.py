"""Texts in images: prompts under samples, names beside rows of a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
import torch
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["caption_strips"]


LETTERS, LINES = 28, 4  # about so many letters fill a line; a text of more lines is shortened
SMALLEST, SPACING = 9, 1.25  # pixels of a letter; lines in letters


def caption_strips(texts: Sequence[str], width: int) -> Tensor:
    """Draw `texts` in black on white, wrapped to `width` pixels and in four lines at most: uint8 (B, 1, height, width).

    Each strip has the height of the longest text. The letters are those of DejaVu Sans, without Chinese,
    Japanese or Korean, which become boxes.
    """
    size = max(SMALLEST, round(1.7 * width / LETTERS))
    font, margin = ImageFont.truetype(findfont("DejaVu Sans"), size), size // 3
    wrapped = [_lines(text, font, width - 2 * margin) for text in texts]
    height = round(SPACING * size * max(map(len, wrapped))) + 2 * margin
    strips = []
    for lines in wrapped:
        strip = Image.new("L", (width, height), 255)
        for row, line in enumerate(lines):
            ImageDraw.Draw(strip).text((margin, margin + SPACING * size * row), line, fill=0, font=font)
        strips.append(torch.from_numpy(np.array(strip)))
    return torch.stack(strips)[:, None]


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Wrap `text` to lines of as many letters as fit into `width` pixels."""
    for letters in range(2 * LETTERS, 1, -1):
        lines = [line for part in text.splitlines() for line in wrap(part, letters, max_lines=LINES, placeholder="…")]
        if all(font.getlength(line) <= width for line in lines):
            return lines
    return []  # no letter fits

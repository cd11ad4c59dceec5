"""The command prompts: a text file of prompts into embeddings in half precision, read row by row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np

from lightning_guide.pretrained.prompts import half_precision, read_prompts
from lightning_guide.pretrained.text_encoders import TextEncoders
from lightning_guide.utils.devices import choose_device
from lightning_guide.utils.files import atomic
from lightning_guide.utils.terminal import Progress

__all__ = ["encode_prompts"]


def encode_prompts(
    source: str,
    prompts: str,
    out: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    device: str | None = None,
    batch_size: int = 16,
) -> None:
    """Encode the prompts of a text file by the text encoders of a published model, for `prompt_file` of the data.

    OUT.npy holds (P, L, C) in half precision, OUT.json the texts. A prompt that is too long causes a warning that says
    where it is cut.

    Args:
        source: folder written by a pipeline of diffusers, or its name on the Hugging Face hub.
        prompts: text file in UTF-8, one prompt a line; blank lines are left out.
        out: npy file to write.
        revision: branch, tag or commit on the hub.
        variant: files such as "fp16" of the encoders.
        dtype: precision in which the encoders compute.
        device: device; None: a GPU if available.
        batch_size: prompts in one call.

    Raises:
        ValueError: if the file has no prompts, the source no supported encoders, or `out` another ending than npy.
    """
    target = Path(out).expanduser()
    if target.suffix != ".npy":
        raise ValueError(f"out is {out}; expected a file ending in .npy")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1 prompt in one call")
    texts = read_prompts(prompts)
    chosen = str(choose_device(device))
    named = {"revision": revision, "variant": variant}
    encoders = TextEncoders(source, **named, dtype=dtype, device=chosen, batch_size=batch_size)
    with atomic(target) as temporary, Progress("prompts", len(texts), unit="prompts") as bar:
        rows, done = None, 0
        for tokens in encoders.batches(texts):
            if rows is None:
                shape = (len(texts), *tokens.shape[1:])
                rows = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            rows[done : done + len(tokens)] = half_precision(tokens)
            done += len(tokens)
            bar.add(len(tokens))
        assert rows is not None
        rows.flush()
    with atomic(target.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"source": source, "prompts": texts}, indent=1) + "\n", encoding="utf-8")
    shape_text = "x".join(map(str, rows.shape))
    print(f"{len(texts)} prompts by {encoders.pipeline} of {source}: {target}, {shape_text}, float16")

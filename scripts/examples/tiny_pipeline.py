"""A tiny random model in the folder layout of a published one, to try commands without a download.

    python -m scripts.examples.tiny_pipeline sd tiny/sd

The classes, tokenizers included, are those of the published pipeline, with a few channels and random weights: commands
run in seconds, and images are noise. The tests use the same folders. Needs `pip install lightning-guide[pretrained]`.
"""

from __future__ import annotations

from pathlib import Path

from lightning_guide.pretrained.text_encoders import quiet_libraries
from scripts.lib.command_line import run_script
from tests.direct_mdm import write_mdm
from tests.tiny_pipelines import PIPELINES, write_pipeline

__all__ = ["tiny_pipeline"]


def tiny_pipeline(kind: str, folder: str) -> None:
    """Write a tiny pipeline.

    Args:
        kind: which one, as "sd"; "mdm": files of MDM, model.pt, Mean.npy, Std.npy and prompts.npy; a wrong name lists
            all.
        folder: of the files; created.

    Raises:
        ValueError: for an unknown kind, or a folder that is not empty.
    """
    if kind not in (*PIPELINES, "mdm"):
        raise ValueError(f"there is no tiny pipeline {kind!r}; expected {', '.join(PIPELINES)}, mdm")
    target = Path(folder).expanduser()
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{folder} is not empty; expected a new folder")
    with quiet_libraries():
        if kind == "mdm":
            write_mdm(target)
        else:
            write_pipeline(kind, target)
    title = f"{PIPELINES.get(kind, write_mdm).__doc__}".strip().splitlines()[0].rstrip(".")
    print(f"{title}, tiny, with random weights: written to {folder}")


if __name__ == "__main__":
    run_script(tiny_pipeline, as_positional=True)

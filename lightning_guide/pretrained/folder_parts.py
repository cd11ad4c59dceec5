"""Parts of a folder of diffusers or transformers, checked before they are loaded: weights and tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lightning_guide.pretrained.loading import read_object

__all__ = ["check_part", "check_tokenizer", "check_tokenizer_files"]

# a tokenizer is one of these sets of files
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
WORDS = ("cat", "house")


def check_part(part: Path, stem: str, *, variant: str | None = None) -> None:
    """Refuse the subfolder `part` of a network without a config, or without whole safetensors named `stem`.

    Without safetensors pickles would be read.

    Raises:
        ValueError: naming the folder or file that is missing, a pointer of Git LFS, truncated or damaged.
    """
    _check_folder(part, "config.json", "a network")
    name = stem if variant is None else f"{stem}.{variant}"
    index = part / f"{stem}.safetensors.index{'' if variant is None else f'.{variant}'}.json"
    if (part / f"{name}.safetensors").is_file():
        files = [part / f"{name}.safetensors"]
    elif index.is_file():
        files = [part / shard for shard in sorted(set(read_object(index).get("weight_map", {}).values()))]
    else:
        there = sorted(path.name for path in part.iterdir() if path.suffix in (".bin", ".safetensors", ".pt"))
        pickled = "; pickled weights are not read" if any(each.endswith(".bin") for each in there) else ""
        raise ValueError(f"{part} holds no {name}.safetensors, but {', '.join(there) or 'no weights'}{pickled}")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} does not exist, which {index.name} names; expected all files of the weights")
        _check_pointer(file)
        try:
            with safe_open(file, "pt"):  # reads the header, and compares it with the size of the file
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(f"the weights {file} are truncated or damaged ({error}); expected safetensors") from None


def check_tokenizer_files(part: Path) -> None:
    """Refuse the subfolder `part` of a tokenizer without its config or vocabulary.

    Raises:
        ValueError: naming the folder or file that is missing, or a pointer of Git LFS.
    """
    _check_folder(part, "tokenizer_config.json", "a tokenizer")
    if not any(all((part / name).is_file() for name in names) for names in TOKENIZERS):
        expected = ", or ".join(" and ".join(names) for names in TOKENIZERS)
        raise ValueError(f"the tokenizer {part} has no vocabulary; expected {expected} in it")
    for path in (part / name for names in TOKENIZERS for name in names):
        if path.is_file():
            _check_pointer(path)


def check_tokenizer(tokenizer: Any, part: Path) -> None:
    """Refuse a tokenizer, loaded from `part`, that does not tell words apart.

    Raises:
        ValueError: naming the folder, if two words become the same tokens, or nothing but unknown ones.
    """
    unknown = {*tokenizer.all_special_ids, tokenizer.unk_token_id}
    known = [[token for token in tokenizer(word).input_ids if token not in unknown] for word in WORDS]
    if known[0] == known[1] or not all(known):
        raise ValueError(
            f"the tokenizer {part} does not tell the words {' and '.join(WORDS)} apart: its vocabulary has "
            f"{len(tokenizer)} tokens; expected the files that it was published with"
        )


def _check_folder(part: Path, config: str, what: str) -> None:
    """Refuse a folder that does not exist, or has no `config`."""
    if not part.is_dir():
        raise ValueError(f"the folder {part} does not exist; expected {what} in it")
    if not (part / config).is_file():
        raise ValueError(f"{part / config} does not exist; expected the folder of {what}")


def _check_pointer(path: Path) -> None:
    """Refuse a pointer in place of a file."""
    with path.open("rb") as file:
        start = file.read(23)
    if start == b"version https://git-lfs":
        raise ValueError(f"{path} is a pointer of Git LFS, whose file was not fetched; expected the file itself")

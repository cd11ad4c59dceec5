"""Text encoders of published text-to-image models, run by their own diffusers pipeline without its network."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_guide.pretrained.folder_parts import check_part, check_tokenizer, check_tokenizer_files
from lightning_guide.pretrained.loading import files_of, find_folder, read_object
from lightning_guide.pretrained.prompts import CachedPrompts
from lightning_guide.pretrained.text_families import FAMILIES
from lightning_guide.runs.sampling import find_device

__all__ = ["TextEncoders", "encode_prompts", "quiet_libraries"]

Precision = Literal["float32", "bfloat16", "float16"]


class TextEncoders:
    """Text encoders of a diffusers folder, loaded at first use; `free` drops them.

    Attributes:
        folder: the folder, of a name on the Hugging Face hub its local copy.
        pipeline: name of the pipeline.
    """

    NAMED = 3  # prompts that are named when they are cut
    ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")

    def __init__(
        self,
        source: str | Path,
        *,
        revision: str | None = None,
        variant: str | None = None,
        dtype: Precision = "float32",
        device: torch.device | str = "cpu",
        batch_size: int = 16,
    ) -> None:
        """Open a folder with `model_index.json`, or a name on the Hugging Face hub; only its encoders are read.

        Args:
            source: the folder or name, with or without "diffusers:" before it.
            revision: branch, tag or commit on the hub.
            variant: files such as "fp16"; an encoder without them is read from its plain ones.
            dtype: precision in which the encoders compute.
            device: where they compute.
            batch_size: prompts in one call.

        Raises:
            ValueError: naming the source, if it is no folder of a supported pipeline or cannot be downloaded, its
                tokenizers have no vocabulary, or there is no such device.
        """
        place = str(source).removeprefix("diffusers:")
        self.folder = find_folder(place, _wanted(variant), revision=revision)
        self.variant, self.dtype, self.device, self.batch_size = variant, dtype, find_device(device), batch_size
        index = read_object(self.folder / "model_index.json")
        self.pipeline, self._index = str(index.get("_class_name")), index
        if self.pipeline not in FAMILIES:
            supported = ", ".join(FAMILIES)
            raise ValueError(f"{self.folder} is a {self.pipeline}, whose texts are not read; supported: {supported}")
        self._family = FAMILIES[self.pipeline]
        self._loaded: list[Any] = []
        if variant and any(part.startswith("text") and not self._variant(part) for part in self.parts):
            self.folder = find_folder(place, _wanted(None), revision=revision)
        self._tokenizers = [part for part in self.parts if part.startswith("tokenizer")]
        for part in self._tokenizers:
            check_tokenizer_files(self.folder / part)

    @property
    def identity(self) -> str:
        """Hash of the pipeline and of the names, sizes and times of change of all files of encoders and tokenizers."""
        cleans = bool(find_spec("bs4") and find_spec("ftfy"))
        described = [self.pipeline, self.dtype, cleans, files_of(self.folder, self.parts)]
        described += [self.variant] if self.variant else []
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]

    @property
    def parts(self) -> list[str]:
        """Subfolders of the encoders and tokenizers that the folder has."""
        named = [name for name in self._index if name.startswith(("text_encoder", "tokenizer"))]
        return [name for name in named if (self._index[name] or [None])[-1] is not None]

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Return the tokens (P, L, C) of `prompts`, float32 on the CPU. Prompts that are cut cause warnings.

        Raises:
            ValueError: if the encoders cannot be loaded, or their output is not finite.
        """
        return torch.cat(list(self.batches(prompts)))

    def batches(self, prompts: Sequence[str]) -> Iterator[Tensor]:
        """Yield the tokens of `encode` batch by batch."""
        pipe = self._load()
        self._warn_of_cuts(prompts)
        for first in range(0, len(prompts), self.batch_size):
            texts = list(prompts[first : first + self.batch_size])
            with torch.no_grad(), quiet_libraries():
                tokens = self._family.encode(pipe, texts).to("cpu", torch.float32)
            if not bool(tokens.isfinite().all()):
                raise ValueError(f"the text encoders of {self.folder} give numbers that are not finite in {self.dtype}")
            yield tokens

    def empty(self, negative_prompt: str | None = None) -> Tensor:
        """Return what "no condition" is, (L, C): `negative_prompt`, or the pipeline's default without one.

        That is the empty prompt, or zeros where the folder says so (SDXL's `force_zeros_for_empty_prompt`). It is kept
        by `CachedPrompts`; the encoders are dropped from memory.
        """
        tokens = CachedPrompts(self, [negative_prompt or ""], exact=True).encode()[torch.tensor([0])][0]
        return torch.zeros_like(tokens) if negative_prompt is None and self.drops_empty else tokens

    @property
    def drops_empty(self) -> bool:
        """Whether the model takes zeros for the empty prompt."""
        return bool(self._index.get("force_zeros_for_empty_prompt", self._family.zeros))

    def free(self) -> None:
        """Drop the encoders from memory."""
        self._loaded.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self) -> Any:
        """Return the pipeline without its network."""
        if not self._loaded:
            diffusers, transformers = _libraries()
            models = {part: self._encoder(transformers, part) for part in self.parts if part.startswith("text_encoder")}
            absent = [name for name, each in self._index.items() if isinstance(each, list) and name not in self.parts]
            with quiet_libraries(), torch.random.fork_rng(devices=[]):
                try:
                    pipe = getattr(diffusers, self.pipeline).from_pretrained(
                        self.folder, **dict.fromkeys(absent), **models, local_files_only=True
                    )
                except Exception as error:  # of many types
                    raise ValueError(f"the tokenizers of {self.folder} cannot be loaded: {_short(error)}") from None
            for part in self._tokenizers:
                check_tokenizer(getattr(pipe, part), self.folder / part)
            config = self.folder / self._family.network / "config.json"
            if config.is_file():  # without T5, SD3 asks its network for the number of channels
                setattr(pipe, self._family.network, SimpleNamespace(config=SimpleNamespace(**read_object(config))))
            self._loaded = [pipe]
        return self._loaded[0]

    def _encoder(self, transformers: Any, part: str) -> Any:
        """Load one encoder from safetensors, with all its weights."""
        kind = self._index[part][-1]
        if kind not in self.ENCODERS:
            raise ValueError(f"{part} of {self.folder} is a {kind}; expected {', '.join(self.ENCODERS)}")
        check_part(self.folder / part, "model", variant=self._variant(part))
        options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
        options |= {"variant": self._variant(part)}
        try:
            with quiet_libraries(), torch.random.fork_rng(devices=[]):
                model, report = getattr(transformers, kind).from_pretrained(
                    self.folder / part, dtype=getattr(torch, self.dtype), **options
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(f"{part} of {self.folder} cannot be loaded from safetensors: {_short(error)}") from None
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"the weights of {part} of {self.folder} lack {missing[0]}, and {len(missing) - 1} more")
        return model.to(self.device).eval().requires_grad_(False)

    def _variant(self, part: str) -> str | None:
        """Return the variant of the files of an encoder, None for the plain ones."""
        return self.variant if any((self.folder / part).glob(f"model.{self.variant}*.safetensors")) else None

    def _warn_of_cuts(self, prompts: Sequence[str]) -> None:
        pipe, most = self._load(), self._family.length
        tokenizer = getattr(pipe, self._family.tokenizer)
        if tokenizer is None:  # SD3 without T5
            tokenizer, most = pipe.tokenizer, pipe.tokenizer.model_max_length
        cut = 0
        for number, text in enumerate(prompts):
            tokens = tokenizer(text, truncation=False, verbose=False).input_ids
            cut += len(tokens) > most
            if len(tokens) > most and cut <= self.NAMED:
                read = tokenizer.decode(tokens[: most - 1], skip_special_tokens=True)
                warnings.warn(
                    f"prompt {number}, {text[:40]!r}..., has {len(tokens)} tokens, of which {self.pipeline} reads "
                    f"{most}: it is cut after {read[-40:]!r}",
                    stacklevel=4,
                )
        if cut > self.NAMED:
            warnings.warn(
                f"{cut - self.NAMED} more of {len(prompts)} prompts are cut after {most} tokens", stacklevel=4
            )


def encode_prompts(
    source: str | Path,
    prompts: Sequence[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: Precision = "float32",
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the tokens (P, L, C) of `prompts` by the text encoders of a diffusers folder, as `lg.sample` takes them.

    The encoders are dropped from memory afterwards. Arguments as those of `TextEncoders`.

    Raises:
        ValueError: as `TextEncoders`, or for anything but a list of texts.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(each, str) for each in prompts):
        raise ValueError(f"the prompts are {prompts!r:.100}; expected a list of one text or more")
    return TextEncoders(source, revision=revision, variant=variant, dtype=dtype, device=device).encode(prompts)


def _wanted(variant: str | None) -> list[str]:
    """Return patterns of the files that are downloaded of a name on the hub: one copy of the weights, no pickles."""
    weights = ("model.safetensors", "model-*-of-?????.safetensors")
    if variant is not None:
        weights = (f"model.{variant}.safetensors", f"model.{variant}-*-of-?????.safetensors")
    configs = ["model_index.json", "*/config.json", "tokenizer*/*", "text_encoder*/*.json"]
    return [*configs, *(f"text_encoder*/{each}" for each in weights)]


def _libraries() -> tuple[Any, Any]:
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise ValueError(
            f"text encoders need diffusers and transformers ({error}): `pip install lightning-guide[pretrained]`"
        ) from None
    return diffusers, transformers


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep messages and progress bars of diffusers and transformers away."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [each.level for each in loggers]
    bars = [library.utils.logging for library in _libraries()]
    shown = [each.is_progress_bar_enabled() for each in bars]
    for each in loggers:
        each.setLevel(logging.ERROR)
    for bar in bars:
        bar.disable_progress_bar()
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
        for bar, enabled in zip(bars, shown, strict=True):
            if enabled:
                bar.enable_progress_bar()

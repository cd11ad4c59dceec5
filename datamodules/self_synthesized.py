"""Training data drawn from a finished model: the synthetic set of SIMS, https://arxiv.org/abs/2408.16333.

Steps 2 and 3 of the algorithm of Alemohammad et al. 2024: n_s samples of the base model by its usual sampler, on which
an auxiliary model initialized as the base is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import DiffusionData
from datamodules.class_mix import ClassMix, class_labels, class_shares
from datamodules.examples import Examples
from datamodules.prompted import PromptedExamples, prompts_checksum
from datamodules.shard_examples import ShardExamples
from datamodules.storage.image_codec import decode_sample
from datamodules.storage.synthesis import Synthesis
from datamodules.storage.synthetic_folder import SHARDS, SyntheticFolder, description_of
from datamodules.storage.tar_index import SAMPLES
from lightning_guide.data import Batch, Prompts
from lightning_guide.denoiser import Denoiser
from lightning_guide.guidance import Main
from lightning_guide.inference import fuse_weights
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.pretrained.source import is_published, load
from lightning_guide.runs.class_names import check_class_names
from lightning_guide.runs.models import RunModels, finished_model
from lightning_guide.samplers import Heun, Sampler
from lightning_guide.seeds import check_seed
from lightning_guide.snapshots.file import checksum
from lightning_guide.utils.distributed import run_on_all_ranks
from lightning_guide.utils.resume import check_same_settings, plain_data, read_record

__all__ = ["SelfSynthesized"]


_IN_MEMORY_BELOW = 2**30  # bytes


class SelfSynthesized(DiffusionData):
    """Samples of the model in `run` as training data; held-out and reference data, and prompts, are those of `data`.

    `setup("fit")` draws the missing samples in `folder` on all ranks, and resumes if it was interrupted. The folder
    holds `synthetic.json` and the shards `synthetic-*.tar`, the same bytes for any number of processes: `.png`, or
    `.npy` for latents and other data, `.cls`, the class or the number of the prompt, and `.txt`, its text.
    `datamodules.Shards` reads shards of images as well.
    """

    def __init__(
        self,
        data: DiffusionData,
        run: str,
        folder: str,
        num_samples: int,
        *,
        images: int | float | str | None = None,
        sigma_rel: float = 0.05,
        options: Mapping[str, Any] | None = None,
        guidance: Denoiser | None = None,
        sampler: Sampler | None = None,
        classes: ClassMix = "data",
        sampling_seed: int = 0,
        chunk_size: int = 250,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        """Configure the set; nothing is read or drawn yet.

        Args:
            data: datamodule of the model's training data: shape, classes, stored form, held-out and reference data.
            run: folder of the finished run, or a published model, KIND:PLACE.
            folder: folder of the synthetic set.
            num_samples: number of samples n_s.
            images: training length of the snapshot, a count or a fraction of the run; None: the newest snapshot.
            sigma_rel: width of the weight average that draws.
            options: those of a published model, as of `Pretrained`, such as its dtype.
            guidance: guidance of the model, made of references; None: the model itself.
            sampler: sampler; None: Heun with 32 steps.
            classes: "equal", "data" (shares of the training data), or one share for each class. Prompts have equal
                shares: sample i has prompt i modulo their number.
            sampling_seed: seed of the samples; they share no noise with any evaluation of any seed.
            chunk_size: number of samples in one network call and in one shard.
            batch_size: training batch size per process and micro-step.
            num_workers: loader processes in training.
            seed: seed of the order of the samples in training.

        Raises:
            ValueError: if a number is below 1, or a seed below 0.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        if num_samples < 1 or chunk_size < 1:
            raise ValueError(
                f"SelfSynthesized needs num_samples >= 1 and chunk_size >= 1, got {num_samples} and {chunk_size}"
            )
        self.data, self.run, self.folder, self.num_samples = data, run, Path(folder).expanduser(), num_samples
        self.images, self.sigma_rel, self.options, self.classes = images, sigma_rel, dict(options or {}), classes
        self.guidance, self.sampler = guidance or Main(), sampler or Heun()
        self.sampling_seed, self.chunk_size = check_seed(sampling_seed), chunk_size
        self.data_shape, self.num_classes = tuple(data.data_shape), data.num_classes
        self.class_names = data.class_names
        self._made_of: dict[str, Any] = {}

    def prepare_data(self) -> None:
        """Encode prompts, for example, as `data` does."""
        self.data.prepare_data()

    @property
    def token_channels(self) -> int:  # type: ignore[override]
        """C of the embeddings of `data`."""
        return self.data.token_channels

    def prompts(self) -> Prompts:
        """Return the prompts of `data`."""
        return self.data.prompts()

    def _base(self) -> Denoiser:
        """Return the model, on the CPU."""
        if self.options or is_published(self.run):
            return load(self.run, **self.options)
        return finished_model(self.run, self.images, self.sigma_rel)

    def setup(self, stage: str) -> None:
        """Draw the missing samples; all ranks return or fail together.

        Raises:
            ValueError: if the model does not exist or does not match the data, the folder holds another set, or
                samples are not finite.
        """
        super().setup(stage)
        if stage != "fit":
            return
        rank, world = self._place()
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        base = self._base().to(device)  # a wait for each weight, before the set is drawn
        self._check_fits(base)
        prompts = self.prompts() if base.token_channels else None
        denoiser = self.guidance.resolve(RunModels(base, run=self.run, device=device, prompts=prompts)).eval()
        labels, settings = self._labels(base), self._settings(base, denoiser)
        counts = [] if int(labels[0]) < 0 else torch.bincount(labels, minlength=self.num_classes).tolist()
        described = SyntheticFolder(self.folder, settings, counts)
        run_on_all_ranks(described.check)
        run_on_all_ranks(lambda: described.write(run=self.run) if rank == 0 else None)
        self._made_of = plain_data({**settings, "counts": counts})
        drawn = fuse_weights(denoiser), self.sampler, labels, self.sampling_seed, self.chunk_size
        set_ = Synthesis(*drawn, self.folder, self.data)
        with described.lock(set_.shards, owner=rank == 0):
            run_on_all_ranks(lambda: set_.write(self.data.stored, device, rank=rank, world=world))
        self.__dict__.pop("_examples", None)

    def state_dict(self) -> dict[str, Any]:
        """Return the settings of the set, for checkpoints."""
        return dict(self._made_of)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume training on another set than the checkpoint's.

        Raises:
            ValueError: naming the first setting that differs.
        """
        if self._made_of:
            alternative = f"another data.folder than {self.folder}, or another trainer.default_root_dir"
            place = "the synthetic set of the checkpoint"
            check_same_settings(state_dict, self._made_of, place=place, alternative=alternative)

    def training(self) -> Examples:
        """Return the synthetic set.

        Raises:
            ValueError: if samples are missing.
        """
        return self._examples

    def heldout(self) -> Examples:
        """Return the held-out set of the real data."""
        return self.data.heldout()

    def reference(self, device: torch.device) -> Iterable[Batch]:
        """Return the real training data."""
        return self.data.reference(device)

    def encode(self, raw: Tensor) -> Tensor:
        """Encode as the real data."""
        return self.data.encode(raw)

    def decode(self, x: Tensor) -> Tensor:
        """Decode as the real data."""
        return self.data.decode(x)

    def in_order(self, examples: Examples) -> Dataset[Batch]:
        """Return the held-out set as the real data do: latents are drawn of their means and deviations, for example."""
        return self.data.in_order(examples)

    @cached_property
    def _examples(self) -> Examples:
        """The synthetic set, decoded into memory below 1 GiB."""
        paths, description = sorted(self.folder.glob(SHARDS)), description_of(self.folder)
        if not paths or not description.is_file():
            raise ValueError(f"{self.folder} holds no synthetic set yet; `fit`, or setup('fit'), draws it")
        classes = len(read_record(description)[1]["counts"])
        records = ShardExamples(paths, size=None, num_classes=classes, extensions=SAMPLES, decode=decode_sample)
        if len(records) != self.num_samples:
            raise ValueError(
                f"{self.folder} holds {len(records)} of {self.num_samples} samples; `fit`, or setup('fit'), draws all"
            )
        examples = records.decoded() if records.nbytes() < _IN_MEMORY_BELOW else records
        return PromptedExamples(examples, self.prompts()) if classes and self.token_channels else examples

    def _check_fits(self, base: Denoiser) -> None:
        """Refuse a model of other data; warn if the model in training has another architecture."""
        if tuple(base.data_shape) != self.data_shape:
            raise ValueError(
                f"the model in {self.run} draws x of shape {tuple(base.data_shape)}, the data have {self.data_shape}"
            )
        if base.token_channels and base.token_channels != self.token_channels:
            raise ValueError(
                f"the model in {self.run} reads embeddings of {base.token_channels} channels, the data have "
                f"{self.token_channels} (0: no prompts)"
            )
        if base.num_classes not in (0, self.num_classes):
            raise ValueError(
                f"the model in {self.run} has {base.num_classes} classes, the data have {self.num_classes}"
            )
        check_class_names(self.class_names, base.class_names, of=f"the model in {self.run}")
        trained = self._module()
        started = (trained.denoiser.unadapted or trained.denoiser) if isinstance(trained, DiffusionModule) else base
        if started.recipe != base.recipe:
            rank_zero_warn(
                f"the model in training has another architecture than the model in {self.run}, which draws the data; "
                "SIMS initializes it from that one (lightning_guide.runs.pretrained), and Neon requires it"
            )

    def _labels(self, base: Denoiser) -> Tensor:
        """Return labels of the samples (n,), or numbers of their prompts, -1 for an unconditional model."""
        if base.token_channels:
            return torch.arange(self.num_samples) % len(self.prompts())
        if not base.num_classes:
            if isinstance(self.classes, list):
                raise ValueError(f"classes are the shares {self.classes}, but the model in {self.run} has no labels")
            return torch.full((self.num_samples,), -1)
        shares = class_shares(self.classes, base.num_classes, self.data.reference(torch.device("cpu")))
        return class_labels(shares, self.num_samples, seed=self.sampling_seed)

    def _settings(self, base: Denoiser, denoiser: Denoiser) -> dict[str, Any]:
        """Return all settings that the samples depend on, as plain data."""
        # a wait for each weight, once: the host computes a hash
        weights = {name: tensor.cpu() for name, tensor in denoiser.state_dict().items()}
        prompts = {"prompts_sha256": prompts_checksum(self.data)} if base.token_channels else {}
        return prompts | {
            "model": base.recipe,
            "guidance": self.guidance.recipe,
            "sampler": self.sampler.recipe,
            "classes": self.classes,
            "num_samples": self.num_samples,
            "sampling_seed": self.sampling_seed,
            "chunk_size": self.chunk_size,
            "weights_sha256": checksum(weights, {}),
        }

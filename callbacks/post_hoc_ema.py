"""Power-function averages of the model in training, kept alive for evaluation and on disk for reconstruction.

Karras et al. 2024 (EDM2), https://arxiv.org/abs/2312.02696, section 3. An average is a network of its own: evaluation
calls it directly, nothing is swapped in or out of the trained one.

EDM's exponential average beside, or in place of, the power-function averages.

Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from lightning_guide.denoiser import Denoiser
from lightning_guide.ema import gamma, half_life_retention, half_life_width, retention, update_
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.snapshots import Entry, SnapshotStore
from lightning_guide.snapshots.file import read_metadata
from lightning_guide.training.sharding import clone_sharded, load_unsharded_, local_tensor, unshard, unsharded_state
from lightning_guide.utils.recipe import equivalent

__all__ = ["HalfLifeEMA", "PostHocEMA"]


class PostHocEMA(pl.Callback):
    """Tracks averages of relative widths `sigma_rels` and stores them every `every_images` images.

    After an update that moves the clock from t' to t images, average <- average + (1 - (t'/t)^(gamma+1)) (weights -
    average), exact for any number of steps between updates.
    """

    folder = "."  # of the snapshots, in that of the run

    def __init__(
        self,
        every_images: int,
        *,
        sigma_rels: Sequence[float] = (0.05, 0.10),
        update_every_steps: int = 1,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        """`every_images`: distance of snapshots; `update_every_steps`: optimizer steps between updates.

        Raises:
            ValueError: if a width is impossible or given twice, or a distance is not positive.
        """
        super().__init__()
        if every_images < 1 or update_every_steps < 1:
            raise ValueError(
                f"PostHocEMA needs every_images >= 1 and update_every_steps >= 1, got {every_images} and "
                f"{update_every_steps}"
            )
        if not sigma_rels or len(set(sigma_rels)) < len(sigma_rels):
            raise ValueError(f"PostHocEMA needs one or more different sigma_rels, got {list(sigma_rels)}")
        self.gammas = {float(width): gamma(width) for width in sigma_rels}
        self.every_images, self.update_every_steps = every_images, update_every_steps
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.images = 0
        self._extra_times: set[int] = set()
        self._averages: dict[float | str, Denoiser] = {}
        self._restored: dict[str, dict[str, torch.Tensor]] = {}
        self._source: Denoiser | None = None
        self._step = 0

    # What others ask for

    @property
    def sigma_rels(self) -> list[float | str]:
        """The widths that are tracked."""
        return [*sorted(self.gammas)]

    def retained(self, average: float | str, before: int, now: int) -> float:
        """Share of an average that survives an update at `now` images, the last one having been at `before`."""
        return retention(self.gammas[float(average)], before, now)

    def width(self, average: float | str) -> float:
        """The sigma_rel by which an average is stored."""
        return float(average)

    def live(self, sigma_rel: float | str) -> Denoiser:
        """The average of that width as it stands; it goes on changing with training.

        Raises:
            ValueError: if that width is not tracked, or nothing has been averaged yet.
        """
        if sigma_rel not in self.sigma_rels:
            raise ValueError(f"no average with sigma_rel={sigma_rel} is tracked; tracked: {self.sigma_rels}")
        if not self.images:
            raise ValueError(f"the average with sigma_rel={sigma_rel} holds nothing before the first training step")
        self._copy_buffers()
        return unshard(self._averages[sigma_rel])

    def also_at(self, times: Sequence[int]) -> None:
        """Asks for snapshots at further `times` in images: each at the first update that reaches it."""
        self._extra_times.update(times)

    def times(self, planned_images: int, images_per_step: int) -> list[int]:
        """All times in images at which a run of that length stores, from its beginning to its end."""
        pace = images_per_step * self.update_every_steps
        asked = {*range(self.every_images, planned_images, self.every_images), *self._extra_times}
        return sorted({min(-(-time // pace) * pace, planned_images) for time in asked} | {planned_images})

    def to_come(self, planned_images: int, images_per_step: int) -> list[Entry]:
        """All averages that such a run stores among its own snapshots; elsewhere they guide nobody unasked."""
        if self.folder != PostHocEMA.folder:
            return []
        times = self.times(planned_images, images_per_step)
        return [Entry(time, self.width(width), Path("snapshots")) for time in times for width in self.sigma_rels]

    # Life with the trainer

    @property
    def state_key(self) -> str:
        """One for each set of averages."""
        return self._generate_state_key(sigma_rels=self.sigma_rels)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes the averages, on the device of the model, or takes up those of a checkpoint.

        Raises:
            ValueError: if the module has no denoiser, or the run's folder holds snapshots of another network.
        """
        if not isinstance(pl_module, DiffusionModule):
            raise ValueError(f"PostHocEMA averages the denoiser of a DiffusionModule, got a {type(pl_module).__name__}")
        self._check_folder(trainer, pl_module.denoiser)
        self._source = pl_module.denoiser
        if pl_module.images_seen == 0:  # a new run
            self.images, self._averages = 0, {}
        for width in self.sigma_rels:
            if width not in self._averages or self._restored:
                self._averages[width] = clone_sharded(self._source)
            if self._restored:
                load_unsharded_(self._averages[width], self._restored[str(width)])
        self._restored = {}

    def _check_folder(self, trainer: pl.Trainer, denoiser: Denoiser) -> None:
        """Refuses to add to the snapshots of another network."""
        for entry in reversed(self._store(trainer).entries()):
            try:
                recipe = read_metadata(entry.path).recipe
            except ValueError:  # damaged: who asks for it will be told
                continue
            if not equivalent(recipe, denoiser.recipe):
                raise ValueError(
                    f"{entry.path} belongs to another network than this one; expected a folder without snapshots, or "
                    "with those of this very run (trainer.default_root_dir)"
                )
            return

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The steps so far are in the averages already."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Updates after each optimizer step that is due, and stores what the clock has passed."""
        last = trainer.global_step >= trainer.max_steps > 0
        if trainer.global_step == self._step or (trainer.global_step % self.update_every_steps and not last):
            return
        self._step = trainer.global_step
        assert isinstance(pl_module, DiffusionModule) and self._source is not None
        before, now = self.images, pl_module.images_seen
        weights = local_tensor(parameter.detach() for parameter in self._source.parameters())
        for width, average in self._averages.items():
            update_(local_tensor(average.parameters()), weights, self.retained(width, before, now))
        self.images = now
        due = now // self.every_images > before // self.every_images
        if due or last or any(before < time <= now for time in self._extra_times):
            self._save(trainer, pl_module)

    def _save(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        """Writes every average on rank 0, gathered if it is sharded; nothing in a trial (`fast_dev_run`)."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._copy_buffers()
        store = self._store(trainer)
        for width, average in self._averages.items():
            tensors = unsharded_state(average)
            if not trainer.is_global_zero:
                continue
            store.save(
                tensors,
                images=self.images,
                sigma_rel=self.width(width),
                recipe=module.denoiser.recipe,
                planned_images=module.planned_images,
                buffers=[name for name, _ in average.named_buffers()],
            )

    def _store(self, trainer: pl.Trainer) -> SnapshotStore:
        """Where the snapshots lie."""
        return SnapshotStore(Path(trainer.default_root_dir) / self.folder / "snapshots", dtype=self.dtype)

    def _copy_buffers(self) -> None:
        """Buffers are no averages: they are those of the trained network."""
        assert self._source is not None
        for average in self._averages.values():
            for copied, buffer in zip(average.buffers(), self._source.buffers(), strict=True):
                copied.copy_(buffer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the averages, equal on all ranks."""
        averages = {str(width): unsharded_state(average) for width, average in self._averages.items()}
        checkpoint[self.state_key] = {"images": self.images, "averages": averages}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes the averages of a checkpoint.

        Raises:
            ValueError: if the checkpoint was written with other widths.
        """
        if self.state_key not in checkpoint:
            raise ValueError(
                f"the checkpoint holds no averages with sigma_rels {self.sigma_rels}; "
                "resume with the sigma_rels the run began with"
            )
        self.images = checkpoint[self.state_key]["images"]
        self._restored = checkpoint[self.state_key]["averages"]


class HalfLifeEMA(PostHocEMA):
    """One average with the half-life min(`half_life`, `ramp` n) after n images, stored every `every_images` images.

    Evaluated by `average: half_life` of the module. Its snapshots lie apart, in `half_life/snapshots` of the run's
    folder, named by the width that its profile has at that time (`half_life_width`): other averages cannot be rebuilt
    from it exactly. As a guider: `Snapshot(run: RUN/half_life, images: ..., sigma_rel: ...)` with that very width.
    """

    folder = "half_life"

    def __init__(
        self,
        every_images: int,
        *,
        half_life: float = 500_000,
        ramp: float = 0.05,
        update_every_steps: int = 1,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        """`half_life` in images; `ramp` times the images seen is its limit while they are few.

        Raises:
            ValueError: if one of them is not positive.
        """
        super().__init__(every_images, update_every_steps=update_every_steps, dtype=dtype)
        if not (half_life > 0 and ramp > 0):
            raise ValueError(f"HalfLifeEMA needs half_life > 0 and ramp > 0, got {half_life} and {ramp}")
        self.half_life, self.ramp = half_life, ramp

    @property
    def sigma_rels(self) -> list[float | str]:
        """The name of the one average."""
        return ["half_life"]

    def retained(self, average: float | str, before: int, now: int) -> float:
        """As `half_life_retention`."""
        return half_life_retention(before, now, half_life=self.half_life, ramp=self.ramp)

    def width(self, average: float | str) -> float:
        """The width that the profile has now, to four decimals."""
        return round(half_life_width(self.images, half_life=self.half_life, ramp=self.ramp), 4)

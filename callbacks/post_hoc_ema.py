"""Post-hoc EMA: weight averages of given widths (`sigma_rels`), updated in training and stored as snapshots.

Power-function averages: Karras et al. 2024 (EDM2), https://arxiv.org/abs/2312.02696, section 3. Half-life average:
Karras et al. 2022 (EDM), https://arxiv.org/abs/2206.00364, table 7. Each average is a separate network that evaluation
calls directly; no weights are swapped in or out of the trained network. Frozen weights are shared with it. Of low-rank
additions the factors U and V are averaged, each by itself, so that an average is of the same rank; the product of the
means differs from the mean of the products by the covariance of U and V over the averaged time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from lightning_guide.denoiser import Denoiser
from lightning_guide.ema import Average, gamma, retention, update_
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.snapshots import Entry, SnapshotStore
from lightning_guide.snapshots.file import read_metadata
from lightning_guide.training.sharding import clone_sharded, load_unsharded_, local_tensor, unshard, unsharded_state
from lightning_guide.utils.modules import persistent_buffers
from lightning_guide.utils.recipe import equivalent

__all__ = ["PostHocEMA"]


class PostHocEMA(pl.Callback):
    """Power-function averages of relative widths `sigma_rels`, stored every `every_images` images.

    An update from t' to t images is average <- average + (1 - (t'/t)^(gamma+1)) (weights - average), exact for any
    number of steps between updates.
    """

    folder = "."  # parent of the snapshots folder, relative to the run folder

    def __init__(
        self,
        every_images: int,
        *,
        sigma_rels: Sequence[float] = (0.05, 0.10),
        update_every_steps: int = 1,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        """Configure the averages.

        Args:
            every_images: images between snapshots.
            sigma_rels: relative widths of the averages.
            update_every_steps: optimizer steps between updates of the averages.
            dtype: type of the stored weights.

        Raises:
            ValueError: if a width is impossible or given twice, or an interval is below 1.
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
        self._averages: dict[Average, Denoiser] = {}
        self._restored: dict[str, dict[str, torch.Tensor]] = {}
        self._source: Denoiser | None = None
        self._step = 0
        self._since = 0

    # Averages and times of snapshots

    @property
    def averages(self) -> list[Average]:
        """Tracked averages."""
        return [Average(width) for width in sorted(self.gammas)]

    @property
    def names(self) -> list[float | str]:
        """Tracked averages as configs write them."""
        return [average.value for average in self.averages]

    def retained(self, average: Average, before: int, now: int) -> float:
        """Return the factor of an average in an update at `now` images, the previous update being at `before`."""
        assert average.sigma_rel is not None
        return retention(self.gammas[average.sigma_rel], before, now)

    def width(self, average: Average) -> float:
        """Return the width sigma_rel under which an average is stored."""
        assert average.sigma_rel is not None
        return average.sigma_rel

    def live(self, average: Average | float | str) -> Denoiser:
        """Return the model of an average, which later updates keep changing.

        Raises:
            ValueError: if that width is not tracked, or nothing has been averaged yet.
        """
        chosen = Average.of(average)
        if chosen not in self.averages:
            raise ValueError(f"no average with sigma_rel={chosen} is tracked; tracked: {self.names}")
        if not self.images:
            raise ValueError(f"the average with sigma_rel={chosen} holds nothing before the first training step")
        self._copy_buffers()
        return unshard(self._averages[chosen])

    def add_times(self, times: Sequence[int]) -> None:
        """Store snapshots at further `times` in images as well, each at the first update that reaches it."""
        self._extra_times.update(times)

    def times(self, last_images: int, images_per_step: int, *, images: int = 0, step: int = 0) -> dict[int, int]:
        """Return times of snapshots to `last_images` -> images at the update before; now `step`, after `images`."""
        every = self.update_every_steps
        last_step = step + (last_images - images) // images_per_step
        first = (images // self.every_images + 1) * self.every_images
        requested = {*range(first, last_images, self.every_images), *self._extra_times, last_images}
        steps = {step - (images - time) // images_per_step for time in requested if images < time <= last_images}
        due = {min(-(-number // every) * every, last_step) for number in steps}  # rounded up to an update
        pairs = ((number, max((number - 1) // every * every, step)) for number in sorted(due))
        return {images + (now - step) * images_per_step: images + (b - step) * images_per_step for now, b in pairs}

    def to_come(self, last_images: int, images_per_step: int, *, images: int = 0, step: int = 0) -> list[Entry]:
        """Return the snapshots that the run will store (`times`); none if `folder` keeps them separate."""
        if self.folder != PostHocEMA.folder:
            return []
        times = self.times(last_images, images_per_step, images=images, step=step)
        widths = [self.width(average) for average in self.averages]
        return [Entry(time, width, Path("snapshots"), before) for time, before in times.items() for width in widths]

    # Trainer hooks

    @property
    def state_key(self) -> str:
        """Key of this callback in checkpoints, one for each set of averages."""
        return self._generate_state_key(sigma_rels=self.names)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Create the averages on the device of the model, or restore those of a checkpoint.

        Raises:
            ValueError: if the module has no denoiser, or the run's folder holds snapshots of another network.
        """
        if not isinstance(pl_module, DiffusionModule):
            raise ValueError(f"PostHocEMA averages the denoiser of a DiffusionModule, got a {type(pl_module).__name__}")
        self._check_folder(trainer, pl_module.denoiser)
        self._source = pl_module.denoiser
        if pl_module.images_seen == 0:  # a new run
            self.images, self._averages = 0, {}
        for average in self.averages:
            if average not in self._averages or self._restored:
                self._averages[average] = clone_sharded(self._source)
            if self._restored:
                load_unsharded_(self._averages[average], self._restored[str(average)])
        self._restored = {}

    def _check_folder(self, trainer: pl.Trainer, denoiser: Denoiser) -> None:
        """Check that the snapshots in the run folder belong to the same network."""
        for entry in reversed(self._store(trainer).entries()):
            try:
                recipe = read_metadata(entry.path).recipe
            except ValueError:  # damaged: reported when it is loaded
                continue
            if not equivalent(recipe, denoiser.recipe):
                raise ValueError(
                    f"{entry.path} belongs to another network than this one; expected a folder without snapshots, or "
                    "with those of this very run (trainer.default_root_dir)"
                )
            return

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count further steps from here; earlier ones are in the averages already."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update after each optimizer step that is due; store a snapshot if a time of snapshots was passed."""
        last = trainer.global_step >= trainer.max_steps > 0
        if trainer.global_step == self._step or (trainer.global_step % self.update_every_steps and not last):
            return
        self._step = trainer.global_step
        assert isinstance(pl_module, DiffusionModule) and self._source is not None
        before, now = self.images, pl_module.images_seen
        trained = [parameter.requires_grad for parameter in self._source.parameters()]
        weights = local_tensor(each.detach() for each in compress(self._source.parameters(), trained))
        for average, model in self._averages.items():
            averages = local_tensor(compress(model.parameters(), trained))
            update_(averages, weights, self.retained(average, before, now))
        self.images, self._since = now, before
        due = now // self.every_images > before // self.every_images
        if due or last or any(before < time <= now for time in self._extra_times):
            self._save(trainer, pl_module)

    def _save(self, trainer: pl.Trainer, module: DiffusionModule) -> None:
        """Write all averages on rank 0, gathered if they are sharded; nothing in a trial (`fast_dev_run`)."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._copy_buffers()
        store = self._store(trainer)
        for average, model in self._averages.items():
            tensors = unsharded_state(model)
            if not trainer.is_global_zero:
                continue
            store.save(
                tensors,
                images=self.images,
                sigma_rel=self.width(average),
                recipe=module.denoiser.recipe,
                planned_images=module.planned_images,
                buffers=persistent_buffers(model),
                since=self._since,
            )

    def _store(self, trainer: pl.Trainer) -> SnapshotStore:
        """Return the store of the snapshots."""
        return SnapshotStore(Path(trainer.default_root_dir) / self.folder / "snapshots", dtype=self.dtype)

    def _copy_buffers(self) -> None:
        """Copy the buffers of the trained network, which are not averaged."""
        assert self._source is not None
        for model in self._averages.values():
            for copied, buffer in zip(model.buffers(), self._source.buffers(), strict=True):
                copied.copy_(buffer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the averages, which are equal on all ranks."""
        averages = {str(average): unsharded_state(model) for average, model in self._averages.items()}
        checkpoint[self.state_key] = {"images": self.images, "averages": averages}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the averages of a checkpoint for `on_fit_start`; none for another command than fit.

        Raises:
            ValueError: if the checkpoint was written with other widths.
        """
        if trainer.state.fn != "fit":
            return
        if self.state_key not in checkpoint:
            raise ValueError(
                f"the checkpoint holds no averages with sigma_rels {self.names}; "
                "resume with the sigma_rels the run began with"
            )
        self.images = checkpoint[self.state_key]["images"]
        self._restored = checkpoint[self.state_key]["averages"]

"""A run folder in Python: its config, snapshots and models; sampling and evaluation.

RUN/config.yaml   RUN/snapshots/   RUN/checkpoints/   RUN/tensorboard/   RUN/half_life/snapshots/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_guide.denoiser import Denoiser
from lightning_guide.runs.checkpoints import check_checkpoint, checkpoint_folder, newest_checkpoint
from lightning_guide.runs.models import RunModels, finished_model, open_snapshots
from lightning_guide.runs.sampling import find_device, sample
from lightning_guide.samplers.base import Sampler
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.config_base import check_config
from lightning_guide.utils.errors import did_you_mean
from lightning_guide.utils.files import read_yaml

if TYPE_CHECKING:
    from lightning_guide.runs.session import ConfigCLI

__all__ = ["QUIET", "Run"]

QUIET = {"callbacks": [], "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Run:
    """A finished or running training in `folder`. Nothing is read before it is needed, nothing in it is changed.

    Attributes:
        folder: the run folder; it may have been moved or copied since training.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open `folder`.

        Raises:
            ValueError: if it does not exist.
        """
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            found = "is a file" if self.folder.exists() else f"does not exist{did_you_mean(self.folder)}"
            raise ValueError(f"the run folder {str(folder)!r} {found}; expected the default_root_dir of a fit")

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def config(self) -> dict[str, Any]:
        """The config that the run was trained with, `config.yaml`, as a new dict.

        Raises:
            ValueError: if the folder holds none, or one that is broken.
        """
        file = self.folder / "config.yaml"
        if not file.is_file():
            raise ValueError(f"{file} does not exist; expected the folder of a run that `lightning-guide fit` has made")
        settings = check_config(read_yaml(file), file)
        settings["trainer"] = (settings.get("trainer") or {}) | {"default_root_dir": str(self.folder)}
        return settings

    @property
    def snapshots(self) -> SnapshotStore:
        """Its stored averages."""
        return open_snapshots(self.folder)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of its module in the config; empty if the folder has no config."""
        found = self.config["model"] if (self.folder / "config.yaml").is_file() else {}
        return dict(found.get("init_args") or {})

    def model(self, *, images: int | float | str | None = None, sigma_rel: float | str | None = None) -> Denoiser:
        """Return the model that the config evaluates, or another average of the run, frozen, on the CPU.

        Args:
            images: training images seen, or a fraction of the planned run such as "1/8"; default: as the config
                evaluates it, the newest snapshot.
            sigma_rel: relative width of the average, stored or reconstructed, or "half_life"; default: as the config
                evaluates it. With `average: null` those are the raw weights of the newest checkpoint.

        Raises:
            ValueError: if the run has no such snapshot and it cannot be reconstructed, or no checkpoint with the raw
                weights, or `images` are given for these.
        """
        settings = self.settings
        width = settings.get("average", 0.05) if sigma_rel is None else sigma_rel
        if width is not None:
            return finished_model(self.folder, settings.get("images") if images is None else images, width)
        if images is not None:
            raise ValueError(
                f"{self.folder} evaluates the raw weights (average: null), which are kept of its newest checkpoint "
                f"alone; expected sigma_rel as well for the average after images={images}"
            )
        return self._raw_model()

    def _raw_model(self) -> Denoiser:
        """Return the raw weights of the newest checkpoint as a denoiser."""
        from lightning_guide.runs.session import isolated

        raw = self._raw_checkpoint()
        with isolated():
            module = self._open(None, {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": None}).model
        if raw is not None:
            stored = check_checkpoint(raw, module, training=False)["state_dict"]
            module.load_state_dict({name: stored[name] for name in module.state_dict()})
        denoiser: Denoiser = module.denoiser.eval().requires_grad_(False)
        return denoiser

    def _raw_checkpoint(self) -> Path | None:
        """Return the newest checkpoint; None for a published model that was not trained; or raise ValueError."""
        denoiser = self.settings.get("denoiser")
        published = isinstance(denoiser, dict) and str(denoiser.get("class_path")).rpartition(".")[2] == "Pretrained"
        if (newest := newest_checkpoint(self.folder)) is None and not published:
            folder = checkpoint_folder(self.folder)
            raise ValueError(
                f"{folder} holds no checkpoint; the config evaluates the raw weights (average: null), expected one, or "
                "the sigma_rel of a stored average"
            )
        return newest

    def resolve(self, guidance: Denoiser | None = None, *, device: torch.device | str = "cpu") -> Denoiser:
        """Return `guidance` with this run's models for its references `Main` and `Snapshot`; None: the model itself.

        Raises:
            ValueError: if a snapshot does not exist or does not fit, or there is no such device.
        """
        if not isinstance(guidance, Denoiser | None):
            raise ValueError(
                f"the guidance is {guidance!r:.100}; expected an object such as Autoguidance(...), or None"
            )
        found = find_device(device)
        main = self.model().to(found)
        return main if guidance is None else guidance.resolve(RunModels(main, run=self.folder, device=found))

    def sample(
        self,
        guidance: Denoiser | None = None,
        sampler: Sampler | None = None,
        *,
        labels: Sequence[int] | Tensor | None = None,
        prompts: Tensor | None = None,
        count: int | None = None,
        seed: int = 0,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Draw samples as the data are stored (images: uint8 (B, C, H, W)); arguments as those of `sample`.

        `guidance` may refer to models of this run: `Autoguidance(Snapshot("1/8", 0.1), weight=2)`.
        """
        config, denoiser = self.config, self.resolve(guidance, device=device)
        try:
            from lightning_guide.runs.session import open_data  # Lightning takes seconds to import

            data = open_data(config)
        except ValueError as error:
            raise ValueError(f"run {str(self.folder)!r}: {error}") from None
        given: dict[str, Any] = {"labels": labels, "prompts": prompts, "count": count, "seed": seed}
        decoded: Tensor = data.decode(sample(denoiser, sampler, **given, batch_size=batch_size, device=device))
        return decoded

    def evaluate(
        self, evaluations: Mapping[str, Mapping[str, Any]] | None = None, *, trainer: Mapping[str, Any] | None = None
    ) -> dict[str, dict[str, float]]:
        """Return the metrics of `evaluations` of the finished model: evaluation -> metric -> value.

        Args:
            evaluations: name -> settings of `Evaluation` as in a config, each laid over the run's first evaluation:
                `{"cfg": {"guidance": {"class_path": "ClassifierFreeGuidance", "init_args": {"weight": 2}}}}`;
                default: those of the run's config.
            trainer: settings of the trainer, such as `{"accelerator": "gpu", "callbacks": [...]}`.

        Raises:
            ValueError: if settings do not fit or a guider is missing.
        """
        model: dict[str, Any] | None = None
        if evaluations is not None:
            for name, each in _mapping("evaluations", evaluations).items():
                _mapping(f"evaluation {name!r}", each)
            own = self.settings.get("evaluations")
            first = next(iter(own.values()), None) if isinstance(own, dict) else None
            model = {"evaluations": {name: {**(first or {}), **each} for name, each in evaluations.items()}}
            model |= {"guidances": None} if self.settings.get("guidances") else {}
        return self.test(model=model, trainer=trainer)

    def test(
        self, *, model: Mapping[str, Any] | None = None, trainer: Mapping[str, Any] | None = None
    ) -> dict[str, dict[str, float]]:
        """Run the test loop of a `session` and return its metrics: evaluation -> metric -> value.

        Raises:
            ValueError: as `evaluate`, if the run has no evaluations, or no checkpoint with the raw weights to evaluate.
        """
        from lightning_guide.runs.session import isolated

        with isolated():
            session = self._open(model, trainer)
            if not hasattr(session.model, "evaluations"):
                kind = type(session.model).__name__
                raise ValueError(f"{self.folder} is a run of {kind}; expected a module with evaluations")
            raw = self._raw_checkpoint() if session.model.average is None else None
            if raw is not None:
                check_checkpoint(raw, session.model, training=False)
            session.trainer.test(
                session.model, datamodule=session.datamodule, ckpt_path=raw, weights_only=True, verbose=False
            )
        results: dict[str, dict[str, float]] = session.model.evaluations.results
        return results

    def session(self, *, model: Mapping[str, Any] | None = None, trainer: Mapping[str, Any] | None = None) -> ConfigCLI:
        """Build `trainer`, `model` and `datamodule` of the run, silent and without callbacks unless configured.

        Args:
            model: arguments of the module that replace those of the config.
            trainer: settings of the trainer that replace the silent ones.

        Raises:
            ValueError: naming the run and the key, if a setting does not fit.
        """
        from lightning_guide.runs.session import isolated

        with isolated():
            return self._open(model, trainer)

    def _open(self, model: Mapping[str, Any] | None, trainer: Mapping[str, Any] | None) -> ConfigCLI:
        """Build a session within the random states of the process."""
        chosen = self.config
        chosen["trainer"] |= QUIET | dict(_mapping("trainer", trainer or {}))
        arguments = chosen["model"].get("init_args") or {}
        chosen["model"]["init_args"] = arguments | dict(_mapping("model", model or {}))
        try:
            from lightning_guide.runs.session import open_session

            session = open_session(chosen, files=[self.folder / "config.yaml"])
        except ValueError as error:
            raise ValueError(f"run {str(self.folder)!r}: {error}") from None
        if hasattr(session.model, "evaluations"):
            session.model.run = self.folder
        return session


def _mapping(name: str, value: Mapping[str, Any]) -> Mapping[str, Any]:
    """Check that an argument is a mapping."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {value!r:.100}; expected a dict, name -> setting")
    return value

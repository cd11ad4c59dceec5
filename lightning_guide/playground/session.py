"""What a run offers to the playground: models, guidances that fit, labels; samples and configs of settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch

from lightning_guide.data import DataInterface
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation.sampling_loop import prompts_of
from lightning_guide.modules.needs import count_labels
from lightning_guide.playground.drawing import Drawn, draw
from lightning_guide.playground.fitting import fitting_methods
from lightning_guide.playground.methods import Method, read_methods
from lightning_guide.playground.offered_samplers import number_of_steps
from lightning_guide.playground.setting import Setting
from lightning_guide.runs.models import RunModels
from lightning_guide.runs.run import Run
from lightning_guide.runs.session import open_data

__all__ = ["Playground"]


class Playground:
    """What a run can draw: its models, guidances that fit, labels; samples and configs of settings.

    Attributes:
        run: the run.
        name: how it is called on the page; default: its folder.
        device: where samples are drawn.
        portable: whether a config must be complete, since the folder of the run is temporary.
    """

    def __init__(
        self,
        run: Run,
        *,
        name: str | None = None,
        device: torch.device | str = "cpu",
        portable: bool = False,
        methods: Mapping[str, Method] | None = None,
    ) -> None:
        """Open the model that the config of `run` evaluates; `methods` are offered, by default all of configs/guidance.

        Raises:
            ValueError: if the run has no such model.
        """
        self.run, self.device, self.portable = run, torch.device(device), portable
        self.name = str(run.folder) if name is None else name
        self.config = run.config
        self._model = lru_cache(4)(lambda images, average: run.model(images=images, sigma_rel=average).to(self.device))
        self._open = lru_cache(4)(self._open_data)
        self.main = self._model(None, None)
        if len(self.main.data_shape) not in (1, 3):
            raise ValueError(
                f"the samples of {run.folder} have the shape {self.main.data_shape}; expected images or points, which "
                "the playground can show"
            )
        models = self._models(self.main, self._open(None))
        self.methods, self.refused = fitting_methods(
            read_methods() if methods is None else methods, models, self.models
        )

    # What a page offers

    @property
    def models(self) -> dict[str, tuple[int | None, float | str | None]]:
        """Name -> (images, average) of the models of the run: that of its config, then the stored averages."""
        found: dict[str, tuple[int | None, float | str | None]] = {"as in the config": (None, None)}
        if (self.run.folder / "snapshots").is_dir():
            for each in self.run.snapshots.entries():
                if each.sigma_rel > 0:
                    found[f"{each.images:,} images, average {each.sigma_rel:g}"] = (each.images, each.sigma_rel)
        return found

    @property
    def typed(self) -> bool:
        """Whether a text can be typed, which is encoded as the data of the run say."""
        arguments = self.config.get("data", {}).get("init_args") or {}
        return bool(self.main.token_channels) and "prompts" in arguments

    @property
    def prompt(self) -> str | None:
        """The first prompt of the config; None if it has none."""
        written = (self.config.get("data", {}).get("init_args") or {}).get("prompts")
        return str(written[0]) if isinstance(written, list) and written else None

    @cached_property
    def labels(self) -> list[tuple[str, str | int]]:
        """Choices of labels, as (name, value); empty without classes and prompts."""
        names: Sequence[str] | None = self.main.class_names
        if self.main.token_channels:
            names = self._open(None).prompt_texts
        count = count_labels(lambda: self._open(None), self.main)
        classes = [name if name.isdigit() else f"{i}: {name}" for i, name in enumerate(names or map(str, range(count)))]
        if not count:
            return []
        return [
            ("one of each in turn", "balanced"),
            ("random", "random"),
            *zip(classes[:count], range(count), strict=True),
        ]

    @property
    def sampler(self) -> dict[str, Any]:
        """The sampler of the first evaluation of the config, or else Heun."""
        own = (self.config["model"].get("init_args") or {}).get("evaluations") or {}
        first = next((each for each in own.values() if isinstance(each, dict)), {})
        found: dict[str, Any] = first.get("sampler") or {"class_path": "Heun", "init_args": {"grid": 32}}
        return found

    @property
    def steps(self) -> int:
        """Steps of that sampler, 32 if it names none."""
        return number_of_steps(self.sampler)

    # Drawing

    def yaml(self, setting: Setting) -> str:
        """Return the config that draws the samples of `setting` again."""
        return setting.yaml(self.config, run=None if self.portable else str(self.run.folder))

    def draw(self, setting: Setting) -> Iterator[Drawn]:
        """Draw samples, and yield clean estimates on the way, at last the samples.

        Raises:
            ValueError: if a setting does not fit the model.
        """
        data = self._open(setting.prompt)
        yield from draw(setting, self._models(self._model(setting.images, setting.average), data), data)

    def _models(self, main: Denoiser, data: DataInterface) -> RunModels:
        return RunModels(main, run=self.run.folder, device=self.device, prompts=prompts_of(data, main))

    def _open_data(self, prompt: str | None) -> DataInterface:
        config = dict(self.config)
        if prompt is not None:
            if not self.typed:
                raise ValueError(f"{self.run.folder} has no typed prompts; expected a label")
            config["data"] = config["data"] | {"init_args": config["data"]["init_args"] | {"prompts": [prompt]}}
        data: DataInterface = open_data(config)
        return data

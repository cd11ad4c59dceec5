"""What the playground draws: one evaluation of one model, as plain data and as a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import yaml

__all__ = ["NAME", "Setting"]

NAME = "playground"  # of the evaluation in the config


@dataclass(frozen=True)
class Setting:
    """Settings of the samples on one side of the page.

    Attributes:
        sampler: as in a config.
        guidance: as in a config; None for none.
        images: training images that the model has seen; None: as the config of the run evaluates it.
        average: width of the average of its weights; used with `images` alone.
        labels: "balanced", "random", or one class or prompt for all samples.
        prompt: a text in place of the prompts of the run; None for none.
        seed: sample i depends only on (seed, i) and its label.
        count: number of samples.
    """

    sampler: Mapping[str, Any]
    guidance: Mapping[str, Any] | None = None
    images: int | None = None
    average: float | str | None = None
    labels: Literal["balanced", "random"] | int = "balanced"
    prompt: str | None = None
    seed: int = 0
    count: int = 4

    @property
    def evaluation(self) -> dict[str, Any]:
        """The evaluation as in a config, without metrics."""
        drawn: dict[str, Any] = {"num_samples": self.count, "batch_size": self.count, "seed": self.seed}
        drawn |= {"labels": self.labels, "metrics": {}, "sampler": dict(self.sampler)}
        return drawn | ({} if self.guidance is None else {"guidance": dict(self.guidance)})

    def overlay(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is laid over the `config` of a run to evaluate and to predict these samples."""
        arguments: dict[str, Any] = {"evaluations": {NAME: self.evaluation}, "prediction": self.evaluation}
        if self.images is not None:
            arguments = {"images": self.images, "average": self.average} | arguments
        if (config["model"].get("init_args") or {}).get("guidances"):  # which would replace the evaluation
            arguments["guidances"] = None
        data = {} if self.prompt is None else {"data": {"init_args": {"prompts": [self.prompt]}}}
        return {"model": {"init_args": arguments}, **data}

    def yaml(self, config: Mapping[str, Any], *, run: str | None) -> str:
        """Return a config file with the command that draws these samples.

        Args:
            config: that of the run.
            run: its folder, over whose config the file is laid; None: the file has all of `config`.
        """
        written = self.overlay(config)
        command = f"-c {run}/config.yaml -c my.yaml"
        if run is None:
            written, command = merged(config, written), "-c my.yaml"
            written["trainer"] = (config.get("trainer") or {}) | {"default_root_dir": f"runs/{NAME}"}
        text = yaml.dump(written, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
        return f"# lightning-guide predict {command}\n{_HINT}{text}"


_HINT = """\
# This command writes the samples to files. With validate in its place
# they are shown in a grid, with their cost. For metrics, remove the
# lines "metrics: {}" and raise num_samples.
"""


class _Dumper(yaml.SafeDumper):
    """Write what is used twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return true: no anchors."""
        return True


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with the arguments of `above`; the evaluations of `below` are left out."""
    result = dict(below)
    for part, settings in above.items():
        arguments = (below[part].get("init_args") or {}) | settings["init_args"]
        result[part] = dict(below[part]) | {"init_args": arguments}
    return result

"""What is typed and chosen on the page, made into a `Setting`, with a sentence for what does not fit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import yaml

from lightning_guide.playground.methods import Parameter, read_value
from lightning_guide.playground.offered_samplers import sampler_of
from lightning_guide.playground.session import Playground
from lightning_guide.playground.setting import Setting
from lightning_guide.utils.scalars import check_whole

__all__ = ["Given", "Shared", "parameter_text", "setting_of"]


MOST_SAMPLES, MOST_STEPS = 64, 1000


@dataclass(frozen=True)
class Shared:
    """Inputs that both sides share."""

    prompt: str
    labels: Any
    seed: Any
    count: Any


class Given:
    """Inputs of one side: the names of model, guidance and sampler, steps, the weight, and texts of the parameters."""

    def __init__(self, model: str, guidance: str, sampler: str, steps: Any, weight: Any, *fields: str) -> None:
        """Take the values of the page as they are."""
        self.model, self.guidance, self.sampler, self.steps, self.weight = model, guidance, sampler, steps, weight
        self.fields = fields


def setting_of(playground: Playground, shared: Shared, given: Given) -> Setting:
    """Return the setting of one side.

    Raises:
        ValueError: naming the input, if it is not what is expected.
    """
    if given.model not in (models := playground.models):
        raise ValueError(f"the run has no model {given.model!r} (any more); expected some of {', '.join(models)}")
    images, average = models[given.model]
    guidance = None
    if given.guidance in playground.methods:
        method = playground.methods[given.guidance]
        slider = next((each for each in method.parameters if each.is_weight), None)
        values = {} if slider is None else {slider.place: _same_type(given.weight, slider.value)}
        others = [each for each in method.parameters if each is not slider]
        for each, text in zip(others, given.fields, strict=False):
            if text != parameter_text(each):
                values[each.place] = _read(each, text)
        guidance = method.guidance(values)
    prompt = shared.prompt.strip() if playground.typed else None
    if prompt == "":
        raise ValueError("the prompt is empty; expected a text")
    steps = _whole("the number of steps", given.steps, least=1, most=MOST_STEPS)
    return Setting(
        sampler_of(given.sampler, steps, playground.sampler),
        guidance,
        images=images,
        average=average,
        labels=shared.labels if playground.labels and not playground.typed else "balanced",
        prompt=prompt,
        seed=_whole("the seed", shared.seed, least=0),
        count=_whole("the number of samples", shared.count, least=1, most=MOST_SAMPLES),
    )


def parameter_text(parameter: Parameter) -> str:
    """Return the value of a parameter as it is typed."""
    if isinstance(parameter.value, str):
        return parameter.value
    if parameter.value is None:
        return "null"
    return yaml.safe_dump(parameter.value, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()


def _read(parameter: Parameter, text: str) -> Any:
    """Return what was typed; a text stays one."""
    try:
        value = read_value(text)
    except ValueError as error:
        raise ValueError(f"{parameter.place}: {error}") from None
    if isinstance(value, dict):
        raise ValueError(f"{parameter.place} is {text!r}; expected a number, a word or a list")
    return value


def _whole(name: str, value: Any, *, least: int, most: int | None = None) -> int:
    """Return a whole number within bounds; a slider gives 2.0 for 2, an empty field None."""
    if value is None:
        raise ValueError(f"{name} is empty; expected a whole number")
    plain = int(value) if isinstance(value, float) and value.is_integer() else value
    return check_whole(plain, name, least=least, most=most)


def _same_type(value: Any, like: Any) -> Any:
    """Return a number as it is written in the config: 2.0 as 2 where that has 2."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"the weight is {'empty' if value is None else value}; expected a number")
    return int(value) if isinstance(like, int) and value == int(value) else float(value)

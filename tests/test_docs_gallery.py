"""The page docs/gallery.md: its facts are those of the classes, of docs/guidance.md and of the records."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import lightning_guide as lg
from lightning_guide.commands.guidance_files import read_guidances
from lightning_guide.denoiser import Denoiser
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.seeds import SampleSeeds
from scripts.lib.guidance_weights import stronger, weight_of
from tests.guidance_files import OF_TEXTS, guidances_of
from tests.small_networks import transformer, unet
from tests.test_docs_guidance import ROWS, rows

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "gallery.md").read_text("utf-8")
SAVE_CALLS = ("ag", "reuse")  # their cost depends on settings and samples, and their images are meant to be the same
LISTED = [row for row in ROWS if not row["file"].startswith("training_free/")]
COUNTED = [row for row in LISTED if row["config"] not in ("-", *SAVE_CALLS)]
SHOWN = {(row["method"], row["class"]): row for row in rows("gallery.md") if "cost" in row}
SECTIONS = re.findall(r"^### (.+?)\n(.*?)(?=^##|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
STRIPS = re.findall(r"!\[samples under (\w+)\]\((images/gallery_\w+\.png)\)\n\nRows: (.+?)\.\n", PAGE)
STEPS = 10
CHANGE = re.compile(r"[-+]?\d+(?:\.\d+)? % ± \d+(?:\.\d+)?")


class Earlier:
    """Models for references: the main one, of labels or texts, and another one for every snapshot."""

    def __init__(self, *, texts: bool = False) -> None:
        self.main, self.earlier = (small_model(seed) for seed in (0, 1))
        self.condition = torch.tensor([1])
        if texts:
            self.main, self.condition = transformer(num_classes=0, token_channels=6), torch.ones(1, 2, 6)

    def snapshot(self, *, run: str | None, images: int | float | str, sigma_rel: float) -> Denoiser:
        return self.earlier


def small_model(seed: int) -> Preconditioned:
    """A U-Net with label dropout in its training, as far as guidances can see, and random weights."""
    model = unet()
    with torch.no_grad():
        next(model.parameters()).add_(0.1 * seed)
    return model


def without_links(cell: str) -> str:
    """Return the text of a cell without links and code marks."""
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", cell)


def calls(guidance: Denoiser, models: Earlier) -> float:
    """Return the network calls of a guidance for each prediction of Euler's sampler, mean over its steps."""
    sampler = lg.Euler(lg.KarrasGrid(STEPS, sigma_min=0.1, sigma_max=5.0))
    seeds = SampleSeeds(0, range(1))
    return sampler.sample(guidance.resolve(models), seeds=seeds, condition=models.condition).evaluations / STEPS


@pytest.mark.parametrize("row", LISTED, ids=lambda row: row["method"])
def test_a_method_is_shown_with_the_facts_of_the_guide(row: dict[str, str]) -> None:
    key = row["method"], row["class"]
    assert key in SHOWN, f"docs/gallery.md has no section for {row['method']}, a row of docs/guidance.md"
    shown = {column: without_links(cell) for column, cell in SHOWN[key].items() if column in row}
    shown["config"] = shown["config"].strip("`")
    assert shown == {column: row[column] for column in shown}, "docs/gallery.md and docs/guidance.md differ"


@pytest.mark.parametrize("row", [row for row in LISTED if "default w" in row], ids=lambda row: row["method"])
def test_default_weights_are_those_of_the_classes(row: dict[str, str]) -> None:
    found = re.match(r"[\d.]+", row["default w"])
    class_names = re.findall(r"`([A-Z]\w+)", row["class"]) if found else []
    parameters = inspect.signature(getattr(lg, class_names[0])).parameters if class_names else {}
    weight = parameters.get("weight", parameters.get("scale"))
    if found is None:
        assert row["default w"] == "-"
    elif weight is None:  # `Guided` with a perturbation: the weight is that of the config
        (first, *_) = read_guidances([str(ROOT / "configs" / "guidance" / f"{row['config']}.yaml")]).values()
        assert weight_of(first) == float(found[0])
    else:
        assert weight.default == float(found[0])


@pytest.mark.parametrize("row", COUNTED, ids=lambda row: row["method"])
def test_costs_are_those_that_are_counted(row: dict[str, str]) -> None:
    models = Earlier(texts=row["config"] in OF_TEXTS)
    for name, guidance in guidances_of(ROOT / "configs" / "guidance" / f"{row['config']}.yaml").items():
        counted, cost = calls(guidance, models), row["cost"]
        numbers = [float(number) for number in re.findall(r"\d+", cost.split("%")[0])]
        if "n^2" in cost:
            assert counted == 1 + 2**2, name
        elif " to " in cost or ";" in cost:
            least, most = sorted(numbers[:2])
            assert least < counted < most, name
        else:
            assert counted == numbers[0], name


@pytest.mark.parametrize(("name", "image", "shown"), STRIPS)
def test_a_strip_shows_the_weights_of_its_config(name: str, image: str, shown: str) -> None:
    found = read_guidances([str(ROOT / "configs" / "guidance" / f"{name}.yaml")])
    guidance = next(iter(found.values()))
    weights = f"w = {weight_of(guidance):g}, w = {stronger(guidance, 4):g}"
    expected = ["unguided", *(found if len(found) > 1 else weights.split(", "))]
    assert shown.split(", ") == expected
    with Image.open(ROOT / "docs" / image) as opened:
        assert opened.size == (8 * 68 - 4, len(expected) * 68 - 4)


def test_every_config_has_a_strip_and_the_page_is_light() -> None:
    configs = {path.stem for path in (ROOT / "configs" / "guidance").glob("*.yaml")}
    without = {row["config"] for row in LISTED if "No image" in dict(SECTIONS)[section_of(row["method"])]}
    assert {name for name, *_ in STRIPS} == configs - without
    assert sum((ROOT / "docs" / image).stat().st_size for _, image, _ in STRIPS) < 1.5e6


def section_of(method: str) -> str:
    """Return the title of the section whose table has a row for `method`."""
    return next(title for title, text in SECTIONS if f"\n| {method} |" in text)


@pytest.mark.parametrize(("title", "text"), SECTIONS, ids=[title for title, _ in SECTIONS])
def test_measured_changes_are_those_of_a_record(title: str, text: str) -> None:
    records = {ROOT / "docs" / path for path in re.findall(r"\]\((\.\./scripts/[^)#]+\.md)", text)}
    recorded = " ".join(" ".join(path.read_text("utf-8").split()) for path in records)
    joined = " ".join(text.split())
    assert all(part in joined for part in ("**Rule**", "**Helps**", "**Harms**", "**Measured**"))
    invented = [change for change in CHANGE.findall(joined) if change not in recorded]
    assert not invented, f"{title}: no linked record has {invented}"

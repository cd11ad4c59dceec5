"""Comparison of two evaluations on the page of a run: which are offered, and the slider in a real browser."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from callbacks.output import write_png
from lightning_guide.report.comparison import SCRIPT, SCRIPT_SOURCE, comparison
from lightning_guide.report.run_page import run_page, write_page
from tests.browsers import chromium, opened_page

SIZE = (40, 80)  # of a grid


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """Grids of one gray each: three evaluations of the same seeds, one of another seed, one that no config names."""
    evaluations = {"plain": {"num_samples": 9}, "cfg": {"seed": 0, "guidance": {"class_path": "X"}}, "new": {"seed": 5}}
    settings = {"model": {"init_args": {"evaluations": evaluations}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    later = {"model": {"init_args": {"evaluations": {"plain": {}}, "guidances": {"<pag>": {"class_path": "Y"}}}}}
    (tmp_path / "config.test.yaml").write_text(yaml.safe_dump(later))
    grays = {"plain": 50, "cfg": 200, "_pag_": 120, "new": 10, "unknown": 20}
    for name, gray in grays.items():
        write_png(tmp_path / "grids" / f"fit-64-{name}.png", torch.full((1, *SIZE), gray, dtype=torch.uint8))
    yield tmp_path


def test_only_grids_of_the_same_seeds_and_size_are_compared(run: Path) -> None:
    page = run_page(run)
    names = ["plain (fit after 64 images)", "cfg (fit after 64 images)", "_pag_ (fit after 64 images)"]
    places = [page.index(f'alt="{name}"') for name in names]
    ids = [page[:place].rpartition('id="')[2].partition('"')[0] for place in places]
    assert comparison(list(zip(ids, names, strict=True))) in page
    assert page.count('class="compare"') == 1 and page.count("<script") == page.count(f"<script>{SCRIPT}") == 1
    assert f"; script-src {SCRIPT_SOURCE}" in page and page.count("data:image/png") == 5  # each image once
    write_png(run / "grids" / "fit-64-cfg.png", torch.zeros(1, 8, 8, dtype=torch.uint8))
    (run / "grids" / "fit-64-_pag_.png").unlink()
    page = run_page(run)
    assert "<script" not in page and "script-src" not in page and "Comparison" not in page


def test_boundary_moves_by_mouse_and_keys(run: Path) -> None:
    with chromium() as browser, opened_page(browser, write_page(run).as_uri()) as page:
        stack, slider = page.locator(".stack"), page.get_by_role("slider")
        left, right = page.get_by_label("left image"), page.get_by_label("right image")

        def grays() -> tuple[list[int], float]:
            """Grays from left to right, and where the first ends; the white line between them left out."""
            row = np.asarray(Image.open(io.BytesIO(stack.screenshot())).convert("L"))[20].astype(int)
            kept = [each for each in row if min(abs(each - gray) for gray in (0, 50, 70, 120, 150, 200)) < 2]
            found = list(dict.fromkeys(kept))
            return found, kept.count(found[0]) / len(row)

        def expect(values: list[int], share: float) -> None:
            found, measured = grays()
            assert found == values and measured == pytest.approx(share, abs=0.02)

        expect([50, 200], 0.5)
        slider.focus()
        for _ in range(10):
            page.keyboard.press("ArrowRight")
        expect([50, 200], 0.6)
        said = slider.get_attribute("aria-valuetext")
        assert said == "60 % plain (fit after 64 images), the rest cfg (fit after 64 images)"
        page.keyboard.press("Home")
        expect([200], 1.0)
        box = stack.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 5, box["y"] + 5)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 9)
        page.mouse.up()
        expect([50, 200], 0.25)
        right.select_option(label="_pag_ (fit after 64 images)")
        expect([50, 120], 0.25)
        page.get_by_role("button", name="swap").press("Enter")
        expect([120, 50], 0.25)
        page.get_by_label("absolute difference").press("Space")
        expect([70], 1.0)
        assert left.evaluate("each => each.selectedOptions[0].text").startswith("_pag_")
        page.set_viewport_size({"width": 360, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        added = "document.body.append(Object.assign(document.createElement('script'), {text: 'x = 1'}))"
        found = page.evaluate(f"{added}, window.x")
        assert found is None, "the policy permits the script of the comparison alone"

"""Figures of a sweep: a scale on which all points are distinguishable."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from lightning_guide.search.config import SearchObjective
from lightning_guide.search.figures import draw_heat_maps, draw_sensitivity
from lightning_guide.search.scores import Scores
from lightning_guide.search.space import UNGUIDED, Axis, Space

SPACE = Space(
    {"weight": 2, "kind": "a"}, [Axis("weight", "weight", (1, 2)), Axis("kind", "kind", ("a", "b"), None, ("A", "B"))]
)


@pytest.mark.parametrize(
    ("values", "scale"),
    [((1, 2, 3, 9), "linear"), ((1, 2, 3, 11), "log"), ((0, 1, 2, 11), "linear"), ((-1, 1, 2, 30), "linear")],
)
def test_values_that_differ_tenfold_stand_on_a_logarithmic_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: tuple[float, ...], scale: str
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    swept = {point: Scores({"fd": value}) for point, value in zip(SPACE.points, values, strict=True)}
    assert draw_sensitivity(SPACE, swept | {UNGUIDED: Scores({"fd": 2.0})}, [SearchObjective("fd")], tmp_path / "s.png")
    (panel,) = drawn[0].axes
    assert panel.get_yscale() == scale and panel.get_ylabel() == "fd" and panel.get_xlabel() == "weight"
    labels = [text.get_text() for text in panel.get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels == ["kind A", "kind B", "no guidance"]


def test_widths_on_a_heat_map_may_be_words_or_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: drawn.append(figure))
    named = Axis("main", "main.sigma_rel", (0.05, 0.1), None, ("narrow", "wide"))
    base = {"sigma_rel": 0.1, "main": {"sigma_rel": 0.1}}
    space = Space(base, [Axis("guider", "sigma_rel", ("0.05", "0.1")), named])
    swept = {point: Scores({"fd": 1.0}) for point in space.points}
    assert draw_heat_maps(space, swept, [SearchObjective("fd")], tmp_path / "a.png")
    panel = drawn[0].axes[0]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["narrow", "wide"]
    assert [text.get_text() for text in panel.get_yticklabels()] == ["0.05", "0.1"]

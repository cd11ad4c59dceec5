"""Spaces of evaluations: what stands where, what lies next to what, and axes that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lightning_guide.search.config import read_search
from lightning_guide.search.space import UNGUIDED, Axis, Space
from lightning_guide.utils.config_base import merge_settings

BASE = {
    "seed": 0,
    "guidance": {
        "class_path": "Autoguidance",
        "init_args": {"weight": 2, "guider": {"class_path": "Snapshot", "init_args": {"images": "1/8", "run": None}}},
    },
}
AGE = Axis("age", "guidance.init_args.guider.init_args.images", ("1/16", "1/8", "1/2"), prior="1/8")
WEIGHT = Axis("weight", "guidance.init_args.weight", (1.5, 2))
GUIDER = Axis("guider", "guidance.init_args.guider.init_args", ({"run": None}, {"run": "small", "images": "1/1"}))


def test_every_combination_stands_where_the_paths_say() -> None:
    space = Space(BASE, [AGE, WEIGHT])
    assert space.points == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    found = space.evaluation((2, 0))
    assert found["guidance"]["init_args"]["guider"]["init_args"] == {"images": "1/2", "run": None}
    assert found["guidance"]["init_args"]["weight"] == 1.5
    assert BASE["guidance"]["init_args"]["weight"] == 2  # type: ignore[index]
    assert space.name((2, 0)) == "age=1/2 weight=1.5" and space.values((2, 0)) == {"age": "1/2", "weight": 1.5}
    assert space.evaluation(UNGUIDED) == BASE | {"guidance": None} and space.name(UNGUIDED) == "unguided"


def test_a_mapping_is_laid_over_and_a_class_replaces() -> None:
    space = Space(BASE, [GUIDER])
    guiders = [space.evaluation(point)["guidance"]["init_args"]["guider"]["init_args"] for point in space.points]
    assert guiders == [{"images": "1/8", "run": None}, {"images": "1/1", "run": "small"}]
    a = {"class_path": "x.A", "init_args": {"n": 1, "m": 2}}
    assert merge_settings(a, {"class_path": "A", "init_args": {"n": 3}}) == {
        "class_path": "x.A",
        "init_args": {"n": 3, "m": 2},
    }
    assert merge_settings(a, {"class_path": "B"}) == {"class_path": "B"}


def test_values_may_have_names(tmp_path: Path) -> None:
    kinds = {"plain": {"class_path": "A"}, "wide": {"class_path": "B", "init_args": {"weight": 9}}}
    axis = {"path": "guidance", "values": kinds, "prior": "wide"}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({"axes": {"kind": axis}}))
    space = Space(BASE, read_search(tmp_path / "search.yaml").axes)
    assert [space.name(point) for point in space.points] == ["kind=plain", "kind=wide"] and space.axes[0].begin == 1
    assert space.shown((1,)) == {"kind": "wide"} and space.values((1,)) == {"kind": kinds["wide"]}
    assert space.evaluation((1,))["guidance"] == kinds["wide"]
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({"axes": {"kind": axis | {"prior": "b"}}}))
    with pytest.raises(ValueError, match=r"axis 'kind': its prior 'b' is not one of its values \['plain', 'wide'\]"):
        read_search(tmp_path / "search.yaml")


def test_no_axis_overwrites_another() -> None:
    classes = Axis("class", "guidance", ({"class_path": "A"}, {"class_path": "B", "init_args": {"weight": 9}}))
    for axes in ([WEIGHT, classes], [classes, WEIGHT]):  # the class first, whatever the order
        space = Space(BASE, axes)
        found = [space.evaluation(point)["guidance"] for point in space.points]
        assert [(each["class_path"], each["init_args"]) for each in sorted(found, key=str)] == [
            (name, {"weight": weight}) for name in ("A", "B") for weight in (1.5, 2)
        ]
    with pytest.raises(ValueError, match="the points weight=1.5 again=3 and weight=2 again=3 are the same evaluation"):
        Space(BASE, [WEIGHT, Axis("again", "guidance.init_args.weight", (3, 4))])
    with pytest.raises(ValueError, match="axis 'weight': guidance.init_args.weight does not exist at class=none"):
        Space(BASE, [Axis("class", "guidance", ("none", None)), WEIGHT])


def test_entries_of_a_list_are_counted_from_zero() -> None:
    base = {"grid": {"levels": [80.0, 2.0, 0.1]}, "negatives": [{"weight": 2, "guider": None}]}
    level, weight = Axis("level", "grid.levels.1", (1.0, 4.0)), Axis("weight", "negatives.0.weight", (3, 4))
    space = Space(base, [level, weight])
    found = space.evaluation((1, 0))
    assert found["grid"] == {"levels": [80.0, 4.0, 0.1]} and found["negatives"] == [{"weight": 3, "guider": None}]
    assert base["grid"]["levels"][1] == 2.0  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"there is no 'grid.levels.3'; grid.levels holds 0, 1, 2"):
        Space(base, [Axis("level", "grid.levels.3", (1.0,))])
    with pytest.raises(ValueError, match="axis 'level': grid.levels.1 does not exist at all=few"):
        Space(base, [Axis("all", "grid.levels", ([5.0], [80.0, 1.0]), names=("few", "more")), level])


def test_fractions_and_numbers_have_neighbors_other_values_have_not() -> None:
    space = Space(BASE, [AGE, GUIDER])
    assert AGE.ordered and WEIGHT.ordered and not GUIDER.ordered
    assert not Axis("flag", "seed", (True, False)).ordered and not Axis("word", "seed", ("a", "b")).ordered
    assert space.position((1, 0)) == [0.5, 1.0, 0.0] and space.position((2, 1)) == [1.0, 0.0, 1.0]
    assert [axis.begin for axis in (AGE, WEIGHT)] == [1, 1]
    close = Space(BASE, [Axis("w", "guidance.init_args.weight", (1.00000001, 1.00000002))])
    assert len({close.name(point) for point in close.points}) == 2


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        (Axis("w", "guidance.init_args.wight", (1,)), "'w': there is no .*; guidance.init_args holds weight, guider"),
        (Axis("w", "guidence", (1,)), "the evaluation holds seed, guidance"),
        (Axis("w", "seed.first", (1,)), "seed"),
        (Axis("w", "guidance.init_args.weight.low", (1,)), "guidance.init_args.weight is 2"),
        (Axis("w", "guidance.init_args.weight", ()), "axis 'w' has no values"),
        (Axis("w", "guidance.init_args.weight", (1, 2, 1)), "one value twice"),
        (Axis("w", "guidance.init_args.weight", (1, "1")), "one value twice"),
        (Axis("w", "guidance.init_args.weight", (1, 2), prior=3), "its prior 3 is not one of its values"),
        (Axis("w", "num_samples", (1, 2)), "which the search sets for all points alike"),
    ],
)
def test_axes_that_lead_nowhere(axis: Axis, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Space(BASE, [axis])
    with pytest.raises(ValueError, match="no axes"):
        Space(BASE, [])

"""The study of all guidances: weights next to the best one, reused results, and the study on two tiny runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_guide.cli import main
from scripts.lib import evaluations
from scripts.lib.guidance_weights import refined, weight_of, with_weight
from scripts.lib.guiders import with_guider
from scripts.studies.evidence.run import BASELINES, best_of, study

ROOT = Path(__file__).parent.parent


def test_weights_next_to_the_best_one() -> None:
    tried = [1.25, 1.75, 3.25]  # strengths 0.25, 0.75, 2.25
    assert refined(tried, 1.75) == [1.43, 2.3]
    assert refined(tried, 1.25) == [1.08, 1.43]
    assert refined(tried, 3.25) == [2.3, 7.75]
    assert refined([0.2, 0.4, 0.8], 0.4, interpolating=True) == [0.283, 0.566]
    assert refined([0.2, 0.4, 0.8], 0.8, interpolating=True) == [0.566]  # 1.6 would leave [0, 1]


def test_the_first_of_several_weights_is_replaced() -> None:
    guidance = {"class_path": "Guided", "init_args": {"negatives": [{}, {}], "weights": [1.5, 1.25]}}
    changed = with_weight(guidance, 3.0)
    assert changed["init_args"]["weights"] == [3.0, 1.25] and weight_of(guidance) == 1.5


def test_the_guider_is_replaced_wherever_it_stands() -> None:
    own = {"class_path": "Snapshot", "init_args": {"images": "1/8", "sigma_rel": 0.1}}
    other = {"class_path": "lightning_guide.Snapshot", "init_args": {"images": "1/8", "run": "runs/other"}}
    changed = {**own, "init_args": {"images": "1/4", "sigma_rel": 0.1}}
    assert with_guider({"negatives": [own, other], "weight": 2}, "1/4") == {"negatives": [changed, other], "weight": 2}
    assert with_guider(own, "640")["init_args"]["images"] == 640 and own["init_args"]["images"] == "1/8"


def test_the_best_and_what_they_are_compared_with() -> None:
    scores = {"unguided": 1.0, "a": 0.5, "cfg": 0.6, "b": 0.7, "c": 0.8, "autoguidance": 1.2}
    compared = {name: (1.5, {"fd": {"mean": fd, "half_width": 0.1}}) for name, fd in scores.items()}
    assert best_of(compared, 2) == ["a", "cfg", "b", "autoguidance"]
    assert best_of(compared, 1, ["c", "absent"]) == ["a", "cfg", "c", "autoguidance"]


def test_results_of_equal_evaluations_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def command(words: list[str]) -> None:
        asked = yaml.safe_load(Path(words[-1]).read_text())["model"]["init_args"]["evaluations"]
        results = tmp_path / "metrics.json"
        known = json.loads(results.read_text())
        for name, each in asked.items():
            drawn.append(name)
            results.write_text(json.dumps(known := known | {name: {"fd": each["seed"]}}))
            if each["seed"] == 13:
                raise KeyboardInterrupt

    monkeypatch.setattr(evaluations, "lightning_guide", command)

    def evaluate(**seeds: int) -> Any:
        drawn.clear()
        found = evaluations.evaluate("run.yaml", {name: {"seed": seed} for name, seed in seeds.items()}, tmp_path)
        return {name: values["fd"] for name, values in found.items()}

    assert evaluate(a=1, b=2) == {"a": 1, "b": 2} and drawn == ["a", "b"]
    assert evaluate(b=2, c=3) == {"b": 2, "c": 3} and drawn == ["c"]
    assert evaluate(a=1, c=3) == {"a": 1, "c": 3} and not drawn
    with pytest.raises(KeyboardInterrupt):
        evaluate(b=13, d=4)
    assert evaluate(b=5, d=4) == {"b": 5, "d": 4} and drawn == ["b", "d"]


@pytest.mark.slow
def test_the_study_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short: dict[str, Any] = {"trainer": {"max_steps": 4, "limit_val_batches": 0}}
    small = {**short, "data": {"init_args": {"batch_size": 8}}}
    Path("small.yaml").write_text(yaml.safe_dump(small))
    for kind in ("classifier", "main", "transformer"):
        main(["fit", "-c", str(ROOT / f"configs/digits/{kind}.yaml"), "-c", "small.yaml"])
    methods = [str(ROOT / f"configs/guidance/{name}.yaml") for name in (*BASELINES, "cfg_pp", "pag", "sims")]
    study(
        ["runs/digits/main", "runs/digits/transformer"], out="evidence", methods=methods, top=1, also=[], seeds=2,
        search_samples=20, num_samples=20, num_steps=2, weights=[1.25, 1.75], guider="1/3.5",
    )  # fmt: skip
    best = yaml.safe_load(Path("evidence/best.yaml").read_text())["model"]["init_args"]["guidances"]
    assert len(best) == 3 and set(BASELINES) < best.keys() <= {*BASELINES, "cfg_pp", "pag"}
    summary = json.loads(Path("evidence/transformer/summary.json").read_text())
    assert summary.keys() == {"unguided", *best}
    assert summary["cfg"]["fd_against_cfg"] == {"mean": 0.0, "half_width": 0.0}
    assert summary["unguided"]["fd_change"]["mean"] == 0 != summary["autoguidance"]["fd_change"]["mean"]
    assert len(Path("evidence/main/table.md").read_text().splitlines()) == 2 + 1 + 4
    table = Path("evidence/table.md").read_text().splitlines()
    assert table[0] == "| guidance | main | transformer |" and len(table) == 2 + len(best)
    assert Path("evidence/evidence.png").stat().st_size > 1000

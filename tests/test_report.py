"""HTML report of a run: complete, self-contained, and safe for any names in the run."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from callbacks import MetricsReport, PostHocEMA, RunReport, SampleGrid
from callbacks.output import write_png
from lightning_guide.cli import main
from lightning_guide.evaluation import FrechetDistance, RawPixels
from lightning_guide.report.charts import line_chart, ticks
from lightning_guide.report.run_page import run_page
from tests.runs import TinyImages, evaluation, tiny_module, tiny_trainer

UNSAFE_NAME = """<script src="http://evil.example/x.js">alert('1')</script>"""


class Parsed(HTMLParser):
    """Parsed page: elements with their attributes, and text; checks that all elements are closed."""

    VOID = ("meta", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    def images(self) -> list[np.ndarray[Any, Any]]:
        sources = [attributes["src"] or "" for tag, attributes in self.elements if tag == "img"]
        content = [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]
        return [np.asarray(Image.open(io.BytesIO(each))) for each in content]


def checked(page: str) -> Parsed:
    """Parse a page and check that it has no scripts and no external references."""
    parsed = Parsed(page)
    for tag, attributes in parsed.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "href" or (value or "").startswith("./")
            assert name != "src" or (value or "").startswith("data:image/png;base64,")
    style = "".join(parsed.text["style"])
    assert "url(" not in style and "@import" not in style
    policies = [a["content"] for tag, a in parsed.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    return parsed


def finished(run: Path) -> Path:
    """Write the files of a finished run, with HTML in its names."""
    (run / "report").mkdir(parents=True)
    results = {
        "unguided": {"nfe": 63.0, "samples": 100.0, "fd": 1.25, "extractors": {"fd": ["RawPixels, no weights"]}},
        UNSAFE_NAME: {"nfe": 126.0, "samples": 100.0, "fd": None, "recall": 0.5},
    }
    (run / "report" / "metrics.json").write_text(json.dumps(results))
    (run / "config.yaml").write_text(f"seed_everything: 3\nmodel: {{seed: 7, title: {json.dumps(UNSAFE_NAME)}}}\n")
    (run / "config.test.yaml").write_text("model: {evaluations: {unguided: {seed: 11}}}\n")
    colors = {"fit-100-unguided": 10, "fit-200-unguided": 20, "test-0-cfg": 30}
    for name, color in colors.items():
        write_png(run / "grids" / f"{name}.png", torch.full((1, 3, 5), color, dtype=torch.uint8))
    write_png(run / "report" / "figure.png", torch.full((3, 2, 2), 40, dtype=torch.uint8))
    with SummaryWriter(str(run / "tensorboard")) as writer:
        for step in (10, 20, 30):
            writer.add_scalar("images_seen", 8 * step, step)
            writer.add_scalar("train/loss", 3.0 / step, step)
            writer.add_scalar("train/loss_sigma_0_to_1", 2.0 / step, step)
        for step, value in ((10, 4.0), (30, 1.25)):
            writer.add_scalar("unguided/fd", value, step)
            writer.add_scalar("unguided/seconds", 9.0, step)
        writer.add_scalar(f"{UNSAFE_NAME}/fd", 3.0, 30)
        writer.add_scalar("once/recall", 0.5, 30)
        writer.add_scalar("later/fd", 0.5, 0)  # by a version that logged evaluations of finished runs there
    return run


def test_page_of_a_finished_run_is_complete_and_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished(tmp_path / "first & <b>")
    write_png(tmp_path / "sweep" / "curves.png", torch.full((1, 2, 2), 50, dtype=torch.uint8))
    main(["report", str(run), "--figures", json.dumps([str(tmp_path / "sweep")])])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    parsed = checked(page)
    assert parsed.text["h1"] == ["Run first & <b>"] and page.isascii()
    assert [*parsed.text["h2"]] == ["Results", "Samples", "Figures", "Curves", "Seeds", "Settings", "Environment"]
    cells = parsed.text["td"]
    at = cells.index("unguided ")
    assert cells[at : at + 5] == ["unguided ", "63", "100", "1.25", "-"]
    assert cells[at + 5 : at + 10] == [UNSAFE_NAME, "126", "100", "nan", "0.5"]
    assert "fd: RawPixels, no weights" in parsed.text["p"]
    # the newest grid of each evaluation, then the figure
    assert [int(image.flat[0]) for image in parsed.images()] == [20, 30, 40, 50]
    assert parsed.text["figcaption"] == ["unguided (fit after 200 images)", "cfg (test)", "figure", "curves"]
    at = cells.index("seed_everything")
    assert cells[at : at + 9] == [
        *("seed_everything", "3", "config.yaml", "model.seed", "7", "config.yaml"),
        *("model.evaluations.unguided.seed", "11", "config.test.yaml"),
    ]
    assert parsed.text["summary"] == ["config.yaml", "config.test.yaml"]
    assert parsed.text["pre"][0] == (run / "config.yaml").read_text()
    assert "python" in cells and "torch" in cells
    labels = parsed.text["text"]
    assert {"training loss", "fd", "images seen", "unguided", UNSAFE_NAME, "sigma_0_to_1"} <= set(labels)
    assert "recall" not in labels and "later" not in labels and "seconds" not in labels


def test_chart_places_points_on_its_axes() -> None:
    points = {"one": [(0.0, 1.0), (10.0, 2.0), (20.0, math.nan)], "two": [(0.0, 2.0), (10.0, 1.0)], "empty": []}
    svg = line_chart(points, title="fd", x_label="images")
    drawn = re.findall('points="(.*?)"', svg)
    lines = [[tuple(map(float, pair.split(","))) for pair in each.split()] for each in drawn]
    ((a, b), (c, d)) = lines
    assert a[0] == c[0] < b[0] == d[0] and a[1] == d[1] > b[1] == c[1]  # larger values are higher up
    assert "empty" not in svg and Parsed(svg).open == []
    wide = line_chart({"x": [(1.0, 1e-3), (2.0, 1e-1), (3.0, 1e1)]}, title="loss", x_label="steps")
    (line,) = re.findall('points="(.*?)"', wide)
    heights = [float(pair.split(",")[1]) for pair in line.split()]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)  # a logarithmic axis
    assert line_chart({"x": [(1.0, math.inf)]}, title="", x_label="") == ""
    assert line_chart({"x": [(1.0, 5.0)]}, title="", x_label="")  # one point, no span
    many = line_chart({str(i): [(0.0, float(i)), (1.0, 2.0)] for i in range(13)}, title="", x_label="")
    assert many.count("<polyline") == 10 and "and 3 more" in many


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-3.0, 11.0, 3) == [0.0, 5.0, 10.0]
    for low, high in ((1e-7, 9e-7), (0.123, 0.124), (-5e6, 2e6), (1e6, 1e6 + 3)):
        found = ticks(low, high)
        assert 3 <= len(found) <= 9 and all(low <= each <= high for each in found)


def test_missing_or_damaged_files_raise_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run: expected config.yaml, tensorboard or report/metrics.json"):
        run_page(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1\n")
    parsed = checked(run_page(tmp_path))
    assert parsed.text["h2"] == ["Settings", "Environment"]  # a run that has not started
    for place in (tmp_path / "config.yaml", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="is not a figure: expected a PNG file, or a folder of them"):
            run_page(tmp_path, figures=[place])
    (tmp_path / "report").mkdir()
    odd = ('{"a": {"fd": "low"}}', '{"a": {"fd": [1]}}', '{"a": {"extractors": {"fd": 3}}}', '{"a": {"extractors": 3}}')
    for content in ("{", "[1]", '{"a": 1}', *odd):
        (tmp_path / "report" / "metrics.json").write_text(content)
        with pytest.raises(ValueError, match=r"metrics.json is damaged: "):
            run_page(tmp_path)
    (tmp_path / "report" / "metrics.json").unlink()
    (tmp_path / "config.yaml").write_text("a: [1\n")
    with pytest.raises(ValueError, match=r"config.yaml is not valid YAML: "):
        run_page(tmp_path)
    (tmp_path / "config.yaml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"config.yaml is not a UTF-8 text file: "):
        run_page(tmp_path)


def test_command_in_the_docs_runs(tmp_path: Path) -> None:
    docs = (Path(__file__).parent.parent / "docs/report.md").read_text()
    (words,) = re.findall(r"^    lightning-guide (report .*--out.*?) #", docs, re.MULTILINE)
    for name in ("main", "sweep"):
        (tmp_path / name).mkdir()
    (tmp_path / "main/config.yaml").write_text("a: 1\n")
    main(shlex.split(words.replace("runs/digits/", f"{tmp_path}/").replace("page.html", f"{tmp_path}/page.html")))
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_callback_writes_page_environment_and_hparams(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    (tmp_path / "config.yaml").write_text("seed_everything: 5\nmodel: {width: 8, none: null}\ndata: {names: [a]}\n")
    logger = TensorBoardLogger(str(tmp_path), name="tensorboard", version="", default_hp_metric=False)
    trainer = tiny_trainer(
        tmp_path,
        *(MetricsReport(), SampleGrid(4), RunReport()),
        logger=logger,
        limit_val_batches=1.0,
        val_check_interval=4,
        log_every_n_steps=2,
    )
    evaluations = {"plain": evaluation(metrics={"fd": FrechetDistance(RawPixels())})}
    trainer.fit(tiny_module(average=None, evaluations=evaluations), datamodule=TinyImages())
    page = (tmp_path / "report.html").read_text()
    parsed = checked(page)
    assert parsed.text["h2"] == ["Results", "Samples", "Curves", "Seeds", "Settings", "Environment"]
    assert {"training loss", "learning rate", "fd", "plain"} <= set(parsed.text["text"])
    assert "plain (fit after 32 images)" in parsed.text["figcaption"] and "fd: RawPixels, no weights" in page
    recorded = json.loads((tmp_path / "report" / "environment.json").read_text())
    assert list(recorded) == ["fit"]
    assert recorded["fit"]["processes"] == "1" and recorded["fit"]["precision"] == "32-true"
    log = EventAccumulator(str(tmp_path / "tensorboard"))
    log.Reload()
    assert {"report/environment/text_summary", "report/settings/config/text_summary"} <= set(log.Tags()["tensors"])
    assert "final/plain/fd" not in log.Tags()["scalars"], "one name for one number"
    hparams = log.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    for name in (b"seed_everything", b"model.width", b"data.names.0"):
        assert name in hparams
    assert b"model.none" not in hparams


def test_results_of_a_fit_and_of_later_commands_stand_side_by_side(tmp_path: Path) -> None:
    def run(command: str, names: list[str], seed: int = 0, **options: Any) -> dict[str, Any]:
        trainer = tiny_trainer(tmp_path, PostHocEMA(8), MetricsReport(), RunReport(), limit_val_batches=1.0)
        trainer.val_check_interval = 4
        module = tiny_module(evaluations={name: evaluation(metrics={}, seed=seed) for name in names}, **options)
        words = {} if command == "fit" else {"verbose": False}
        getattr(trainer, command)(module, datamodule=TinyImages(), **words)
        content: dict[str, Any] = json.loads((tmp_path / "report/metrics.json").read_text())
        return content

    def rows() -> list[str]:
        cells = checked((tmp_path / "report.html").read_text()).text["td"]
        return [cell.strip() for cell in cells if cell.split(",")[0].strip() in ("plain", "mine", "new")]

    def of(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values["of"].items() if key != "settings"}

    assert of(run("fit", ["plain", "mine"])["plain"]) == {"command": "fit", "images": 32, "average": 0.05}
    assert rows() == ["plain", "mine"]
    assert list(run("validate", ["new"])) == ["plain", "mine", "new"]
    assert rows() == ["plain", "mine", "new"]
    run("test", ["plain"], images=8)
    found = run("validate", ["plain"], images=8)  # replaces the same alone
    assert of(found["plain"]) == {"command": "validate", "images": 8, "average": 0.05}
    assert [each["of"]["images"] for each in found["plain"]["earlier"]] == [32] and found["plain"]["nfe"] > 0
    assert rows() == ["plain, 8 images", "plain, 32 images", "mine, 32 images", "new, 32 images"]
    run("validate", ["mine"], seed=1)  # the same name with other settings is another result
    run("validate", ["mine"], seed=2)
    assert rows()[2:5] == ["mine, 32 images, fit", "mine, 32 images, validate", "mine, 32 images, validate 2"]
    (tmp_path / "report/metrics.json").write_text("{")
    with pytest.warns(UserWarning, match="metrics.json is damaged: .*; it is kept as .*metrics.damaged"):
        assert list(run("validate", ["new"])) == ["new"]


def test_damaged_file_does_not_end_a_run(tmp_path: Path) -> None:
    evaluations = {"plain": evaluation(metrics={})}
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").write_text("{")
    with pytest.warns(UserWarning, match="the page of this run was not written: .*metrics.json is damaged"):
        tiny_trainer(tmp_path, RunReport()).test(tiny_module(average=None, evaluations=evaluations), TinyImages())
    assert not (tmp_path / "report.html").exists()

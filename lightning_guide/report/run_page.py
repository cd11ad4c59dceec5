"""HTML page of one run, built from its files: results, samples, curves, seeds, settings, environment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from lightning_guide.report.charts import line_chart
from lightning_guide.report.grids import add_grids
from lightning_guide.report.history import History, read_history, read_rounds
from lightning_guide.report.metrics_file import labeled_results, read_facts, read_text
from lightning_guide.report.page import Page
from lightning_guide.report.results import Cell, find_baseline, in_order, interval_keys, result_cells
from lightning_guide.report.tables import environment, format_number, judge_networks
from lightning_guide.snapshots import SnapshotStore
from lightning_guide.utils.files import atomic
from lightning_guide.utils.terminal import counted

__all__ = ["leaves", "report", "run_page", "write_page"]


METRICS, ENVIRONMENT = "report/metrics.json", "report/environment.json"


_FIGURES = ("report/*.png", "gallery/*.png", "gallery/*/*.png")  # in a run


_STORES = {"snapshots": "", "half_life/snapshots": "half_life"}  # folder -> name of its average, or by sigma_rel


def report(run: str, out: str | None = None, *, figures: list[str] | None = None) -> None:
    """Write a self-contained HTML page about a run, at any time during or after training.

    Args:
        run: run folder.
        out: file of the page; default: RUN/report.html.
        figures: more PNG files to show, or folders of them, such as those of a sweep.

    Raises:
        ValueError: if the folder holds no run, or a file in it is damaged or missing.
    """
    print(write_page(run, out, figures=figures or []))


def write_page(run: str | Path, out: str | Path | None = None, *, figures: Sequence[str | Path] = ()) -> Path:
    """Write `run_page` atomically to `out` (default: RUN/report.html) and return its path.

    Raises:
        ValueError: as `run_page`.
    """
    path = Path(run) / "report.html" if out is None else Path(out)
    page = run_page(run, figures=figures, beside=path.parent)
    with atomic(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def run_page(run: str | Path, *, figures: Sequence[str | Path] = (), beside: Path | None = None) -> str:
    """Return the HTML page of the run folder `run`, with more `figures`: PNG files, or folders of them.

    Links to snapshots are relative to the folder `beside`, by default the run.

    Raises:
        ValueError: if the folder holds no run, or a file in it is damaged or missing.
    """
    run = Path(run)
    configs = sorted(run.glob("config*.yaml"), key=lambda path: (path.name != "config.yaml", path.name))
    events = run / "tensorboard"
    if not (configs or events.is_dir() or (run / METRICS).is_file()):
        raise ValueError(f"{run} holds no run: expected config.yaml, tensorboard or {METRICS} in it")
    settings = {path.name: read_text(path) for path in configs}
    loaded = {name: _loaded(name, text) for name, text in settings.items()}
    evaluations = _evaluations(loaded)
    history = read_history(run)
    page = Page(f"Run {run.resolve().name}")
    page.paragraph(_summary(run, history))
    results = read_facts(run / METRICS)
    order = list(dict.fromkeys([*evaluations, *results]))
    _results(page, results, evaluations, order=order, place=run / METRICS)
    add_grids(page, run, order=order, evaluations=evaluations)
    _figures(page, [*(path for pattern in _FIGURES for path in sorted(run.glob(pattern))), *map(Path, figures)])
    rounds = read_rounds(run)
    _curves(page, [history, rounds], order)
    _round_times(page, rounds)
    _snapshots(page, run, Path(run) if beside is None else beside)
    _seeds(page, loaded)
    if settings:
        page.heading("Settings")
        for name, text in settings.items():
            page.folded(name, text)
    _environment(page, run)
    return page.html


def _summary(run: Path, history: History) -> str:
    """Return sentences about the length of training and the stored snapshots."""
    sentences = []
    entries = SnapshotStore(run / "snapshots").entries() if (run / "snapshots").is_dir() else []
    if entries:
        newest = entries[-1].images
        lengths = ", ".join(f"{each:g}" for each in sorted({entry.sigma_rel for entry in entries}))
        sentences.append(
            f"{counted(len(entries), 'snapshot')} up to {counted(newest, 'image')} seen, of sigma_rel {lengths}."
        )
    if history.seconds:
        span = timedelta(seconds=round(history.seconds))
        sentences.append(f"From the first to the last logged step of training: {span} (h:mm:ss), pauses included.")
    return " ".join(sentences) or "Nothing was trained here."


def _results(
    page: Page,
    results: Mapping[str, Mapping[str, Any]],
    evaluations: Mapping[str, Any],
    *,
    order: Sequence[str],
    place: Path,
) -> None:
    if not results:
        return
    try:
        rows = labeled_results(results, order)
        baseline = find_baseline([name for name in order if name in results], evaluations)
        marked = next((label for label, (name, _) in reversed(rows.items()) if name == baseline), None)
        table = result_cells({label: values for label, (_, values) in rows.items()}, marked)
        lines = judge_networks({label: values.get("extractors", {}) for label, (_, values) in rows.items()})
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{place} is damaged: expected numbers and names of extractors: {error}") from None
    page.heading("Results")
    page.table(table)
    page.paragraph(
        "nfe: network calls per sample; seconds: sum over all processes. Bold: the best of a metric; brackets: its "
        "interval, or smallest and largest value of the repetitions."
    )
    for line in lines:
        page.paragraph(line)


def _figures(page: Page, places: Sequence[Path]) -> None:
    """Add the PNG files at `places`, which are files or folders."""
    paths = [path for place in places for path in (sorted(place.glob("*.png")) if place.is_dir() else [place])]
    for path in paths:
        if not path.is_file() or path.read_bytes()[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError(f"{path} is not a figure: expected a PNG file, or a folder of them")
    if paths:
        page.heading("Figures")
        page.images([(path.read_bytes(), _caption(path)) for path in paths])


def _caption(path: Path) -> str:
    """Return the name of a figure, with that of its folder for gallery/NAME/gallery.png."""
    return f"{path.stem} {path.parent.name}" if path.parent.parent.name == path.stem else path.stem


def _curves(page: Page, histories: Sequence[History], order: Sequence[str]) -> None:
    """Add a chart for each metric, whose lines are in the order of the evaluations."""
    charts = []
    for history in histories:
        found = history.charts()
        ends = interval_keys(found)
        for title, lines in found.items():
            if any(title in pair for pair in ends.values()):
                continue
            low, high = (found[end] for end in ends[title]) if title in ends else ({}, {})
            charts.append(
                line_chart(
                    {name: lines[name] for name in in_order(list(lines), order)},
                    title=title,
                    x_label=history.x_label,
                    bands={name: (low[name], high[name]) for name in low.keys() & high.keys()},
                )
            )
    if any(charts):
        page.heading("Curves")
        page.charts([chart for chart in charts if chart])


def _round_times(page: Page, rounds: History) -> None:
    """Add what a round costs without and with guidance."""
    seconds, calls = (dict(rounds.scalars.get(f"rounds/{name}", ())) for name in ("seconds", "nfe"))
    rows: list[list[str | Cell]] = [["rounds", "number", "nfe", "seconds per round"]]
    for name, numbers in (("unguided", [0]), ("guided", sorted(set(seconds) - {0}))):
        if found := [number for number in numbers if number in seconds and number in calls]:
            means = [sum(values[number] for number in found) / len(found) for values in (calls, seconds)]
            rows.append([name, str(len(found)), *map(format_number, means)])
    if len(rows) > 2:
        page.heading("Time of a round")
        page.table(rows)
        page.paragraph("nfe: network calls per sample; seconds: mean over the rounds of the sum over all processes.")


def _snapshots(page: Page, run: Path, beside: Path) -> None:
    """Add links to the stored averages, a row for each number of images and a column for each length."""
    stores = [(SnapshotStore(run / folder), average) for folder, average in _STORES.items() if (run / folder).is_dir()]
    files = {(e.images, average or f"{e.sigma_rel:g}"): e.path for store, average in stores for e in store.entries()}
    columns = list(dict.fromkeys(sorted({column for _, column in files})))
    rows: list[list[str | Cell]] = [["images seen", *(f"average {each}" for each in columns)]]
    for images in sorted({images for images, _ in files}):
        found = [files.get((images, column)) for column in columns]
        links = [os.path.relpath(path.resolve(), beside.resolve()) if path else "" for path in found]
        rows.append([f"{images:,}", *(Cell(Path(link).name, link=link) if link else "-" for link in links)])
    if len(rows) > 1:
        page.heading("Snapshots")
        page.table(rows, folded=f"{len(files)} files" if len(rows) > 12 else "")


def _loaded(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from None


def _evaluations(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evaluations in all configs, name -> settings; those of the fit come first."""
    found: dict[str, Any] = {}
    for config in loaded.values():
        model = config.get("model") if isinstance(config, dict) else None
        arguments = model.get("init_args") or {} if isinstance(model, dict) else {}
        evaluations, guidances = (arguments.get(key) or {} for key in ("evaluations", "guidances"))
        if isinstance(evaluations, dict) and isinstance(guidances, dict):
            first = next((each for each in evaluations.values() if isinstance(each, dict)), {})
            added = evaluations | {name: first | {"guidance": each} for name, each in guidances.items()}
            found |= {name: settings for name, settings in added.items() if name not in found}
    return found


def _seeds(page: Page, loaded: Mapping[str, Any]) -> None:
    found = [["seed", "value", "in"]]
    for name, settings in loaded.items():
        found += [[key, str(value), name] for key, value in leaves(settings) if "seed" in key.rpartition(".")[2]]
    if len(found) > 1:
        page.heading("Seeds")
        page.table(found)


def _environment(page: Page, run: Path) -> None:
    recorded = read_facts(run / ENVIRONMENT)
    page.heading("Environment")
    if not recorded:
        page.paragraph("The run has no environment file; this is the environment of the report.")
        recorded = {"report": environment()}
    names = list(dict.fromkeys(name for facts in recorded.values() for name in facts))
    rows = [[name, *[str(facts.get(name, "-")) for facts in recorded.values()]] for name in names]
    page.table([["", *recorded], *rows])


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all leaves of nested dicts and lists."""
    pairs: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if pairs is None:
        yield prefix, value
        return
    for key, each in pairs:
        yield from leaves(each, f"{prefix}.{key}" if prefix else str(key))

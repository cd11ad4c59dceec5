"""The commands `score` and `compare`: metrics of sets of samples in files, from any program."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.commands.score_table import score_table
from datamodules.sample_sets import SampleSet, is_archive
from datamodules.storage.resizing import Convention, Resizing
from lightning_guide import __version__
from lightning_guide.evaluation.features import ClipFeatures, FeatureExtractor, InceptionFeatures
from lightning_guide.evaluation.intervals import Estimate
from lightning_guide.evaluation.metrics.base import SampleMetric
from lightning_guide.evaluation.reference.statistics import Statistics, read_statistics
from lightning_guide.evaluation.scoring import (
    METRICS,
    NEEDS,
    WITHOUT_REFERENCE,
    MetricName,
    Scorer,
    Scores,
    of_examples,
    score_means,
)
from lightning_guide.evaluation.set_features import Extracted, Output, Outputs, Scan, extract_set, scan
from lightning_guide.evaluation.set_metrics import Measured, measure_set, unfit
from lightning_guide.utils.devices import choose_device
from lightning_guide.utils.distributed import launched_processes, rank_and_world
from lightning_guide.utils.files import atomic
from lightning_guide.utils.needs import check_writable, require
from lightning_guide.utils.terminal import Progress, counted

__all__ = ["score"]


def score(
    samples: list[str],
    *,
    against: str,
    extractor: FeatureExtractor | None = None,
    size: int | None = None,
    resize: Convention = "clean-fid",
    rounded: bool = True,
    metrics: list[MetricName] | None = None,
    also: list[SampleMetric] | None = None,
    resamples: int = 20,
    batch_size: int = 64,
    device: str | None = None,
    out: str = "score.json",
    features: str | None = None,
) -> None:
    """Compute metrics of sets of samples against a reference, with intervals and the differences to the first set.

    Features are extracted once and kept in files; rerun the same command to resume. Sets whose files or indices have
    equal names are compared in pairs. On several GPUs: torchrun --nproc_per_node 8 -m lightning_guide.cli score ...

    Args:
        samples: folders, zip archives or tar shards of images, or npz archives with x or arr_0.
        against: reference: samples in one of these forms, or a file of the statistics of samples, npz with mu and sigma
            or a pickle of EDM2.
        extractor: feature extractor; default InceptionFeatures, which downloads 96 MB at its first use.
        size: side that images are resized to before the extractor, which resizes in its own way; default: none.
        resize: convention of that, clean-fid, torch-fidelity or area.
        rounded: round resized pixels to 8 bits.
        metrics: some of fd, sfid, kid, cmmd, mind, precision_recall, density_coverage, memorization, authenticity,
            vendi, inception_score, with commas; default: all that apply, cmmd for CLIP.
        also: metrics of the images and their labels, such as LpipsDiversity, as in configs; means over samples have
            intervals.
        resamples: number of random halves for the intervals, each as long as the metrics of half the samples; 0: none.
        batch_size: images in one call of the extractor.
        device: where to compute; default: a GPU if there is one.
        out: file of the results, JSON.
        features: folder of the features; default: OUT with the suffix .features.

    Raises:
        ValueError: for sets or files that are missing, damaged, too small or of several shapes, metrics that the
            reference or the extractor does not allow, or weights that cannot be found.
    """
    if batch_size < 1 or resamples < 0 or resamples == 1:
        raise ValueError(
            f"expected batch_size >= 1, and resamples 0 or at least 2; got batch_size {batch_size} and "
            f"resamples {resamples}"
        )
    if len(set(samples)) < len(samples):
        raise ValueError(f"a set is named twice in {', '.join(samples)}; expected different ones")
    check_writable(Path(out).parent, "score")
    if Path(out).is_dir():
        raise ValueError(f"--out {out} is a folder; expected a file for the results, such as {out}/score.json")
    kept = Path(features) if features is not None else Path(out).with_suffix(".features")
    check_writable(kept, "score")
    with launched_processes():
        scoring = _Scoring(
            extractor or InceptionFeatures(), Resizing(size, resize, rounded), choose_device(device), batch_size, kept
        )
        result = scoring.run(samples, against, metrics, resamples, also or [])
        if rank_and_world()[0] == 0:
            with atomic(Path(out)) as temporary:
                temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            print(score_table(result))
            print(f"score has ended; results {out}; features {kept}")


class _Scoring:
    """One comparison of sets: what they are checked for, their features and their metrics."""

    def __init__(
        self, extractor: FeatureExtractor, resizing: Resizing, device: torch.device, batch_size: int, kept: Path
    ) -> None:
        self.extractor, self.resizing, self.device, self.batch_size = extractor, resizing, device, batch_size
        self.kept = kept

    def run(
        self,
        samples: list[str],
        against: str,
        chosen: list[MetricName] | None,
        resamples: int,
        also: Sequence[SampleMetric],
    ) -> dict[str, Any]:
        """Return everything that the file of results holds."""
        sets = [SampleSet(place, self.resizing) for place in samples]
        self.extractor.load()
        reference = self._reference(against)
        names = chosen or self._applicable(reference)
        require(lambda: [*self._missing(sets, reference, names, resamples), *unfit(also, sets[0])])
        first = sets[0].read(range(1)).to(self.device)
        width = self.extractor(first).shape[1]
        places = self.extractor.spatial(first).shape[1] if "sfid" in names else 0  # type: ignore[operator]
        more = [NEEDS[name] for name in ("sfid", "inception_score") if name in names]
        read = [*sets, reference] if isinstance(reference, SampleSet) else sets
        with self._progress("reading", sum(map(len, read))) as bar:
            scans = [scan(each, bar.add) for each in read]
        with self._progress("features", sum(map(len, read))) as bar:
            rows = [self._rows(each, found, more, bar.add) for each, found in zip(sets, scans, strict=False)]
            real: Tensor | Statistics
            if isinstance(reference, SampleSet):
                real = self._rows(reference, scans[-1], [each for each in more if each != "logits"], bar.add)
            else:
                real = reference
        scorer = Scorer(names, real, width=width, places=places, resamples=resamples, device=self.device)
        order, seeds = _pairs(sets)
        with self._progress("metrics", len(sets), unit="sets") as bar:
            scores = []
            for each, place, seed in zip(rows, order, seeds, strict=True):
                scores.append(scorer.score(each if place is None else each[place], seed))
                bar.add()
        if also:
            images = [self._also(also, each) for each in sets]
            together = zip(scores, images, order, seeds, strict=True)
            scores = [_joined(found, own, place, seed) for found, own, place, seed in together]
        return {
            "version": __version__,
            "extractor": asdict(self.extractor.identity),
            "resize": str(self.resizing),
            "against": _described(reference, scans[-1]) | {"place": against},
            "intervals": f"95 %, from {resamples} random halves of the samples",
            "sets": {
                each.place: _described(each, found) | {"metrics": _numbers(values.estimates())}
                for each, found, values in zip(sets, scans, scores, strict=False)
            },
            "differences": {
                f"{each.place} - {sets[0].place}": {
                    "paired": seed == seeds[0],
                    "metrics": _numbers(values.minus(scores[0])),
                }
                for each, values, seed in zip(sets[1:], scores[1:], seeds[1:], strict=True)
            },
        }

    def _also(self, metrics: Sequence[SampleMetric], samples: SampleSet) -> Measured:
        """Return the results of metrics of a set's images."""
        with self._progress("images", len(samples)) as bar:
            return measure_set(metrics, samples, device=self.device, batch_size=self.batch_size, done=bar.add)

    def _reference(self, place: str) -> SampleSet | Statistics:
        if place.endswith(".pkl") or is_archive(Path(place).expanduser(), "mu", "sigma"):
            return read_statistics(place, self.extractor)
        return SampleSet(place, self.resizing)

    def _applicable(self, reference: SampleSet | Statistics) -> list[MetricName]:
        """Return all metrics that reference and extractor allow."""
        names = [name for name in METRICS if isinstance(reference, SampleSet) or not of_examples(name)]
        return [
            name
            for name in names
            if hasattr(self.extractor, NEEDS.get(name, "extract"))
            and (name != "cmmd" or isinstance(self.extractor, ClipFeatures))
        ]

    def _missing(
        self, sets: list[SampleSet], reference: SampleSet | Statistics, names: list[MetricName], resamples: int
    ) -> list[str]:
        """Return what prevents the metrics, before anything is computed."""
        found = []
        for name in names:
            least = METRICS[name](Extracted(1)).least
            needed = least * 2 if resamples else least
            for each in sets:
                if len(each) < needed:
                    why = f", {least} in each half; --resamples 0 needs {least}" if resamples else ""
                    found.append(f"{each.place} holds {counted(len(each), 'sample')}; {name} needs {needed}{why}")
            if (needed_output := NEEDS.get(name)) and not hasattr(self.extractor, needed_output):
                found.append(f"{self.extractor.title()} has no {needed_output}, which {name} needs")
            if name in WITHOUT_REFERENCE:
                continue
            if isinstance(reference, SampleSet) and len(reference) < least:
                found.append(f"{reference.place} holds {counted(len(reference), 'sample')}; {name} needs {least}")
            elif isinstance(reference, Statistics) and of_examples(name):
                found.append(f"{name} needs the examples of the reference; its statistics suffice for fd alone")
        shape = reference.shape if isinstance(reference, SampleSet) else reference.data_shape
        for each in sets:
            if shape is not None and each.shape != tuple(shape) and isinstance(reference, Statistics):
                found.append(f"the statistics are those of data of shape {shape}, {each.place} has {each.shape}")
        return found

    def _rows(self, samples: SampleSet, found: Scan, more: list[Output], done: Callable[[int], None]) -> Tensor:
        extractor = Outputs(self.extractor, more) if more else self.extractor
        return extract_set(
            samples, found, extractor, cache=self.kept, device=self.device, batch_size=self.batch_size, done=done
        )

    def _progress(self, what: str, total: int, unit: str = "samples") -> Progress:
        return Progress(f"score, {what}", total, unit=unit, silent=rank_and_world()[0] > 0)


def _pairs(sets: list[SampleSet]) -> tuple[list[Tensor | None], list[int]]:
    """Return an order of each set, None for its own, and seeds: equal ones for sets in pairs with the first."""
    order: list[Tensor | None] = []
    seeds = []
    first = sets[0].keys
    places = {key: i for i, key in enumerate(first or ())}
    for number, each in enumerate(sets):
        paired = first is not None and each.keys is not None and set(each.keys) == set(first)
        order.append(torch.tensor([places[key] for key in each.keys or ()]).argsort() if paired else None)
        seeds.append(0 if paired else number)
    return order, seeds


def _described(data: SampleSet | Statistics, found: Scan) -> dict[str, Any]:
    if isinstance(data, Statistics):
        return {"statistics": True, "count": data.num_images, "data": data.data}
    return {"count": len(data), "shape": list(data.shape), "data": found.identity}


def _joined(scores: Scores, own: Measured, place: Tensor | None, seed: int) -> Scores:
    """Return `scores` with the metrics of the images, means with the values of the same halves."""
    each = {name: rows if place is None else rows[place] for name, rows in own.each.items()}
    means = score_means(each, resamples=len(scores.halves), seed=seed)
    return scores.joined(Scores(own.values | means.values, means.halves))


def _numbers(estimates: dict[str, Estimate]) -> dict[str, dict[str, Any]]:
    """Return estimates as JSON can hold them: None in place of what is no finite number, with the reason."""
    found: dict[str, dict[str, Any]] = {}
    for name, each in estimates.items():
        found[name] = asdict(each)
        if not math.isfinite(each.value):
            found[name] |= {"value": None, "reason": f"{each.value}: undefined for these samples, as a mean of none is"}
    return found

"""Guiders out of the snapshot store: fractions of a run, averages rebuilt after training, networks."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_guide import ema
from lightning_guide.snapshots import SnapshotMissing, SnapshotStore, fraction_images
from lightning_guide.snapshots import file as snapshot_file
from tests.snapshot_stores import RECIPE, NoDenoiser, Tiny, run, save

# --- which images -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "planned", "images"),
    [
        (0.3, 1000, 300),
        (1 / 3, 3000, 1000),
        ("1/3", 3000, 1000),
        ("1/16", 1000, 62),
        ("1/3.5", 7_000_000_000, 2_000_000_000),
        (1 / 3.5, 7_000_000, 2_000_000),
        (" 1 / 32 ", 3200, 100),
        ("1.0", 999, 999),
        (1.0, 999, 999),
        ("0.5", 999, 499),
    ],
)
def test_fractions_are_exact(fraction: float | str, planned: int, images: int) -> None:
    assert fraction_images(fraction, planned) == images


@pytest.mark.parametrize("bad", [0.0, -0.5, 1.5, "2/1", "1/0", "x", "", "1/2/3", True, None, float("nan"), -3])
def test_what_is_neither_count_nor_fraction_is_refused(store: SnapshotStore, bad: Any) -> None:
    with pytest.raises(ValueError, match="expected a count of images or a fraction of the planned run such as"):
        store.resolve_images(bad)
    with pytest.raises(ValueError, match="expected a count|expected a fraction"):
        fraction_images(bad, 100)


def test_integer_counts_are_kept(store: SnapshotStore) -> None:
    assert [store.resolve_images(images) for images in (5, "4096", 1e6, 1)] == [5, 4096, 1_000_000, 1]
    with pytest.raises(ValueError, match="expected a fraction of the planned run"):
        fraction_images(5, 100)


def test_fractions_find_the_snapshot_that_the_callbacks_rounded_to(store: SnapshotStore) -> None:
    run(store, [624, 1248, 2496, 10_016], plan=10_000)
    assert store.resolve_images("1/16") == 624  # 625, down to a batch
    assert store.resolve_images(0.125) == 1248
    assert store.resolve_images(1.0) == 10_016
    with pytest.raises(SnapshotMissing, match=r"no snapshot of images=1/3 \(3333 of 10000 planned\)") as caught:
        store.resolve_images("1/3")
    assert not caught.value.not_yet and "624, 1248, 2496, 10016 (4 in all), sigma_rel 0.05, 0.1" in str(caught.value)


def test_nothing_later_than_until_exists(store: SnapshotStore) -> None:
    run(store, [500, 1000])
    for images in (1.0, 1000, "1000"):
        with pytest.raises(SnapshotMissing, match="yet at images=999; available: images 500 ") as caught:
            store.tensors(images=images, sigma_rel=0.05, until=999)
        assert caught.value.not_yet
        store.tensors(images=images, sigma_rel=0.05, until=1000)
    with pytest.raises(SnapshotMissing, match="yet at images=10; there are no snapshots") as caught:
        store.tensors(images="1/2", sigma_rel=0.05, until=10)
    assert caught.value.not_yet


def test_missing_now_and_missing_for_ever(store: SnapshotStore) -> None:
    with pytest.raises(SnapshotMissing, match="does not exist") as caught:
        store.tensors(images=0.5, sigma_rel=0.05)
    assert not caught.value.not_yet
    with pytest.raises(SnapshotMissing, match="does not exist") as caught:
        store.tensors(images=0.5, sigma_rel=0.05, until=100)
    assert caught.value.not_yet

    run(store, list(range(100, 1201, 100)))
    with pytest.raises(SnapshotMissing, match=r"100, 200, 300, 400, \.\.\., 1000, 1100, 1200 \(12 in all\)") as caught:
        store.tensors(images=1300, sigma_rel=0.05)
    assert caught.value.not_yet
    with pytest.raises(SnapshotMissing, match="no average was stored at or before images=50") as caught:
        store.tensors(images=50, sigma_rel=0.05)
    assert not caught.value.not_yet
    with pytest.raises(SnapshotMissing, match="no snapshot of images=300, sigma_rel=0 in") as caught:
        store.tensors(images=300, sigma_rel=0.0)
    assert not caught.value.not_yet
    with pytest.raises(ValueError, match="sigma_rel must lie between 0 and"):
        store.tensors(images=1300, sigma_rel=0.5)


def test_a_fraction_of_an_unplanned_run_is_refused(store: SnapshotStore) -> None:
    save(store, 500, planned_images=None)
    with pytest.raises(SnapshotMissing, match="record no planned length of the run; give a count of images") as caught:
        store.tensors(images=0.5, sigma_rel=0.05)
    assert not caught.value.not_yet


# --- reconstruction ----------------------------------------------------------------------------------


class Walk(NamedTuple):
    """A store of two averages and the raw weights of a random walk, and four averages as they were tracked."""

    store: SnapshotStore
    tracked: dict[tuple[int, float], Tensor]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    store = SnapshotStore(tmp_path_factory.mktemp("walk"))
    draw, generator = random.Random(3), torch.Generator().manual_seed(3)
    theta, images = torch.zeros(40), 0
    averages = {width: torch.zeros(40) for width in (0.05, 0.1, 0.07, 0.13)}
    tracked = {}
    for snapshot in range(100, 3201, 100):
        while images < snapshot:
            previous, images = images, min(images + draw.randint(1, 9), snapshot)
            theta = theta + torch.randn(40, generator=generator)
            for width, average in averages.items():
                ema.update_([average], [theta], ema.retention(ema.gamma(width), previous, images))
        fixed: dict[str, Any] = {"images": images, "recipe": RECIPE, "planned_images": 3200, "buffers": ["buffer"]}
        constants = {"buffer": torch.tensor(float(images)), "count": torch.tensor(images)}
        for width, average in averages.items():
            tracked[images, width] = average.clone()
        for width, value in ((0.0, theta), (0.05, averages[0.05]), (0.1, averages[0.1])):
            store.save({"theta": value, **constants}, sigma_rel=width, **fixed)
    return Walk(store, tracked)


def test_reconstruction_equals_averages_that_were_tracked_but_not_stored(walk: Walk) -> None:
    store, history = walk
    for images, fraction in ((3200, 1.0), (1600, "1/2")):
        for width, error in ((0.07, 0.02), (0.13, 0.02)):
            rebuilt = store.tensors(images=fraction, sigma_rel=width)
            wanted = history[images, width]
            assert (rebuilt["theta"] - wanted).norm() < error * wanted.norm()
            assert rebuilt["theta"].dtype is torch.float32
            assert rebuilt["buffer"] == images and rebuilt["count"] == images
        for width in (0.05, 0.1):
            assert torch.equal(store.tensors(images=fraction, sigma_rel=width)["theta"], history[images, width])


def test_many_targets_read_every_file_once(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    store = walk.store
    targets = [(1.0, 0.07), ("1/2", 0.13), (3200, 0.05), (1600, 0.09), (1.0, 0.13), (800, 0.0), (2400, 0.0)]
    single = [store.tensors(images=images, sigma_rel=width) for images, width in targets]
    reads: list[Path] = []
    original = snapshot_file.read
    monkeypatch.setattr("lightning_guide.snapshots.store.read", lambda path: reads.append(path) or original(path))
    together = store.reconstruct(targets)
    assert len(reads) == len(set(reads)) == 64 + 2
    for one, other in zip(single, together, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    reads.clear()
    store.reconstruct([(3200, 0.05), (3200, 0.05), (100, 0.1)])
    assert len(reads) == 2
    assert store.reconstruct([]) == []


def test_until_keeps_the_future_out_of_a_reconstruction(walk: Walk, tmp_path: Path) -> None:
    for entry in walk.store.entries():
        if entry.images <= 1600:
            shutil.copy(entry.path, tmp_path)
    then = SnapshotStore(tmp_path).tensors(images="1/2", sigma_rel=0.13)
    now = walk.store.tensors(images="1/2", sigma_rel=0.13, until=1600)
    assert torch.equal(now["theta"], then["theta"])


def test_results_do_not_share_memory_with_files_or_each_other(walk: Walk) -> None:
    store = walk.store
    first, second = store.reconstruct([(800, 0.05), (800, 0.05)])
    first["theta"].zero_()
    first["buffer"].zero_()
    assert second["theta"].any() and second["buffer"] == 800
    assert store.tensors(images=800, sigma_rel=0.05)["theta"].any()


def test_too_few_snapshots_are_refused_with_a_remedy(store: SnapshotStore) -> None:
    run(store, [250, 500, 750, 1000])
    with pytest.raises(
        SnapshotMissing,
        match=r"images=1000, sigma_rel=0.25 cannot be rebuilt well enough: from the 8 averages \(4 times\) stored up "
        r"to there its profile error is 39\.\d%, above max_error=0.05; 32 times spaced evenly up to 1000, each with "
        r"sigma_rel 0.05 and 0.1, would be enough; available: images 250, 500, 750, 1000 \(4 in all\), sigma_rel 0.05",
    ) as caught:
        store.tensors(images=1000, sigma_rel=0.25)
    assert not caught.value.not_yet
    store.tensors(images=1000, sigma_rel=0.25, max_error=0.4)
    with pytest.raises(SnapshotMissing, match="even 128 times with sigma_rel 0.05 and 0.1 would not be enough: "):
        store.tensors(images=1000, sigma_rel=0.005)


def test_snapshots_of_different_networks_are_not_mixed(store: SnapshotStore) -> None:
    run(store, [250, 500, 750])
    for width in (0.05, 0.1):
        save(store, 1000, width, recipe={"class_path": "another.Network"})
    with pytest.raises(ValueError, match="images=750 before it belong to different networks"):
        store.tensors(images=1000, sigma_rel=0.06)


# --- guiders -----------------------------------------------------------------------------------------


def test_guider_is_the_network_with_these_weights(store: SnapshotStore) -> None:
    models = [Tiny(width=4) for _ in range(8)]
    for step, model in enumerate(models, start=1):
        for width in (0.05, 0.1):
            store.save(
                model.state_dict(),
                images=125 * step,
                sigma_rel=width,
                recipe=model.recipe,
                planned_images=1000,
                buffers=["frequencies", "steps"],
            )
    state = torch.get_rng_state()
    guider = store.guider(images="1/4", sigma_rel=0.05)
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(guider, Tiny) and not guider.training
    assert not any(parameter.requires_grad for parameter in guider.parameters())
    for name, value in models[1].state_dict().items():
        assert torch.equal(guider.state_dict()[name], value)
    x = torch.randn(2, 4)
    assert torch.equal(guider(x, torch.ones(2)), models[1](x, torch.ones(2)))
    rebuilt = store.guider(sigma_rel=0.07)
    assert torch.equal(rebuilt.state_dict()["frequencies"], models[-1].frequencies)
    assert torch.equal(rebuilt.state_dict()["weight"], store.tensors(sigma_rel=0.07)["weight"])


def test_guider_of_half_precision_snapshots_is_float32(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, dtype=torch.bfloat16)
    model = Tiny()
    store.save(model.state_dict(), images=10, sigma_rel=0.05, recipe=model.recipe, buffers=["frequencies"])
    guider = store.guider(images=10, sigma_rel=0.05)
    assert torch.equal(guider.weight, model.weight.bfloat16().float())
    assert torch.equal(guider.frequencies, model.frequencies)


def test_weights_that_do_not_fit_their_recipe_are_refused(store: SnapshotStore) -> None:
    model = Tiny(width=4)
    store.save(model.state_dict(), images=1, sigma_rel=0.05, recipe=Tiny(width=5).recipe)
    with pytest.raises(
        ValueError,
        match=r"do not fit their recipe at 2 names, first 'frequencies': stored \(4,\), Tiny expects \(5,\)",
    ):
        store.guider(images=1, sigma_rel=0.05)
    store.save({"weight": torch.zeros(4, 4)}, images=1, sigma_rel=0.05, recipe=model.recipe)
    with pytest.raises(ValueError, match=r"first 'frequencies': stored nothing, Tiny expects \(4,\)"):
        store.guider(images=1, sigma_rel=0.05)
    store.save(model.state_dict(), images=1, sigma_rel=0.05, recipe={"class_path": "lightning_guide.nowhere.X"})
    with pytest.raises(ValueError, match=r"lightning_guide\.nowhere\.X"):
        store.guider(images=1, sigma_rel=0.05)
    store.save(model.state_dict(), images=1, sigma_rel=0.05, recipe=NoDenoiser().recipe)
    with pytest.raises(ValueError, match="hold a NoDenoiser, expected a Denoiser"):
        store.guider(images=1, sigma_rel=0.05)

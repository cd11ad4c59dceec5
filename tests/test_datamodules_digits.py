"""Digits: a fixed, stratified split and disjoint halves."""

from __future__ import annotations

import sys

import pytest
import torch

from datamodules import Digits


def images(part: str) -> set[tuple[bytes, int]]:
    """Return the training images of a part as a set."""
    examples = Digits(part=part).training()
    return {(x.numpy().tobytes(), int(label)) for x, label in zip(examples.x, examples.labels, strict=True)}


def test_sizes_types_and_range() -> None:
    """1,437 and 360 images of 8x8 bytes over the full range."""
    data = Digits()
    train, heldout = data.training(), data.heldout()
    assert train.x.shape == (1437, 1, 8, 8) and heldout.x.shape == (360, 1, 8, 8)
    assert train.x.dtype == torch.uint8 and train.labels.dtype == torch.int64
    assert train.x.min() == 0 and train.x.max() == 255
    assert set(train.x.unique().tolist()) == {round(255 * v / 16) for v in range(17)}
    assert data.data_shape == (1, 8, 8) and data.num_classes == 10


def test_split_is_disjoint_stratified_and_fixed() -> None:
    """No image is in both sets; class shares are equal; the split is independent of the seed."""
    data = Digits()
    heldout = {x.numpy().tobytes() for x in data.heldout().x}
    assert not heldout & {x for x, _ in images("all")}
    counts = [torch.bincount(examples.labels, minlength=10) for examples in (data.training(), data.heldout())]
    assert (counts[0] / 1437 - counts[1] / 360).abs().max() < 0.005
    assert torch.equal(Digits(seed=5).training().x, data.training().x)


def test_halves_are_disjoint_and_complete() -> None:
    """A classifier that evaluates is trained on other images than one that guides."""
    first, second = images("first"), images("second")
    assert not first & second and first | second == images("all")
    assert len(Digits(part="first").training()) == 719 and len(Digits(part="second").training()) == 718
    assert torch.equal(Digits(part="first").heldout().x, Digits().heldout().x)


def test_invalid_part_and_missing_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="expected 'all', 'first' or 'second'"):
        Digits(part="third")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"lightning-guide\[demo\]"):
        Digits().training()

"""Classes of a run: recorded by fit, and compared by name wherever its model meets data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from callbacks import PostHocEMA, RunCheckpoint
from datamodules import ImageFolder
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.runs import pretrained
from lightning_guide.runs.class_names import check_class_names, read_class_names
from lightning_guide.training.losses import EDMLoss
from tests.runs import TinyNetwork, evaluation, tiny_module, tiny_trainer
from tests.test_datamodules_labels import classes, place


def data(tmp_path: Path, *names: str) -> ImageFolder:
    source = place(tmp_path / "-".join(names), classes(**dict.fromkeys(names, 3)))
    return ImageFolder(source, 0.2, num_classes=len(names), batch_size=4)


def module() -> DiffusionModule:
    return tiny_module(TinyNetwork((3, 4, 4)), evaluations={"plain": evaluation()}, average=0.05)


def test_data_of_other_classes_are_refused_by_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trainer = tiny_trainer(run, PostHocEMA(16), RunCheckpoint(4), steps=4)
    trainer.fit(module(), datamodule=data(tmp_path, "ant", "bee", "cat"))
    assert json.loads((run / "classes.json").read_text()) == ["ant", "bee", "cat"]
    tiny_trainer(run, limit_val_batches=1.0).validate(module(), datamodule=data(tmp_path, "ant", "bee", "cat"))
    other = data(tmp_path, "ant", "cow", "dog")
    message = "label 1 of the data is the class 'cow', but of {} 'bee'; expected the same classes .* ant, bee, cat"
    for act in ("validate", "fit"):
        with pytest.raises(ValueError, match=message.format(f"the run {run}")):
            getattr(tiny_trainer(run, limit_val_batches=1.0), act)(module(), datamodule=other)
    tuned = DiffusionModule(pretrained(str(run)), EDMLoss(), average=None)
    with pytest.raises(ValueError, match=message.format("the network")):
        tiny_trainer(tmp_path / "tuned", steps=1).fit(tuned, datamodule=other)
    tiny_trainer(tmp_path / "same", steps=1).fit(tuned, datamodule=data(tmp_path, "ant", "bee", "cat"))
    assert read_class_names(tmp_path / "same") == ["ant", "bee", "cat"]


def test_unknown_names_are_not_compared_and_damaged_records_refused(tmp_path: Path) -> None:
    check_class_names(None, ["a"], of="x")
    check_class_names(["a"], None, of="x")
    with pytest.raises(ValueError, match="label 1 of the data is the class none, but of x 'b'"):
        check_class_names(["a"], ["a", "b"], of="x")
    assert read_class_names(tmp_path) is None
    for text in ("{", '{"a": 1}', "[1]", "[" * 100000):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(ValueError, match="classes.json is damaged"):
            read_class_names(tmp_path)

"""Playground without its page: parameters of guidances, samples step by step, configs that draw them again."""

from __future__ import annotations

import io
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import lightning_guide as lg
from lightning_guide.cli import main
from lightning_guide.commands.import_model import import_model
from lightning_guide.playground.command import playground as command
from lightning_guide.playground.inputs import Given, Shared, parameter_text, setting_of
from lightning_guide.playground.methods import Method, read_methods, read_value
from lightning_guide.playground.offered_samplers import (
    name_of,
    number_of_steps,
    offered_samplers,
    sampler_of,
    samplers_left_out,
)
from lightning_guide.playground.rendering import difference, render_samples
from lightning_guide.playground.session import Playground
from lightning_guide.playground.setting import Setting

STORED = Path(__file__).parent / "data" / "run_ae12ae3"
INTERVAL = {"guidance": "cfg_interval", "weight": 2}
SAMPLER = {"class_path": "Heun", "init_args": {"grid": 3}}


@pytest.fixture(scope="module")
def methods() -> dict[str, Method]:
    """All guidances of the package."""
    return read_methods()


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, methods: dict[str, Method]) -> Playground:
    """The stored run, of two snapshots, with some of the guidances."""
    folder = shutil.copytree(STORED, tmp_path_factory.mktemp("playground") / "run")
    chosen = ("cfg", "apg", "autoguidance", "seg", "sims", "cfg_interval")
    return Playground(lg.Run(folder), methods={name: methods[name] for name in chosen})


def given(opened: Playground, **changes: Any) -> Given:
    """Inputs of one side as the page has them at first."""
    values = {
        "model": "as in the config",
        "guidance": "none",
        "sampler": name_of(opened.sampler),
        "steps": 3,
        "weight": 1,
    }
    fields = changes.pop("fields", ())
    return Given(*(values | changes).values(), *fields)


def shared(**changes: Any) -> Shared:
    """Inputs of both sides."""
    return Shared(**({"prompt": "", "labels": "balanced", "seed": 0, "count": 3} | changes))


# Parameters


def test_parameters_come_from_configs_and_signatures(methods: dict[str, Method]) -> None:
    assert {"cfg", "pag", "sag", "sims", "pag_soft"} <= set(methods)
    assert methods["pag"].title == "Perturbed-attention guidance (PAG; needs attention layers)"
    assert methods["pag"].summary.startswith("PAG, D_pag + w (D - D_pag)")
    assert methods["apg"].summary.startswith("CFG, ") and "APG in clean space" in methods["apg"].summary
    found = {each.place: each for each in methods["sag"].parameters}
    assert {place: each.value for place, each in found.items()} == {"weight": 1.5, "blur": 0.125, "reach": 0.25}
    assert found["blur"].help.startswith("standard deviation of the Gaussian") and found["weight"].is_weight
    assert {each.place for each in methods["autoguidance"].parameters} >= {"guider.images", "guider.sigma_rel"}
    for name, method in methods.items():
        assert any(each.is_weight for each in method.parameters), name
        assert method.guidance({}) == method.written, name
        for each in method.parameters:  # what is typed is read as it was
            typed = read_value(parameter_text(each))
            assert typed == each.value or each.place.endswith(".images"), f"{name} {each}"


def test_each_guidance_of_a_file_has_a_title_of_its_own(methods: dict[str, Method]) -> None:
    titles = [method.title for method in methods.values()]
    assert len(set(titles)) == len(titles) and all(titles)
    assert methods["pag_noise"].title == "PAG whose attention map has noise added"
    assert "Attention map (1 - alpha) A + alpha I" in methods["pag_soft"].summary


def test_values_are_put_where_they_belong(methods: dict[str, Method]) -> None:
    apg = methods["apg"].guidance({"weight": 3, "combination.eta": 0.5, "combination.momentum": -0.5})
    arguments = apg["init_args"]
    assert arguments["weight"] == 3 and arguments["combination"]["init_args"]["eta"] == 0.5
    assert methods["pag_soft"].guidance({"weights.0": 4})["init_args"]["weights"] == [4]
    assert methods["apg"].guidance({})["init_args"]["combination"]["init_args"]["eta"] == 0  # nothing was changed
    with pytest.raises(ValueError, match="apg has no parameter 'x'; expected some of weight, combination.eta"):
        methods["apg"].guidance({"x": 1})


def test_a_guider_that_the_run_lacks_is_its_earliest_and_what_does_not_fit_says_why(opened: Playground) -> None:
    assert set(opened.methods) == {"cfg", "apg", "autoguidance", "seg", "cfg_interval"}
    values = {each.place: each.value for each in opened.methods["autoguidance"].parameters}
    assert (values["guider.images"], values["guider.sigma_rel"]) == (64, 0.05)
    note = opened.methods["autoguidance"].note
    assert note.endswith("guider.images is 64, not 1/3.5; guider.sigma_rel is 0.05, not 0.1.") and "earliest" in note
    assert not opened.methods["cfg"].note
    assert "has no snapshots" in opened.refused["sims"]


# Samples


def test_samples_come_step_by_step_and_equal_those_of_python(opened: Playground) -> None:
    guidance = opened.methods["cfg"].guidance({"weight": 2})
    states = list(opened.draw(Setting(SAMPLER, guidance, count=3, labels=1, seed=5)))
    assert [each.step for each in states] == [1, 2, 3] and [each.finished for each in states] == [False, False, True]
    assert [each.calls for each in states] == [4, 8, 10]  # two networks, Heun
    expected = opened.run.sample(lg.ClassifierFreeGuidance(2), lg.Heun(3), labels=[1] * 3, seed=5)
    assert (states[-1].x.int() - expected.int()).abs().max() <= 1
    assert not torch.equal(states[0].x, states[-1].x) and states[0].x.shape == expected.shape
    assert states[-1].seconds > states[0].seconds > 0


def test_batches_change_neither_samples_nor_cost_of_one(opened: Playground) -> None:
    *_, many = states = list(opened.draw(Setting(SAMPLER, count=18)))
    assert len(many.x) == 18 and many.calls == 5 and [each.step for each in states] == [1, 2, 4, 5, 6]
    assert len(states[0].x) == 16 and len(states[2].x) == 18
    *_, few = opened.draw(Setting(SAMPLER, count=2))
    assert (few.x.int() - many.x[:2].int()).abs().max() <= 1


@pytest.mark.parametrize("portable", [False, True])
def test_config_draws_the_same_samples_by_the_command_line(opened: Playground, tmp_path: Path, portable: bool) -> None:
    guidance = opened.methods["autoguidance"].guidance({"weight": 2})
    seed = 3 + portable
    setting = Setting(SAMPLER, guidance, images=128, average=0.05, labels="random", seed=seed, count=5)
    text = setting.yaml(opened.config, run=None if portable else str(opened.run.folder))
    file = tmp_path / "my.yaml"
    file.write_text(text)
    words = text.partition("\n")[0].partition("lightning-guide ")[2].replace("my.yaml", str(file)).split()
    assert words.count("-c") == 2 - portable
    assert yaml.safe_load(text).get("trainer", {}).get("default_root_dir") == ("runs/playground" if portable else None)
    main([*words, "--trainer.logger", "false", "--trainer.default_root_dir", str(opened.run.folder)])
    (folder,) = (opened.run.folder / "samples").glob(f"*seed{seed}")
    written = [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    *_, drawn = opened.draw(setting)
    assert len(written) == 5
    shown = drawn.x[:, 0].numpy() if drawn.x.shape[1] == 1 else drawn.x.permute(0, 2, 3, 1).numpy()
    assert np.abs(np.stack(written).astype(int) - shown).max() <= 1
    # the same settings as an evaluation
    model = yaml.safe_load(text)["model"]["init_args"]
    assert list(model["evaluations"]) == ["playground"]
    results = opened.run.test(model={"evaluations": model["evaluations"], "images": 128, "average": 0.05})
    assert results["playground"]["nfe"] == drawn.calls and results["playground"]["samples"] == 5


# Inputs


def test_inputs_become_settings(opened: Playground) -> None:
    names = list(opened.models)
    assert names[0] == "as in the config" and "64 images, average 0.1" in names
    fields = ("64", "0.1", "null")
    side = given(opened, model="64 images, average 0.1", guidance="autoguidance", weight=2.0, steps=4.0, fields=fields)
    setting = setting_of(opened, shared(labels=2, seed=1.0), side)
    assert (setting.images, setting.average, setting.labels, setting.seed, setting.count) == (64, 0.1, 2, 1, 3)
    assert setting.guidance is not None and setting.guidance["init_args"]["weight"] == 2
    assert setting.guidance["init_args"]["guider"]["init_args"]["sigma_rel"] == 0.1
    assert opened.steps == 4 and Setting(setting.sampler).evaluation["sampler"] == setting.sampler
    *_, last = opened.draw(setting)
    assert last.steps == 4
    assert setting_of(opened, shared(), given(opened)).guidance is None
    other = setting_of(opened, shared(), given(opened, sampler="DDIM", steps=7)).sampler
    assert other == {"class_path": "DDIM", "init_args": {"grid": 7}}


@pytest.mark.parametrize(
    ("common", "side", "said"),
    [
        ({"seed": None}, {}, "the seed is empty; expected a whole number"),
        ({"seed": 1.5}, {}, "the seed is 1.5; expected a whole number"),
        ({"seed": -1}, {}, "the seed is -1; expected a whole number from 0 on"),
        ({"count": 65}, {}, "the number of samples is 65; expected a whole number from 1 to 64"),
        ({}, {"steps": 0}, "the number of steps is 0; expected a whole number from 1 to 1000"),
        ({}, {"sampler": "Runge"}, "the sampler is 'Runge'; expected some of"),
        ({}, {"model": "gone"}, "the run has no model 'gone'"),
        ({}, {"guidance": "cfg", "weight": None}, "the weight is empty; expected a number"),
        (
            {},
            {"guidance": "cfg_interval", "weight": 2, "fields": ("[", "2.9")},
            r"weight.low: '\[' is no value of YAML",
        ),
        (
            {},
            {"guidance": "cfg_interval", "weight": 2, "fields": ("{a: 1}", "2.9")},
            "weight.low is '{a: 1}'; expected",
        ),
        ({}, {"guidance": "cfg_interval", "weight": 2, "fields": ("5", "2.9")}, "needs 0 <= low < high in sigma"),
        ({}, {"guidance": "cfg_interval", "weight": 2, "fields": ("much", "2.9")}, "low"),
        ({"labels": 77}, {}, "label 77 is out of range"),
        ({}, {"guidance": "autoguidance", "weight": 2, "fields": ("9999", "0.05", "null")}, "9999"),
    ],
)
def test_wrong_inputs_are_one_sentence(
    opened: Playground, common: dict[str, Any], side: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        list(opened.draw(setting_of(opened, shared(**common), given(opened, **side))))
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)


# Samplers

TDS = {"class_path": "TDS", "init_args": {"particles": 2, "energy": {"class_path": "EdgeEnergy"}, "grid": 9}}


def test_samplers_are_offered_or_say_why(opened: Playground) -> None:
    heun = {"class_path": "Heun", "init_args": {"grid": {"class_path": "KarrasGrid", "init_args": {"num_steps": 4}}}}
    restart = {"class_path": "Restart", "init_args": {"sampler": heun, "repeats": 2}}
    offered = offered_samplers(heun)
    assert next(iter(offered)) == "Heun" and {"DDIM", "UniPC", "Restart", "TimeTravel"} < set(offered)
    assert offered["TimeTravel"] == "TimeTravel around Heun"
    assert {*samplers_left_out(heun)} == {"BestOfN", "FeynmanKac", "TDS"}
    assert {*samplers_left_out(TDS)} == {"BestOfN", "FeynmanKac"}
    # steps are those of the sampler inside
    five = {"class_path": "Heun", "init_args": {"grid": {"class_path": "KarrasGrid", "init_args": {"num_steps": 5}}}}
    assert sampler_of("Restart", 5, heun) == {"class_path": "Restart", "init_args": {"sampler": five}}
    assert sampler_of("Restart", 5, restart) == {"class_path": "Restart", "init_args": {"sampler": five, "repeats": 2}}
    assert number_of_steps(restart) == 4 and number_of_steps(TDS) == 9
    assert sampler_of("TDS", 5, TDS)["init_args"] == TDS["init_args"] | {"grid": 5}
    assert sampler_of("TimeTravel", 5, TDS)["init_args"]["sampler"] == {"class_path": "DDIM", "init_args": {"grid": 5}}
    *_, last = opened.draw(setting_of(opened, shared(), given(opened, sampler="TimeTravel")))
    assert last.calls == 4 * 5 and last.finished  # four times Heun's 2 + 2 + 1


def test_particles_are_drawn_without_previews(opened: Playground) -> None:
    energy = {
        "class_path": "TorchFunction",
        "init_args": {"function": "torch.nanmean", "arguments": {"dim": [1, 2, 3]}},
    }
    sampler = {"class_path": "BestOfN", "init_args": {"particles": 2, "sampler": SAMPLER, "energy": energy}}
    (drawn,) = opened.draw(Setting(sampler, count=3))
    assert drawn.finished and drawn.calls == 2 * 5 and len(drawn.x) == 3


# Images


def test_difference_is_scaled_and_placed_like_the_samples() -> None:
    x = torch.zeros(3, 1, 4, 5, dtype=torch.uint8)
    y = x.clone()
    y[1, 0, 2, 3], y[2, 0, 0, 0] = 10, 5
    grid = np.asarray(Image.open(io.BytesIO(difference(x, y))))  # enlarged 16 times, 2 pixels between the images
    assert grid.shape == (2 * 64 + 2, 2 * 80 + 2)
    assert (grid[32:48, 82 + 48 : 82 + 64] == 255).all() and (grid[66 : 66 + 16, :16] == 128).all()
    assert (grid[:64, :80] == 0).all() and (grid[64:66] == 255).all() and (grid[66:, 82:] == 255).all()
    assert not np.asarray(Image.open(io.BytesIO(difference(x, x))))[:64, :80].any()
    with pytest.raises(ValueError, match="have no difference"):
        difference(x, y[:2])
    points = np.asarray(Image.open(io.BytesIO(render_samples(torch.randn(9, 2)))).convert("RGB"))
    assert len(np.unique(points.reshape(-1, 3), axis=0)) > 2
    latents = Image.open(io.BytesIO(render_samples(torch.randn(2, 4, 8, 8))))
    assert latents.size == (2 * 64 + 2, 64)


# The command


def test_command_refuses_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="queue is 0; expected a whole number from 1 on"):
        command(str(STORED), queue=0)
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("page", "server"):
        monkeypatch.delitem(sys.modules, f"lightning_guide.playground.{name}", raising=False)
    with pytest.raises(ValueError, match=r"needs the package gradio, .*`pip install 'lightning-guide\[playground\]'`"):
        command(str(STORED), browser=False)


@pytest.mark.parametrize(("host", "reached"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_other_machines_reach_the_page_only_when_told(
    host: str, reached: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []

    def serve(page: Any, place: socket.socket) -> None:
        place.listen()
        port = place.getsockname()[1]
        for address in ("127.0.0.1", "127.0.0.2"):  # the second stands for an address that others see
            with socket.socket() as caller:
                found.append(caller.connect_ex((address, port)) == 0)

    monkeypatch.setattr("lightning_guide.playground.command.Playground", lambda *_, **__: None)
    stubs = {"page": {"build_page": lambda *_, **__: None}, "server": {"serve": serve}}  # of what imports gradio
    for name, content in stubs.items():
        monkeypatch.setitem(sys.modules, f"lightning_guide.playground.{name}", SimpleNamespace(**content))
    chosen = {} if host == "127.0.0.1" else {"host": host}
    command(str(STORED), browser=False, port=0, **chosen)
    assert found == [True, reached] and "http://127.0.0.1:" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*samples are not finite or out of bounds")  # of a random network
def test_typed_prompts_go_through_the_config(
    tiny_pipeline: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_GUIDE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    import_model(kind="diffusers", source=str(tiny_pipeline("sd")), run=str(folder))
    typed = Playground(lg.Run(folder), methods={}, portable=True)
    assert typed.typed
    drawn = {}
    for prompt in ("a red boat", "a black cat: asleep, 'it' says"):
        setting = setting_of(typed, shared(prompt=f"  {prompt} ", count=2, seed=4), given(typed, steps=2))
        *_, drawn[prompt] = typed.draw(setting)
        assert setting.prompt == prompt
    assert not torch.equal(*(each.x for each in drawn.values()))
    with pytest.raises(ValueError, match="the prompt is empty; expected a text"):
        setting_of(typed, shared(prompt=" "), given(typed))
    file = tmp_path / "my.yaml"
    file.write_text(typed.yaml(setting))
    main(["predict", "-c", str(file), "--trainer.logger", "false", "--trainer.default_root_dir", str(folder)])
    (table,) = (folder / "samples").rglob("prompts.csv")
    assert "a black cat: asleep, 'it' says" in table.read_text()
    written = np.stack([np.asarray(Image.open(path)) for path in sorted(table.parent.rglob("*.png"))])
    assert np.abs(written.astype(int) - drawn[prompt].x.permute(0, 2, 3, 1).numpy()).max() <= 1

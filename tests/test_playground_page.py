"""The page of the playground in a real browser: load, change a guidance, sample, compare, copy the config."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_guide as lg
from lightning_guide.playground.drawing import Drawn
from lightning_guide.playground.methods import read_methods
from lightning_guide.playground.session import Playground
from lightning_guide.playground.setting import Setting
from tests.browsers import chromium, opened_page

pytest.importorskip("gradio")
ROOT = Path(__file__).parent.parent
STORED = Path(__file__).parent / "data" / "run_ae12ae3"
CHOSEN = ("cfg", "apg", "autoguidance", "cfg_interval", "seg")


@contextmanager
def served(playground: Playground, *, queue: int) -> Iterator[str]:
    """Serve a page."""
    import uvicorn

    from lightning_guide.playground.page import build_page
    from lightning_guide.playground.server import application

    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            application(build_page(playground, queue=queue)), log_level="error", timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Playground:
    """The stored run with some of the guidances."""
    folder = shutil.copytree(STORED, tmp_path_factory.mktemp("playground") / "run")
    methods = {name: method for name, method in read_methods().items() if name in CHOSEN}
    return Playground(lg.Run(folder), name="<b>mine", methods=methods)


@pytest.fixture(scope="module")
def address(opened: Playground) -> Iterator[str]:
    """A served page of the stored run."""
    with served(opened, queue=4) as place:
        yield place


def wait_for(page: Any, said: str) -> None:
    """Wait until the status begins with `said`."""
    page.wait_for_function(f"document.querySelector('#status textarea')?.value.startsWith({said!r})")


def choose(page: Any, label: str, option: str) -> None:
    """Choose an entry of a dropdown."""
    page.get_by_label(label).click()
    page.get_by_role("option", name=option).first.click()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sample_compare_and_copy(address: str) -> None:
    with chromium() as browser, opened_page(browser, address, height=1400) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.get_by_role("heading", name="<b>mine").wait_for()
        # one side
        page.locator("#draw").click()
        wait_for(page, "Finished.")
        left = page.locator("#samples-left img")
        assert left.get_attribute("alt") == "samples, left"
        assert page.locator("#cost-left").inner_text().startswith("7 network calls a sample, 28 in all; ")
        first = left.get_attribute("src")
        assert page.locator("#samples-right img").count() == page.locator("#both img").count() == 0
        # a guidance with its parameters on the other one
        choose(page, "Guidance (right)", "apg: ")
        eta = page.get_by_label("combination.eta (right)")
        eta.wait_for()
        assert eta.input_value() == "0"
        eta.fill("0.5")
        weight = page.get_by_label("number input for Weight (right)")
        weight.fill("3")
        weight.press("Tab")
        page.locator("#compare").click()
        page.locator("#both .stack img").nth(1).wait_for()
        wait_for(page, "Finished.")
        assert left.get_attribute("src") == first, "the same seeds give the same samples"
        assert page.locator("#cost-right").inner_text().startswith("14 network calls a sample, 56 in all; ")
        page.locator("#both input[type=range]").press("Home")
        assert page.locator("#both .stack").get_attribute("style") == "--cut: 0%;"
        page.get_by_label("difference").check()
        page.get_by_alt_text("absolute difference").wait_for()
        # the config
        page.locator("#config-right").get_by_label("Copy").click()
        copied = yaml.safe_load(page.evaluate("navigator.clipboard.readText()"))
        guidance = copied["model"]["init_args"]["evaluations"]["playground"]["guidance"]
        assert guidance["init_args"]["weight"] == 3
        assert guidance["init_args"]["combination"]["init_args"]["eta"] == 0.5
        # what is wrong is said, and nothing else changes
        eta.fill("[")
        page.locator("#compare").click()
        wait_for(page, "combination.eta: '[' is no value of YAML")
        eta.fill("many")
        page.locator("#compare").click()
        page.wait_for_function("document.querySelector('#status textarea').value.includes('many')")
        assert "Traceback" not in page.content()
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_full_queue_refuses_and_stop_ends(opened: Playground, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    draw = opened.draw

    def slowly(setting: Setting) -> Iterator[Drawn]:
        first, *rest = draw(setting)
        yield first
        while not go_on.wait(0.05):  # stopped between two states
            yield first
        yield from rest

    monkeypatch.setattr(opened, "draw", slowly)
    with served(opened, queue=1) as address, chromium() as browser:
        with (
            opened_page(browser, address) as drawing,
            opened_page(browser, address) as waiting,
            opened_page(browser, address) as refused,
        ):
            drawing.locator("#draw").click()
            wait_for(drawing, "left: step 1 of ")
            waiting.locator("#draw").click()
            waiting.wait_for_timeout(500)  # to reach the server
            refused.locator("#stop").click()  # nothing
            wait_for(refused, "Stopped.")
            refused.locator("#draw").click()
            wait_for(refused, "Nothing was drawn: the queue is full (--queue 1); try again later.")
            assert refused.locator("#samples-left img").count() == 0
            # a guidance can be chosen while others draw
            choose(refused, "Guidance (right)", "apg: ")
            refused.get_by_label("combination.eta (right)").wait_for()
            drawing.locator("#stop").click()
            wait_for(drawing, "Stopped.")
            wait_for(waiting, "left: step 1 of ")  # its turn
            go_on.set()
            wait_for(waiting, "Finished.")
            assert drawing.input_value("#status textarea") == "Stopped."
            drawing.locator("#draw").click()  # and it draws again
            wait_for(drawing, "Finished.")


def test_answers_forbid_other_addresses(address: str) -> None:
    from urllib.request import urlopen

    with urlopen(address) as answer:
        policy, text = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "default-src 'self'" in policy and "http" not in policy
    outside = set(re.findall(r"(?:src|href)=\"(https?://[^\"]+)", text)) - {address}
    assert not {each for each in outside if not each.startswith(address)}


@pytest.mark.slow
def test_command_serves_a_published_model_and_ends_by_ctrl_c(tmp_path: Path) -> None:
    from tests.tiny_pipelines import write_pipeline

    write_pipeline("sd", tmp_path / "sd")
    words = [sys.executable, "-m", "lightning_guide.cli", "playground", str(tmp_path / "sd")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LIGHTNING_GUIDE_CACHE": str(tmp_path / "cache")}
    words += ["--port", "0", "--browser", "false"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, env=environment, cwd=tmp_path, **pipes) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not (lines and "Ctrl-C" in lines[-1]):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        address = re.findall(r"http://127\.0\.0\.1:\d+", lines[-1])[0]
        with chromium() as browser, opened_page(browser, address) as page:
            page.get_by_label("Prompt").fill("a harbor at dawn")
            steps = page.get_by_label("number input for Steps (left)")
            steps.fill("2")
            steps.press("Tab")
            page.locator("#draw").click()
            wait_for(page, "Finished.")
            page.locator("#samples-left img").wait_for()
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and rest.strip().endswith("the playground has ended"), (lines, rest)
    assert "Traceback" not in "".join(lines) + rest

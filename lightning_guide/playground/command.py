"""The command playground: a local page that draws samples of a run or of a published model."""

from __future__ import annotations

import io
import os
import signal
import socket
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from lightning_guide.commands.import_model import import_model
from lightning_guide.playground.session import Playground
from lightning_guide.pretrained.source import is_published, split_source
from lightning_guide.runs.run import Run
from lightning_guide.runs.sampling import find_device
from lightning_guide.utils.scalars import check_whole

__all__ = ["playground"]


def playground(
    run: str,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "cpu",
    queue: int = 8,
    browser: bool = True,
) -> None:
    """Open a local page that draws samples of a run, or of a published model, under two settings side by side.

    The files of the run are only read. Ctrl-C ends the page.

    Args:
        run: folder of a run, or a published model: the folder of a pipeline of diffusers, or KIND:PLACE.
        host: address on which the page is served; 0.0.0.0 serves it to other machines, without a password.
        port: its port; 0: a free one.
        device: where samples are drawn, such as cuda.
        queue: requests that may wait; more are refused.
        browser: whether to open the page in a browser.

    Raises:
        ValueError: if gradio is not installed, the run has no model, or the address is in use.
    """
    check_whole(queue, "queue", least=1)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        from lightning_guide.playground.page import build_page
        from lightning_guide.playground.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "uvicorn"):
            raise
        raise ValueError(
            "the playground needs the package gradio, which is not installed; expected "
            "`pip install 'lightning-guide[playground]'`"
        ) from None
    where = find_device(device)
    with _bound(host, port) as place, _opened(run) as (opened, name, portable):
        page = build_page(Playground(opened, name=name, device=where, portable=portable), queue=queue)
        shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
        address = f"http://{shown}:{place.getsockname()[1]}"
        print(f"playground of {name}: {address} (Ctrl-C ends it)", flush=True)
        if browser:
            webbrowser.open(address)
        previous = signal.getsignal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            serve(page, place)
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGINT, previous)
    print("the playground has ended")


@contextmanager
def _bound(host: str, port: int) -> Iterator[socket.socket]:
    """Bind the address, before a model is read.

    Raises:
        ValueError: if it is not free, or not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ValueError(
                f"the address {host}, port {port}, cannot be used: {reason}; expected another --port"
            ) from None
        yield place


@contextmanager
def _opened(source: str) -> Iterator[tuple[Run, str, bool]]:
    """Open a run, or a published model as a run in a temporary folder: run, name, and whether it is temporary."""
    folder = Path(source).expanduser()
    if not is_published(source) and not (folder / "model_index.json").is_file():
        yield Run(source), str(source), False
        return
    kind, place = split_source(source) if is_published(source) else ("diffusers", str(folder))
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "run"
        arguments: dict[str, Any] = {"kind": kind, "source": place, "run": str(target)}
        said = io.StringIO()
        with redirect_stdout(said):
            import_model(**arguments)
        print("".join(line for line in said.getvalue().splitlines(keepends=True) if temporary not in line), end="")
        yield Run(target), place, True

"""Shards by URL: the same data as local files, fetched once, errors that name the URL."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Shards


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Six images in three classes."""
    path = tmp_path / "there" / "train-0.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for i in range(6):
            image = io.BytesIO()
            Image.fromarray(np.full((4, 4, 3), 40 * i, dtype=np.uint8)).save(image, "PNG")
            for suffix, content in (("png", image.getvalue()), ("cls", str(i % 3).encode())):
                member = tarfile.TarInfo(f"{i}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


class Quiet(SimpleHTTPRequestHandler):
    """Record requests without logging them."""

    requests: list[str] = []

    def log_message(self, *arguments: Any) -> None:
        Quiet.requests.append(self.path)


@pytest.fixture
def site(shard: Path) -> Iterator[str]:
    """The folder of the shard as a web site."""
    Quiet.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shard.parent)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def batch(data: Shards) -> tuple[torch.Tensor, torch.Tensor]:
    """The first batch of the training stream."""
    x, labels = next(iter(data.train_dataloader()))
    return x, labels


@pytest.mark.parametrize("kind", ["http", "pipe", "file"])
def test_url_gives_same_data_as_file(shard: Path, site: str, tmp_path: Path, kind: str) -> None:
    url = {"http": f"{site}/train-0.tar", "pipe": f"pipe:cat {shard}", "file": f"file:{shard}"}[kind]
    options: dict[str, Any] = {"num_classes": 3, "batch_size": 5}
    local = Shards(str(shard), str(shard), **options)
    for _ in range(2):
        remote = Shards([url], str(shard), downloads=str(tmp_path / "copies"), **options)  # together with a local shard
        assert remote.data_shape == (3, 4, 4)
        for mine, theirs in zip(batch(remote), batch(local), strict=True):
            assert torch.equal(mine, theirs)
        (copy,) = (tmp_path / "copies").iterdir()
        assert copy.name.endswith("-train-0.tar") and copy.read_bytes() == shard.read_bytes()
    assert len(Quiet.requests) == (kind == "http")  # the second time the copy exists


def test_shards_are_fetched_at_first_use(site: str, tmp_path: Path) -> None:
    pattern = site + "/train-{0..1}.tar"
    data = Shards(pattern, site + "/other.tar", num_classes=3, size=4, downloads=str(tmp_path / "copies"))
    assert Quiet.requests == [] and not (tmp_path / "copies").exists()
    with pytest.raises(ValueError, match=r"the shard 'http://.*/train-1.tar' cannot be fetched to .*copies"):
        data.training()
    assert [path.name[13:] for path in (tmp_path / "copies").iterdir()] == [
        "train-0.tar"
    ]  # no partial file of the other


def test_interrupted_download_leaves_no_shard(shard: Path, tmp_path: Path) -> None:
    url = f"pipe:head -c 700 {shard}; exit 3"
    with pytest.raises(ValueError, match="cannot be fetched"):
        Shards(url, str(shard), num_classes=3, downloads=str(tmp_path / "copies"))
    assert not list((tmp_path / "copies").iterdir())
    with pytest.raises(ValueError, match="the shard 'pipe:.*' is a URL; expected local tar files, or `downloads`"):
        Shards(url, str(shard), num_classes=3)

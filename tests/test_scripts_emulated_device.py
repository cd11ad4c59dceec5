"""The emulated device: every kind of wait and of mixed devices, counts of kernels, the same numbers as on the CPU."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from scripts.lib.emulated_device import DEVICE, EmulatedDevice, EmulatedTensor

NUMBERS = [1.0, -2.0, 3.0]


@pytest.fixture
def device() -> Iterator[EmulatedDevice]:
    with EmulatedDevice() as found:
        yield found


def there() -> Tensor:
    """A vector on the device, which it took one wait to copy."""
    return torch.tensor(NUMBERS).to(DEVICE)


def eye() -> Tensor:
    return torch.eye(3, device=DEVICE)


# What the host waits for

READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x[0].item(),
    "float": lambda x: float(x[0]),
    "int": lambda x: int(x[0]),
    "bool": lambda x: bool(x[0] > 0),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "tolist": lambda x: x.tolist(),
    "tolist of one": lambda x: x[0].tolist(),
    "in": lambda x: 3.0 in x,
    "max of Python": lambda x: max(x[0], x[1]),
    "range": lambda x: range(x.long()[0]),
    "slice": lambda x: x[: x.long()[0]],
    "format": lambda x: f"{x[0]:.3f}",
    "cpu": lambda x: x.cpu(),
    "numpy by force": lambda x: x.numpy(force=True),
    "copy_ to the host": lambda x: torch.ones(3).copy_(x),
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "pickle": lambda x: torch.save(x, io.BytesIO()),
    "clipping that refuses NaN": lambda x: nn.utils.clip_grad_norm_([_with_gradient(x)], 1.0, error_if_nonfinite=True),
}
SHAPES: dict[str, Callable[[Tensor], Any]] = {
    "nonzero": lambda x: x.nonzero(),
    "argwhere": lambda x: torch.argwhere(x),
    "where": lambda x: torch.where(x > 0),
    "mask read": lambda x: x[x > 0],
    "mask written": lambda x: x.__setitem__(x > 0, x[:2].clone()),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "unique rows": lambda x: x[None].unique(dim=0),
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.int64, device=DEVICE)),
    "bincount": lambda x: x.long().abs().bincount(),
    "one_hot without classes": lambda x: F.one_hot(x.long().abs()),
}
COPIES: dict[str, Callable[[Tensor], Any]] = {
    "unpinned": lambda x: torch.ones(3).to(DEVICE),
    "unpinned, not blocking": lambda x: torch.ones(3).to(DEVICE, non_blocking=True),
    "pinned, blocking": lambda x: torch.ones(3).pin_memory().to(DEVICE),
    "copy_ from the host": lambda x: x.copy_(torch.ones(3)),
    "torch.tensor": lambda x: torch.tensor(NUMBERS, device=DEVICE),
    "new_tensor": lambda x: x.new_tensor(3.0),
    "as_tensor": lambda x: torch.as_tensor(NUMBERS, device=DEVICE),
    "index on the host": lambda x: x[torch.tensor([0, 1])],
    "list as index": lambda x: x[[0, 1]],
    "item set to a tensor of the host": lambda x: x.__setitem__(0, torch.tensor(5.0)),
}
CHECKS: dict[str, Callable[[Tensor], Any]] = {
    "inverse": lambda x: torch.linalg.inv(eye()),
    "Cholesky": lambda x: torch.linalg.cholesky(eye()),
    "eigh": lambda x: torch.linalg.eigh(eye()),
    "SVD": lambda x: torch.linalg.svd(eye()),
}
WAITS = READS | SHAPES | COPIES | CHECKS

NO_WAITS: dict[str, Callable[[Tensor], Any]] = {
    "arithmetic": lambda x: (2 * x + 1).square().sum(),
    "number of the host": lambda x: x * torch.tensor(2.0),
    "full": lambda x: torch.full((), 3.0, device=DEVICE),
    "pinned": lambda x: torch.ones(3).pin_memory().to(DEVICE, non_blocking=True),
    "made pinned": lambda x: x.copy_(torch.ones(3, pin_memory=True), non_blocking=True),
    "to the host, not blocking": lambda x: x.to("cpu", non_blocking=True),
    "to pinned memory of the host": lambda x: torch.ones(3).pin_memory().copy_(x, non_blocking=True),
    "one number where a mask is": lambda x: x.__setitem__(x > 0, 1.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 1.0),
    "index on the device": lambda x: x[torch.zeros(2, dtype=torch.int64, device=DEVICE)],
    "repeat_interleave, size given": lambda x: x.repeat_interleave(eye()[0].long(), output_size=1),
    "repeat_interleave by a number": lambda x: x.repeat_interleave(2),
    "one_hot": lambda x: F.one_hot(x.long().abs(), 4),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "topk": lambda x: x.topk(2),
    "loop over views": lambda x: [part * 2 for part in x],
    "dtype": lambda x: x.double(),
    "shape": lambda x: (len(x), x.shape, x.is_floating_point()),
    "assertion on the device": lambda x: torch._assert_async((x < 9).all(), "large"),
    "clipping": lambda x: nn.utils.clip_grad_norm_([_with_gradient(x)], 1.0),
    "own generator": lambda x: torch.randn(3, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0)),
    "deepcopy": lambda x: copy.deepcopy(x),
}


def _with_gradient(x: Tensor) -> nn.Parameter:
    parameter = nn.Parameter(x)
    parameter.grad = x.clone()
    return parameter


@pytest.mark.parametrize("name", WAITS)
def test_host_waits_once(device: EmulatedDevice, name: str) -> None:
    x = there()
    device.forget()
    WAITS[name](x)
    assert len(device.waits) == 1, device.waits
    assert device.waits[0].place.startswith("tests/test_scripts_emulated_device.py:")


def test_host_waits_often_to_print(device: EmulatedDevice) -> None:
    x = there()
    device.forget()
    assert repr(x) == "EmulatedTensor([ 1., -2.,  3.], device='emu:0')"
    assert len(device.waits) > 3


@pytest.mark.parametrize("name", NO_WAITS)
def test_host_does_not_wait(device: EmulatedDevice, name: str) -> None:
    x = there()
    device.forget()
    NO_WAITS[name](x)
    assert not device.waits


# What has its parts on two devices

MIXED: dict[str, Callable[[Tensor], Any]] = {
    "add": lambda x: x + torch.ones(3),
    "add_ to the host": lambda x: torch.ones(3).add_(x),
    "number of the device": lambda x: torch.ones(3) * x[0],
    "two numbers": lambda x: torch.addcmul(x, torch.tensor(2.0), torch.tensor(2.0)),
    "matmul": lambda x: x @ torch.ones(3),
    "cat": lambda x: torch.cat([x, torch.ones(3)]),
    "stack of numbers": lambda x: torch.stack([x[0], torch.tensor(1.0)]),
    "where": lambda x: torch.where(torch.ones(3).bool(), x, 0.0),
    "linear": lambda x: nn.Linear(3, 2)(x),
    "embedding": lambda x: nn.Embedding(4, 2)(x.long().abs()),
    "index_select": lambda x: x.index_select(0, torch.tensor([0])),
    "index on the device": lambda x: torch.ones(4)[x.long().abs()],
    "written through an index": lambda x: x.__setitem__([0, 1], torch.ones(2)),
    "foreach": lambda x: torch._foreach_add([x], [torch.ones(3)]),
    "generator": lambda x: torch.randn(3, device=DEVICE, generator=torch.Generator().manual_seed(0)),
    "generator of the device": lambda x: torch.randn(3, generator=torch.Generator(DEVICE)),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_devices_are_refused(device: EmulatedDevice, name: str) -> None:
    x = there()
    with pytest.raises(RuntimeError, match="expected .* on '(emu:0|cpu)', but found"):
        MIXED[name](x)


@pytest.mark.parametrize("convert", [np.asarray, lambda x: x.numpy()])
def test_numpy_takes_no_tensor_of_the_device(device: EmulatedDevice, convert: Callable[[Tensor], Any]) -> None:
    with pytest.raises(TypeError, match="can't convert emu:0 device type tensor to numpy"):
        convert(there())


# Numbers and kernels


def test_kernels_are_counted_without_views_and_memory(device: EmulatedDevice) -> None:
    x = torch.ones(2, 3, device=DEVICE)
    device.forget()
    y = torch.empty_like(x.reshape(3, 2).T[None].expand(4, 2, 3)[0].detach().unbind()[0])
    assert (device.kernels, tuple(y.shape)) == (0, (3,))
    x.add_(1).mul(2).sum()
    assert device.kernels == 3


def test_training_gives_the_numbers_of_the_cpu(device: EmulatedDevice) -> None:
    """Forward, backward, views changed in place, an optimizer."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 2))
    x, results = torch.randn(2, 3, 6, 6), []
    for each in (copy.deepcopy(network), copy.deepcopy(network).to(DEVICE)):
        optimizer = torch.optim.Adam(each.parameters())
        place = next(each.parameters()).device
        given = x.clone().to(place)
        given[:, 0].mul_(2)
        for _ in range(2):
            optimizer.zero_grad()
            each(given).square().mean().backward()
            optimizer.step()
        assert {value.device for value in each.state_dict().values()} == {place}
        results.append([value.cpu() for value in each.state_dict().values()])
    torch.testing.assert_close(*results)
    assert not torch.equal(results[0][0], network.state_dict()["0.weight"])


def test_loader_pins_the_memory_of_batches(device: EmulatedDevice) -> None:
    loader = DataLoader(TensorDataset(torch.arange(6.0)), batch_size=3, pin_memory=True)
    for (x,) in loader:
        x.to(DEVICE, non_blocking=True)
    assert not device.waits


def test_inference_mode_counts_the_same(device: EmulatedDevice) -> None:
    layer, x = nn.Linear(3, 2).to(DEVICE), there()
    counts = []
    for mode in (torch.no_grad, torch.inference_mode):
        device.forget()
        with mode():
            F.silu(layer(x[None])).allclose(x[:2])
        counts.append((device.kernels, len(device.waits)))
    assert counts[0] == counts[1] and counts[0][1] == 1


def test_there_is_no_device_outside_of_the_context() -> None:
    assert not torch.accelerator.is_available()
    with EmulatedDevice() as outer:
        with EmulatedDevice():
            pass
        assert torch.accelerator.is_available() and torch.Generator(DEVICE).device == DEVICE
        x = there()
    assert not torch.accelerator.is_available() and torch.Generator is torch._C.Generator
    assert isinstance(x + 1, EmulatedTensor) and len(outer.waits) == 1

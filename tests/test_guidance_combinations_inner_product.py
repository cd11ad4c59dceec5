"""Inner products and norms of samples."""

from __future__ import annotations

import pytest
import torch

from lightning_guide.guidance.combinations.base import TINY, dot, row_norm


@pytest.mark.parametrize("shape", [(2,), (3, 4, 5)])
def test_over_everything_but_the_batch(shape: tuple[int, ...]) -> None:
    a, b = torch.randn(2, 6, *shape, dtype=torch.float64)
    expected = [
        sum(float(p) * float(q) for p, q in zip(u.flatten(), v.flatten(), strict=True))
        for u, v in zip(a, b, strict=True)
    ]
    assert dot(a, b).shape == row_norm(a).shape == (6, *[1] * len(shape))
    torch.testing.assert_close(dot(a, b).flatten(), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(row_norm(a) ** 2, dot(a, a))


@pytest.mark.parametrize(("dtype", "value"), [(torch.float16, 6e4), (torch.float32, 1e30), (torch.float32, 1e-40)])
def test_no_overflow_and_no_underflow(dtype: torch.dtype, value: float) -> None:
    a = torch.full((2, 10_000), value, dtype=dtype)
    torch.testing.assert_close(row_norm(a), 100 * a[:, :1].double())
    torch.testing.assert_close(dot(a, a), 1e4 * a[:, :1].double() ** 2)
    assert float(row_norm(a)[0]) > TINY and TINY**2 > 0

"""Seeds: a draw depends only on (seed, sample index, purpose)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_guide.seeds import SampleSeeds, mix

INDICES = [5, 0, 17, 3, 11, 2**31, 8]


def test_mix_never_changes() -> None:
    """Frozen values: another hash would silently change all published samples and resumed runs."""
    assert mix() == 2847183694713211083
    assert mix(0) == 2631537505891389924
    assert mix(7, "noise", 123456789) == 9070185567575083741


def test_mix_hashes_to_63_bits() -> None:
    values = {mix(i, name, j) for i in range(20) for name in ("a", "b") for j in range(20)}
    assert len(values) == 800 and all(0 <= value < 2**63 for value in values)
    assert any(value >= 2**62 for value in values)
    assert mix(1, "2") != mix("1", 2) and mix(1, 23) != mix(12, 3) and mix("ab") != mix("a", "b")
    assert mix(np.int64(3), torch.tensor(4)) == mix(3, 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        mix(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1.5, 2.0, True, None])
def test_a_seed_is_a_whole_number_from_0_on(seed: int) -> None:
    with pytest.raises(ValueError, match="the seed is .*; expected a whole number from 0 on"):
        SampleSeeds(seed, [0])


def draw(seeds: SampleSeeds) -> list[torch.Tensor]:
    """Draw twice from each distribution; 40 numbers take torch's vectorized path, 3 its scalar one."""
    rounds = []
    for _ in range(2):
        rounds += [seeds.normal("big", (4, 10)), seeds.normal("small", (3,)), seeds.uniform("u", (5, 5))]
        rounds += [seeds.integers("k", 1000)]
    return rounds


@pytest.mark.parametrize("split", [[1] * 7, [2, 5], [6, 1], [3, 1, 3]], ids=str)
def test_draws_do_not_depend_on_batch_and_order(split: list[int]) -> None:
    whole = draw(SampleSeeds(1, torch.tensor(INDICES)))
    order = torch.randperm(7)
    parts = [draw(SampleSeeds(1, [INDICES[i] for i in chunk])) for chunk in order.split(split)]
    for together, *separate in zip(whole, *parts, strict=True):
        assert torch.equal(together[order], torch.cat(separate))


def test_draws_differ_between_seeds_samples_purposes_and_calls() -> None:
    seeds = SampleSeeds(0, range(50))
    first, second = seeds.normal("a", (8,)), seeds.normal("a", (8,))
    rows = torch.cat([first, second, seeds.normal("b", (8,)), SampleSeeds(1, range(50)).normal("a", (8,))])
    assert len(rows.unique(dim=0)) == 200


def test_purposes_are_independent() -> None:
    alone, mixed = SampleSeeds(3, INDICES), SampleSeeds(3, INDICES)
    expected = [alone.normal("churn", (9,)) for _ in range(2)]
    first = mixed.normal("churn", (9,))
    mixed.integers("labels", 10), mixed.normal("initial", (99,))
    assert torch.equal(first, expected[0]) and torch.equal(mixed.normal("churn", (9,)), expected[1])


def test_global_generator_is_not_used() -> None:
    torch.manual_seed(1)
    first, state = draw(SampleSeeds(0, INDICES)), torch.get_rng_state()
    torch.manual_seed(2)
    assert all(map(torch.equal, first, draw(SampleSeeds(0, INDICES))))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_no_two_samples_share_a_stream() -> None:
    """Torch keeps 32 bits of a CPU seed, so that random seeds could coincide."""
    generators = SampleSeeds(5, range(10000)).generators("initial")
    seeds = [generator.initial_seed() for generator in generators]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds)


def test_distributions() -> None:
    seeds = SampleSeeds(0, range(4000))
    z, u = seeds.normal("z", (20,)), seeds.uniform("u", (20,))
    assert z.dtype == u.dtype == torch.float32 and z.shape == u.shape == (4000, 20)
    assert abs(float(z.mean())) < 0.015 and abs(float(z.std()) - 1) < 0.01
    assert float(u.min()) >= 0 and float(u.max()) < 1 and abs(float(u.mean()) - 0.5) < 0.005
    # across samples, too: the first numbers of neighboring streams are independent
    assert abs(float(torch.corrcoef(torch.stack([z[:-1, 0], z[1:, 0]]))[0, 1])) < 0.05
    assert abs(float(z[:, 0].mean())) < 0.05 and abs(float(z[:, 0].std()) - 1) < 0.04


def test_integers() -> None:
    k = SampleSeeds(0, range(3000)).integers("k", 10)
    assert k.dtype == torch.int64 and k.shape == (3000,)
    counts = torch.bincount(k, minlength=10)
    assert len(counts) == 10 and float(((counts - 300.0) ** 2 / 300).sum()) < 30  # chi squared, 9 degrees of freedom


def test_draws_are_float32_for_any_default_dtype() -> None:
    expected = SampleSeeds(0, range(3)).normal("noise", (4,))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        seeds = SampleSeeds(0, range(3))
        assert torch.equal(seeds.normal("noise", (4,)), expected)
        assert seeds.uniform("u", (4,)).dtype == torch.float32
    finally:
        torch.set_default_dtype(before)

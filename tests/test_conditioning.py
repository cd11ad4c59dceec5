"""Embeddings as conditions: padding, networks, guidance, prompts, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datamodules import DigitCaptions, NoData
from datamodules.digit_captions import NAMES, embed_spelling
from datamodules.prompts import PromptFile
from lightning_guide.conditioning import (
    concatenate_conditions,
    drop_condition,
    fill_empty,
    mask_tokens,
    pad_tokens,
    token_mask,
)
from lightning_guide.data import SampleBatch
from lightning_guide.denoiser import Denoiser
from lightning_guide.evaluation import AccuracyByClass
from lightning_guide.evaluation.sampling_loop import SamplingLoop, build_condition
from lightning_guide.guidance import ClassifierFreeGuidance, ConditionAnnealedGuidance, Guided
from lightning_guide.guidance.negatives import (
    AnnealedCondition,
    GaussianCondition,
    IndependentConditionGuidance,
    RandomCondition,
)
from lightning_guide.modules.diffusion import DiffusionModule
from lightning_guide.networks import DiffusionTransformer, EDM2UNet
from lightning_guide.preconditioning import Preconditioned
from lightning_guide.seeds import SampleSeeds
from lightning_guide.training.losses import EDMLoss
from tests.runs import evaluation, tiny_trainer
from tests.small_networks import NETWORKS, SIGMA, noisy_images, trajectory

WORDS = embed_spelling(["one", "three", "four"], channels=6)  # (3, 5, 6) with 3, 5 and 4 letters


def network(kind: str) -> Preconditioned:
    return NETWORKS[kind](num_classes=0, token_channels=6)


def run(model: nn.Module, condition: Tensor | None) -> Tensor:
    with torch.no_grad():
        return model(noisy_images(), SIGMA, condition)


def test_masked_tokens_become_zeros() -> None:
    tokens, mask = torch.randn(2, 3, 4), torch.tensor([[1, 0, 1], [0, 0, 0]])
    kept = mask_tokens(tokens, mask)
    assert torch.equal(kept, tokens * mask[..., None]) and torch.equal(token_mask(kept), mask.bool())
    hidden = tokens.clone()
    hidden[0, 1] = torch.nan  # masked tokens may have any values
    assert torch.equal(mask_tokens(hidden, mask), kept)
    hidden[0, 0, 2] = torch.inf
    with pytest.raises(ValueError, match="not finite in a token that counts"):
        mask_tokens(hidden, mask)
    with pytest.raises(ValueError, match="token of zeros that counts"):
        mask_tokens(torch.zeros(2, 4), torch.tensor([1, 0]))
    with pytest.raises(ValueError, match=r"its mask \(2,\); expected floats \(L, C\) and a mask \(L,\)"):
        mask_tokens(torch.zeros(3, 4), torch.tensor([1, 0]))
    for wrong in (
        torch.tensor([0.0, -1e4, 0.0]),
        torch.tensor([1.0, torch.nan, 0.0]),
    ):  # such as a mask added to logits
        with pytest.raises(ValueError, match="other numbers than 0"):
            mask_tokens(tokens[0], wrong)
    assert torch.equal(pad_tokens(tokens, 5)[:, :3], tokens) and not pad_tokens(tokens, 5)[:, 3:].any()
    with pytest.raises(ValueError, match="3 tokens; expected at most 2"):
        pad_tokens(tokens, 2)


def test_no_condition_is_the_same_for_labels_and_embeddings() -> None:
    dropped = torch.tensor([True, False, True])
    assert drop_condition(torch.tensor([4, 5, 6]), dropped).tolist() == [-1, 5, -1]
    assert token_mask(drop_condition(WORDS, dropped)).any(1).tolist() == [False, True, False]
    device = torch.device("cpu")
    labels = concatenate_conditions([None, torch.tensor([2, 3])], 2, device)
    assert labels is not None and labels.tolist() == [-1, -1, 2, 3]
    assert concatenate_conditions([None, None], 1, device) is None  # for labels and embeddings alike
    long = concatenate_conditions([WORDS[:2, :3], None, pad_tokens(WORDS[:2], 7)], 2, device)
    assert (
        long is not None
        and long.shape == (6, 7, 6)
        and not long[2:4].any()
        and torch.equal(long[:2, :3], WORDS[:2, :3])
    )


@pytest.mark.parametrize("kind", NETWORKS)
def test_padding_is_ignored_and_only_padding_is_no_condition(kind: str) -> None:
    model = network(kind)
    D = run(model, WORDS)
    torch.testing.assert_close(run(model, pad_tokens(WORDS, 9)), D, rtol=1e-4, atol=1e-5)
    scattered = torch.zeros(3, 9, 6)
    scattered[:, [1, 2, 4, 7, 8]] = WORDS  # the position of the padding has no influence
    torch.testing.assert_close(run(model, scattered), D, rtol=1e-4, atol=1e-5)
    none = run(model, None)
    torch.testing.assert_close(run(model, torch.zeros(3, 4, 6)), none, rtol=1e-4, atol=1e-5)
    assert all((D[i] - none[i]).abs().max() > 1e-3 for i in range(3))
    other = run(model, WORDS.roll(1, dims=0))
    assert (other - D).abs().max() > 1e-3
    mixed = run(model, drop_condition(WORDS, torch.tensor([False, True, False])))
    torch.testing.assert_close(mixed[[0, 2]], D[[0, 2]], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], none[1], rtol=1e-4, atol=1e-5)
    wrong: list[Tensor] = [torch.randn(3, 5, 7), torch.randn(2, 5, 6), torch.arange(3)]
    for condition in wrong:
        with pytest.raises(ValueError, match=r"expected embeddings \(3, tokens, 6\) of floats"):
            run(model, condition)


def test_unet_embeds_the_normalized_mean_of_the_tokens() -> None:
    unet = EDM2UNet((1, 8, 8), token_channels=6, model_channels=8, channel_mult=[1, 2], num_blocks=1,
                    attention_resolutions=[4]).double()  # fmt: skip
    tokens = WORDS.double()
    embedding = unet.embed(tokens, 3)
    assert embedding is not None
    for i, word in enumerate(("one", "three", "four")):
        mean = tokens[i, : len(word)].mean(0)
        unit = mean / (mean.square().mean().sqrt() + 1e-4)
        weight = unet.embedding_label.linear.weight  # type: ignore[union-attr]
        rows = weight / (weight.square().mean(1, keepdim=True).sqrt() + 1e-4) / 6**0.5
        torch.testing.assert_close(embedding[i], (rows @ unit).to(embedding), rtol=1e-6, atol=1e-6)
    assert not unet.embed(None, 3).any()  # type: ignore[union-attr]


def test_untrained_transformer_ignores_text_and_has_gradients_for_it() -> None:
    net = DiffusionTransformer((1, 8, 8), token_channels=6, channels=16, depth=2, heads=2)
    assert all(not reading.output.weight.any() for reading in net.reading)
    model = Preconditioned(net)
    with torch.no_grad():  # the output layers, which are initially zero
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
    model(noisy_images(), SIGMA, WORDS).square().sum().backward()
    assert all(reading.nothing.grad is not None and reading.nothing.grad.any() for reading in net.reading)
    assert net.embedding_label.weight.grad.any()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="reads labels or embeddings"):
        DiffusionTransformer((1, 8, 8), token_channels=6, num_classes=2)
    with pytest.raises(ValueError, match="reads labels or embeddings"):
        EDM2UNet((1, 8, 8), token_channels=6, num_classes=2)


@pytest.mark.parametrize("kind", NETWORKS)
def test_classifier_free_guidance_by_words(kind: str) -> None:
    model, place = network(kind), trajectory()
    with torch.no_grad():
        guided = ClassifierFreeGuidance(2.5, positive=model).start(place)(place.x, SIGMA, WORDS).clean
    positive, negative = run(model, WORDS), run(model, None)
    torch.testing.assert_close(guided, negative + 2.5 * (positive - negative), rtol=1e-3, atol=1e-4)
    assert place.evaluations == 2


@pytest.mark.parametrize("kind", NETWORKS)
def test_noise_on_embeddings_keeps_padding(kind: str) -> None:
    model, y = network(kind), torch.zeros(3, 5, 8)
    y[0, :3], y[1] = torch.randn(3, 8) + 1, 2 * torch.randn(5, 8)
    for perturbation in (AnnealedCondition(0.4, mixing=0.3), GaussianCondition()):
        place = trajectory(step=0)
        (name,) = perturbation.chosen(model.network)
        assert name == "embedding_label"
        noisy = perturbation.replace(nn.Identity(), place)(y)
        assert torch.equal(token_mask(noisy), token_mask(y))
        assert (noisy - y)[token_mask(y)].abs().mean() > 0.1
    annealed = AnnealedCondition(0.4).replace(nn.Identity(), trajectory(step=0))(y)[token_mask(y)]
    torch.testing.assert_close(annealed.mean(-1), y[token_mask(y)].mean(-1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(annealed.std(-1), y[token_mask(y)].std(-1), rtol=1e-4, atol=1e-5)
    place = trajectory(step=0)
    with torch.no_grad():
        cads = ConditionAnnealedGuidance(1.0, scale=0.5, positive=model).start(place)(place.x, SIGMA, WORDS).clean
    assert (cads - run(model, WORDS)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", NETWORKS)
def test_icg_draws_other_prompts_of_the_evaluation(kind: str) -> None:
    model = network(kind)
    prompts = torch.randn(7, 4, WORDS.shape[2], generator=torch.Generator().manual_seed(3))

    class Evaluated:
        main = model

        def __init__(self) -> None:
            self.prompts = prompts

    with pytest.raises(ValueError, match="another prompt of the evaluation, and there are none here"):
        RandomCondition(model).start_condition(trajectory())
    guidance = IndependentConditionGuidance(2.0).resolve(Evaluated())  # type: ignore[arg-type]
    place = trajectory()
    drawn = prompts[SampleSeeds(0, range(3)).integers("random condition", 7)]
    with torch.no_grad():
        guided = guidance.start(place)(place.x, SIGMA, WORDS).clean
    positive, negative = run(model, WORDS), run(model, drawn)
    torch.testing.assert_close(guided, negative + 2.0 * (positive - negative), rtol=1e-3, atol=1e-4)
    one = IndependentConditionGuidance(2.0, prompts=prompts[:1], positive=model).start(place)(place.x, SIGMA, WORDS)
    negative = run(model, prompts[:1].expand(3, -1, -1))
    torch.testing.assert_close(one.clean, negative + 2.0 * (positive - negative), rtol=1e-3, atol=1e-4)


def test_rows_without_tokens_become_the_empty_condition_of_the_model() -> None:
    empty = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    tokens = torch.tensor([[[5.0, 6.0]], [[0.0, 0.0]]])
    assert fill_empty(tokens, empty, 2).tolist() == [[[5.0, 6.0], [0.0, 0.0]], empty.tolist()]
    assert fill_empty(None, empty, 3).tolist() == [empty.tolist()] * 3
    longer = torch.ones(1, 3, 2)
    assert torch.equal(fill_empty(longer, empty, 1), longer)
    joint = concatenate_conditions([longer, None], 1, torch.device("cpu"))
    assert fill_empty(joint, empty, 2)[1, :2].tolist() == empty.tolist()


def test_guiders_must_have_the_same_embeddings() -> None:
    class NoModels:
        main = network("unet")

        def snapshot(self, **_: Any) -> Denoiser:
            raise AssertionError

    with pytest.raises(ValueError, match="guider reads embeddings of 4 channels, the main model of 6"):
        Guided([NETWORKS["unet"](num_classes=0, token_channels=4)], [2.0]).resolve(NoModels())


def test_digits_by_their_names() -> None:
    data = DigitCaptions(batch_size=8, token_channels=16)
    prompts = data.prompts()
    assert prompts.shape == (10, 5, 16) and token_mask(prompts).sum(1).tolist() == [len(name) for name in NAMES]
    assert torch.equal(prompts, DigitCaptions(token_channels=16).prompts())
    o = prompts[1, 0] - prompts[0, 3]  # the letter o at positions 0 and 3: only the positions differ
    torch.testing.assert_close(
        o, embed_spelling(["o"], channels=16)[0, 0] - embed_spelling(["tttotttt"], channels=16)[0, 3]
    )
    means = nn.functional.normalize(prompts.sum(1), dim=-1)
    assert (means @ means.T - torch.eye(10)).max() < 0.95  # the names differ for a network that uses the mean
    digits = super(DigitCaptions, data).training()
    batch = data.training().take(torch.tensor([3, 700]))
    assert batch.condition is not None
    assert torch.equal(batch.condition, prompts[digits.labels[[3, 700]]])  # type: ignore[index]
    x, one = data.heldout()[7]
    assert isinstance(one, Tensor) and one.shape == (5, 16) and x.dtype == torch.uint8
    with pytest.raises(ValueError, match="NoData has no embeddings"):
        NoData((1, 8, 8)).prompts()


def test_prompts_of_a_file(tmp_path: Path) -> None:
    tokens = np.arange(1, 25, dtype=np.float16).reshape(2, 3, 4)
    tokens[1, 2] = 0
    np.save(tmp_path / "a.npy", tokens)
    np.savez(tmp_path / "b.npz", tokens=tokens, mask=np.array([[1, 1, 0], [1, 0, 0]]))
    options = {"data_shape": (1, 8, 8), "token_channels": 4}
    file = NoData(**options, prompt_file=str(tmp_path / "a.npy")).prompts()  # type: ignore[arg-type]
    assert isinstance(file, PromptFile) and isinstance(file.tokens, np.memmap) and file.tokens.dtype == np.float16
    plain = file[torch.arange(2)]
    assert plain.dtype == torch.float32 and torch.equal(plain, torch.from_numpy(tokens).float())
    hidden = NoData(**options, prompt_file=str(tmp_path / "b.npz")).prompts()[torch.arange(2)]  # type: ignore[arg-type]
    assert token_mask(hidden).int().tolist() == [[1, 1, 0], [1, 0, 0]] and torch.equal(hidden[0, :2], plain[0, :2])
    np.save(tmp_path / "wrong.npy", tokens[0])
    (tmp_path / "text.npy").write_text("a cat")
    for name, message in (
        ("wrong.npy", r"wrong.npy have shape \(3, 4\); expected \(P, L, 4\)"),
        ("text.npy", "text.npy cannot be read"),
        ("none.npy", "none.npy does not exist"),
        (None, "NoData holds no embeddings to draw samples under; set prompt_file"),
    ):
        file = None if name is None else str(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            NoData(**options, prompt_file=file).prompts()  # type: ignore[arg-type]


def test_rows_of_a_large_file_are_checked_when_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.ones((3, 2, 4), dtype=np.float16)
    tokens[2, 0, 0] = np.nan
    np.save(tmp_path / "a.npy", tokens)
    with pytest.raises(ValueError, match=r"the prompts in .*a\.npy: an embedding holds numbers that are not finite"):
        PromptFile(str(tmp_path / "a.npy"), 4)
    monkeypatch.setattr(PromptFile, "CHECKED", 0)
    file = PromptFile(str(tmp_path / "a.npy"), 4)
    assert file[torch.tensor([0, 1])].shape == (2, 2, 4)
    with pytest.raises(ValueError, match="numbers that are not finite"):
        file[torch.tensor([2])]


def module(**options: Any) -> DiffusionModule:
    torch.manual_seed(0)
    sizes = {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attention_resolutions": []}
    net = EDM2UNet((1, 8, 8), token_channels=options.pop("token_channels", 32), **sizes)  # type: ignore[arg-type]
    return DiffusionModule(Preconditioned(net), EDMLoss(), average=None, heldout_sigmas=(0.3,), **options)


def test_training_and_evaluation_under_prompts(tmp_path: Path) -> None:
    data = DigitCaptions(batch_size=16)
    cfg = evaluation(ClassifierFreeGuidance(2.0), num_samples=12, batch_size=5)
    learns = module(label_dropout=0.5, evaluations={"cfg": cfg})
    conditions: list[Tensor] = []
    embed = learns.denoiser.network.embed  # type: ignore[union-attr]
    learns.denoiser.network.embed = lambda c, n: (conditions.append(c), embed(c, n))[1]  # type: ignore[union-attr]
    trainer = tiny_trainer(tmp_path, steps=6)
    trainer.fit(learns, datamodule=data)
    shares = [float(token_mask(condition).any(1).float().mean()) for condition in conditions]
    assert len(shares) == 6 and 0.2 < sum(shares) / 6 < 0.8  # half of them, to four standard deviations of 96 draws
    (samples, size), *_ = learns.sample_sets("test")
    assert size == 5 and [int(samples[i].condition) for i in range(12)] == [*range(10), 0, 1]
    with pytest.raises(ValueError, match="embeddings of 16 channels .* the network reads 32"):
        tiny_trainer(tmp_path / "other", steps=1).fit(
            module(), datamodule=DigitCaptions(batch_size=4, token_channels=16)
        )
    with pytest.raises(ValueError, match="needs a model with labels or embeddings"):
        module(label_dropout=0.1, token_channels=0)

    class Here:
        main = learns.denoiser.eval()

    index = torch.arange(12)
    del learns.denoiser.network.embed  # type: ignore[union-attr]
    drawn = SamplingLoop.start("cfg", cfg, Here(), {}).draw(SampleBatch(index, index % 10), data)
    alone = SamplingLoop.start("cfg", cfg, Here(), {}).draw(SampleBatch(index[3:4], index[3:4]), data)
    assert torch.equal(drawn.condition, index % 10)
    assert (drawn.x[3].int() - alone.x[0].int()).abs().max() <= 1
    assert torch.equal(build_condition(Here.main, torch.tensor([4, -1]), data)[0], data.prompts()[4])
    assert not build_condition(Here.main, torch.tensor([4, -1]), data)[1].any()  # type: ignore[index]
    with pytest.raises(ValueError, match="prompt 10 does not exist; the data has prompts 0 to 9"):
        build_condition(Here.main, torch.tensor([10]), data)


def test_labels_for_an_energy_beside_embeddings_for_the_model() -> None:
    class Both(Denoiser):
        data_shape, num_classes, token_channels, sigma_data = (1, 8, 8), 3, 6, 0.5

        def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
            return x

    with pytest.raises(ValueError, match=r"a Both takes labels \(3 classes\), but its model takes embeddings"):
        build_condition(Both(), torch.tensor([0]), DigitCaptions())


def test_class_accuracy_by_class() -> None:
    class Reads:
        """Classifies an image by its first pixel."""

        num_classes = 3

        def classifier(self, device: torch.device) -> Any:
            return self

        def logits(self, x: Tensor) -> Tensor:
            return nn.functional.one_hot(x[:, 0, 0, 0].long(), 3).float()

    metric = AccuracyByClass(Reads())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is not prepared"):
        metric.update(torch.zeros(1, 1, 1, 1), torch.tensor([0]))
    metric.prepare([])
    predicted, requested = torch.tensor([0, 1, 1, 0, 2]), torch.tensor([0, 1, 0, 0, -1])
    metric.update(predicted.reshape(5, 1, 1, 1).to(torch.uint8), requested)
    values = metric.compute()
    assert [float(values[f"class_{k}"]) for k in (0, 1)] == pytest.approx([2 / 3, 1.0]) and values["class_2"].isnan()
    with pytest.raises(ValueError, match="class label 3 is out of range; the classifier has 3 classes"):
        metric.update(predicted.reshape(5, 1, 1, 1).to(torch.uint8), torch.full((5,), 3))

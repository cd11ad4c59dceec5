# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tune with a reward
#
# A trained model learns to draw digits with more ink. Each round draws samples, guides them up the gradient of a
# reward, and trains the model on them and on the data (algorithm 2 of *Gradient Guidance for Diffusion Models*,
# [arXiv:2404.14743](https://arxiv.org/abs/2404.14743)). A judge, a classifier that was trained on other images than the
# rest, says whether they are still digits. About eight minutes on two CPU cores, or two after `quickstart`; nothing is
# downloaded.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt

import lightning_guide as lg
from lightning_guide.cli import main

# %% tags=["parameters"]
CLASSIFIER_STEPS = 600
STEPS = 960
ROUNDS = 5
STEPS_PER_ROUND = 20
SAMPLES = 100  # in each round

# %% [markdown]
# ## The model and the judge

# %%
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.limit_val_batches=0"]
main(["fit", "-c", "configs/digits/classifier.yaml", f"--trainer.max_steps={CLASSIFIER_STEPS}", *QUIET])
main(["fit", "-c", "configs/digits/main.yaml", f"--trainer.max_steps={STEPS}", *QUIET])
main(["fit", "-c", "configs/gradient/digits_judge.yaml", f"--trainer.max_steps={CLASSIFIER_STEPS}", *QUIET])

# %% [markdown]
# ## Fine-tuning
#
# The reward of the config is the mean of the pixels (`torch.mean`); any function of images or any network can take its
# place. `LookAhead` guides samples by the gradient of the reward through the denoiser, so that they stay near the data.

# %%
model = "--model.init_args"
main(
    [
        *("fit", "-c", "configs/gradient/digits_fine_tune.yaml", *QUIET),
        *(f"--trainer.max_steps={ROUNDS * STEPS_PER_ROUND}", f"{model}.steps_per_round={STEPS_PER_ROUND}"),
        *(f"{model}.sampling.num_samples={SAMPLES}", f"{model}.sampling.batch_size={SAMPLES}"),
    ]
)
folder = Path("runs/gradient/digits_fine_tune")
rounds = [json.loads(line) for line in (folder / "rounds/history.jsonl").read_text().splitlines()]
print("recorded of each round:", ", ".join(rounds[0]))

# %% [markdown]
# ## What happened in the rounds
#
# Round 0 is unguided. The reward is what we asked for; the agreement of the judge and FD are what it costs.

# %%
figure, axes = plt.subplots(1, 3, figsize=(12, 3), layout="constrained")
for axis, (key, title) in zip(
    axes,
    {"objective": "reward: mean pixel", "class_agreement": "the judge agrees", "fd": "FD to real digits"}.items(),
    strict=True,
):
    axis.plot([each[key] for each in rounds], marker="o")
    axis.set(title=title, xlabel="round", xticks=range(ROUNDS))
    print(f"{title}: " + ", ".join(f"{each[key]:.3f}" for each in rounds))
figure.suptitle("Samples of each round, under guidance by the reward")
plt.show()

# %% [markdown]
# ## Before and after, without guidance
#
# The fine-tuned model is a run like any other; here it is sampled without guidance.

# %%
before, after = lg.Run("runs/digits/main").model(), lg.Run(folder).model()
figure, axes = plt.subplots(2, 1, figsize=(11, 2.4), layout="constrained")
for axis, (name, each) in zip(axes, {"before": before, "after": after}.items(), strict=True):
    x = lg.sample(each, lg.Heun(18), labels=[i % 10 for i in range(20)], seed=0)
    axis.imshow(x[:, 0].permute(1, 0, 2).reshape(8, -1), cmap="gray", vmin=-1, vmax=1)
    axis.set(title=f"{name}: mean pixel {x.clamp(-1, 1).mean():.3f}", xticks=[], yticks=[])
figure.suptitle("The same 20 seeds, two of each class")
plt.show()

# %% [markdown]
# **What was found.** In the study of this experiment (60 samples, 4 rounds, 5 seeds,
# [record](https://github.com/lightning-guide/lightning-guide/blob/main/scripts/studies/gradient_guidance/README.md#digits))
# the reward rose from -0.386 ± 0.013 to -0.305 ± 0.031 and the judge still agreed with 0.880 ± 0.065 of the samples
# (0.943 ± 0.028 before), but FD doubled, from 2.09 ± 0.35 to 4.10 ± 0.44. Guidance without fine-tuning reached -0.326
# ± 0.020 at an FD of 2.63 ± 0.23. So at these settings fine-tuning costs more quality than guidance for the same
# reward: it is of use where guidance at sampling time is too expensive, or where the reward lies beyond the data.

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
# # Find a guider
#
# Which earlier snapshot should guide a model, and with which weight? A sweep scores a grid, with intervals; the tuner
# finds the best point with fewer samples. The model is that of `quickstart` after 1/3.5 of its training, where there is
# something to correct. About eight minutes on two CPU cores, or three after `quickstart`; nothing is downloaded.

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import yaml

import lightning_guide as lg
from lightning_guide.cli import main

# %% tags=["parameters"]
CLASSIFIER_STEPS = 600
STEPS = 960
BLOCK, BLOCKS = 50, 8  # samples in a block, and blocks at each point of the sweep
BUDGET = 2400  # samples of the tuner

# %%
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.limit_val_batches=0"]
main(["fit", "-c", "configs/digits/classifier.yaml", f"--trainer.max_steps={CLASSIFIER_STEPS}", *QUIET])
main(["fit", "-c", "configs/digits/main.yaml", f"--trainer.max_steps={STEPS}", *QUIET])

# %% [markdown]
# ## The search
#
# A file names the model, an evaluation, and the axes: any setting of the evaluation by its path.

# %%
AGES, WEIGHTS = ["1/16", "1/8"], [1.25, 1.5, 2, 3]
guider = {"class_path": "Snapshot", "init_args": {"images": "1/8", "sigma_rel": 0.1}}
positive = {"class_path": "Snapshot", "init_args": {"images": "1/3.5", "sigma_rel": 0.05}}
search = {
    "images": "1/3.5",
    "average": 0.05,
    "evaluation": {
        "batch_size": BLOCK,
        "sampler": {"class_path": "DPMSolver2M", "init_args": {"grid": 8}},
        "guidance": {
            "class_path": "Autoguidance",
            "init_args": {"weight": 1.5, "guider": guider, "positive": positive},
        },
    },
    "axes": {
        "age": {"path": "guidance.init_args.guider.init_args.images", "values": AGES, "prior": "1/8"},
        "weight": {"path": "guidance.init_args.weight", "values": WEIGHTS, "prior": 1.5},
    },
    "block": BLOCK,
    "blocks": BLOCKS,
    "objectives": {"fd": "lowest"},
}
Path("my_search.yaml").write_text(yaml.safe_dump(search, sort_keys=False))

# %% [markdown]
# ## Sweep
#
# Every point draws the same seeds. `change` is the paired difference of FD from no guidance, with half of its 95 %
# interval: negative is better, and an interval that includes 0 shows nothing.

# %%
main(["sweep", "runs/digits/main/config.yaml", "my_search.yaml", "--out", "runs/digits/my_sweep"])
points = json.loads(Path("runs/digits/my_sweep/results.json").read_text())["points"]
plain = points["unguided"]["values"]["fd"]
table = [[points[f"age={age} weight={weight:g}"]["values"]["fd"] - plain for weight in WEIGHTS] for age in AGES]
print(Path("runs/digits/my_sweep/results.csv").read_text().splitlines()[0])

figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
extent = max(abs(value) for row in table for value in row)
image = axis.imshow(table, cmap="RdBu_r", vmin=-extent, vmax=extent)
for row, values in enumerate(table):
    for column, value in enumerate(values):
        color = "white" if abs(value) > 0.6 * extent else "black"
        axis.text(column, row, f"{value:+.2f}", color=color, horizontalalignment="center", verticalalignment="center")
axis.set(xticks=range(len(WEIGHTS)), xticklabels=WEIGHTS, yticks=range(len(AGES)), yticklabels=AGES)
axis.set(xlabel="weight", ylabel="age of the guider (of the run)")
axis.set_title(f"Change of FD from {plain:.2f} without guidance")
plt.show()

# %% [markdown]
# ## Tune
#
# The tuner draws few samples at many points, then more at the better ones, and lets the finalists race on fresh seeds.
# It prints the winner and whether it differs significantly from no guidance.

# %%
main(
    [
        *("tune", "runs/digits/main/config.yaml", "my_search.yaml"),
        *("--budget", str(BUDGET), "--out", "runs/digits/my_tune"),
    ]
)
print(Path("runs/digits/my_tune/fd.yaml").read_text().splitlines()[0])

# %% [markdown]
# ## The winner's samples

# %%
best = json.loads(Path("runs/digits/my_tune/tune.json").read_text())["winners"]["fd"]["axes"]
age, weight = best.get("age", "1/8"), best.get("weight", 1)  # without axes: no guidance won
run = lg.Run("runs/digits/main")
model, chosen = run.model(images="1/3.5"), run.model(images=age, sigma_rel=0.1)
labels = [i % 10 for i in range(20)]
figure, axes = plt.subplots(3, 1, figsize=(11, 3.4), layout="constrained")
for axis, (name, each) in zip(
    axes,
    {
        "unguided": model,
        f"guided by the snapshot at {age}, w = {weight}": lg.Autoguidance(chosen, weight=weight, positive=model),
        "for comparison: the finished model, unguided": run.model(),
    }.items(),
    strict=True,
):
    x = lg.sample(each, lg.DPMSolver2M(8), labels=labels, seed=0)
    axis.imshow(x[:, 0].permute(1, 0, 2).reshape(8, -1), cmap="gray", vmin=-1, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.set_title(name, fontsize=9, loc="left")
figure.suptitle("The same 20 seeds, two of each class")
plt.show()

# %% [markdown]
# **What was found.** A larger search of the same kind (36 points of 1,000 samples,
# [record](https://github.com/lightning-guide/lightning-guide/blob/main/scripts/studies/search/README.md#digits)) found
# FD 0.706 ± 0.20 without guidance and 0.492 ± 0.18 with the guider after 7,680 images (1/16 of the run) at w = 1.25;
# on 4,000 fresh samples the change was -0.286 ± 0.056. Age and weight trade off: an early guider needs a small weight,
# a later one bears more. With few samples a search cannot distinguish neighbors: of ten searches of 1,800 samples
# three were off by 35 %, of ten with 36,000 none by more than 0.8 %. The finished model gains nothing from guidance.

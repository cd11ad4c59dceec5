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
# # Bring your own model
#
# Any network that predicts noise, a velocity, a flow or the clean sample becomes a denoiser D(x, sigma) by one wrapper,
# and then every sampler and guidance works with it. Here a plain PyTorch model learns to predict the noise of DDPM in a
# plain loop, on points whose exact answer is known. Half a minute on one CPU core; nothing is downloaded.

# %%
import copy

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import lightning_guide as lg

# %% tags=["parameters"]
STEPS = 3000  # of training
POINTS = 3000  # samples in the figures

# %% [markdown]
# ## The data: eight Gaussians on a ring

# %%
angles = torch.arange(8) * torch.pi / 4
means = 1.5 * torch.stack([angles.cos(), angles.sin()], 1)
exact = lg.GaussianMixture(means, 0.1**2 * torch.eye(2).expand(8, 2, 2))

# %% [markdown]
# ## A model that knows nothing of this library
#
# It sees x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) n and the timestep t, and predicts n, as DDPM does.


# %%
class NoisePredictor(nn.Module):
    """Predict the noise (B, 2) in `x` (B, 2) at timesteps `t` (B,) from 0 to 999."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.frequencies = nn.Buffer(2.0 ** torch.arange(-2, 6))
        self.layers = nn.Sequential(
            nn.Linear(18, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None] / 1000 * self.frequencies * torch.pi
        return self.layers(torch.cat([x, phase.sin(), phase.cos()], 1))


torch.manual_seed(0)
predictor = NoisePredictor()
betas = torch.linspace(0.0001, 0.02, 1000)
abar = (1 - betas).cumprod(0)
optimizer = torch.optim.Adam(predictor.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
generator = torch.Generator().manual_seed(0)
early = predictor
for step in range(STEPS):
    clean, _ = exact.sample(512, generator)
    t, noise = torch.randint(1000, (512,)), torch.randn(512, 2)
    noisy = abar[t, None].sqrt() * clean.float() + (1 - abar[t, None]).sqrt() * noise
    loss = (predictor(noisy, t.float()) - noise).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step == STEPS // 4:
        early = copy.deepcopy(predictor)  # a worse version of itself, for autoguidance

# %% [markdown]
# ## The wrapper
#
# `Network` says what the library has to know: the shape of x, and how a condition becomes an embedding (there is none
# here). `Preconditioned` adds the coefficients of what it predicts: `EpsilonPrediction` here; `VelocityPrediction`,
# `RectifiedFlow` and `SamplePrediction` for the others.


# %%
class Points(lg.Network):
    """`NoisePredictor` as a network of the library."""

    data_shape, num_classes = (2,), 0

    def __init__(self, predictor: NoisePredictor) -> None:
        super().__init__()
        self.predictor = predictor

    def embed(self, condition: Tensor | None, batch: int) -> None:
        return None

    def forward(self, x: Tensor, c_noise: Tensor, embedding: Tensor | None) -> Tensor:
        return self.predictor(x, c_noise)


levels = lg.NoiseSchedule("linear", beta_start=0.0001, beta_end=0.02)
model = lg.Preconditioned(Points(predictor), lg.EpsilonPrediction(levels)).eval()
guider = lg.Preconditioned(Points(early), lg.EpsilonPrediction(levels)).eval()

# %% [markdown]
# ## Is it wrapped correctly?
#
# D(x, sigma) of the trained model must come near to the exact one at every noise level. A wrong timestep, sign or scale
# would show here.

# %%
x0 = exact.sample(1000, generator)[0].float()
for sigma in (0.05, 0.2, 1.0, 5.0, 50.0):
    x = x0 + sigma * torch.randn(1000, 2, generator=generator)
    with torch.no_grad():
        error = (model(x, torch.tensor(sigma)) - exact(x, torch.tensor(sigma))).square().mean().sqrt()
    print(f"sigma {sigma:>5}: error of D {float(error):.3f} (the data have a standard deviation of 1.07)")

# %% [markdown]
# ## Sample and guide
#
# `Heun(20)` takes the timesteps of the model's own schedule.

# %%
rows = {"exact": exact.sample(POINTS, generator)[0].float()}
for name, guided in {
    "unguided": model,
    "its early copy": guider,
    "autoguidance, w = 2": lg.Autoguidance(guider, weight=2, positive=model),
    "the same in 0.05 < sigma <= 1": lg.Autoguidance(guider, weight=lg.Interval(2, low=0.05, high=1), positive=model),
}.items():
    rows[name] = lg.sample(guided, lg.Heun(20), count=POINTS, seed=0, batch_size=POINTS)

figure, axes = plt.subplots(1, len(rows), figsize=(15, 3.4), layout="constrained")
for axis, (name, x) in zip(axes, rows.items(), strict=True):
    distances = torch.cdist(x, means)
    far = float((distances.amin(1) > 0.4).float().mean())  # four standard deviations
    shares = torch.bincount(distances.argmin(1), minlength=8) / len(x)
    axis.scatter(*x.T, s=1, linewidths=0)
    axis.set(title=f"{name}\n{100 * far:.1f} % far off", xlim=(-2.2, 2.2), ylim=(-2.2, 2.2), aspect="equal")
    print(f"{name:>30}: far off {100 * far:4.1f} %, shares of the modes {shares.min():.3f} to {shares.max():.3f}")
figure.suptitle("Samples from the same seeds; far off: more than 0.4 from every mode, where the data have 0.03 %")
plt.show()

# %% [markdown]
# **What was found.** With the settings above, one training seed and the seeds above: 17.9 % of the samples lie far from
# every mode unguided, 46.7 % of those of the early copy, 9.5 % under autoguidance at w = 2, and 6.8 % with guidance
# below sigma = 1 alone. At all noise levels guidance costs balance, the shares of the modes become 0.084 to 0.181
# (0.110 to 0.138 unguided); in the interval they stay as they were, 0.111 to 0.139. The wrapper is not to blame for
# the errors of D that remain: an exact denoiser in the same form gives exact samples (`tests/test_preconditioning.py`).

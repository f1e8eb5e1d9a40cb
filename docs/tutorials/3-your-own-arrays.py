# %% [markdown]
# # Your own arrays, with their own positions
#
# Nothing here is about text. A store holds sequences of vectors, and a *position* is a whole number that says where in a sequence a
# vector stands, by whichever clock is right for your data: the hour of the day, the residue of a protein, the column of a record, the
# frame after a stimulus.
#
# This notebook makes a recording of 48 channels at every hour for 400 stretches of 36 hours. Each stretch begins at a random hour. So
# the *index* in the array says nothing, and the *hour* says much: that is why you would bring positions of your own.

# %%
import numpy as np

random = np.random.default_rng(0)
stretches, length, channels, events = 400, 36, 48, 60
hour = (random.integers(24, size=(stretches, 1)) + np.arange(length)) % 24

directions = random.normal(size=(events, channels))
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
daily = np.stack([np.cos(2 * np.pi * np.arange(24) / 24), np.sin(2 * np.pi * np.arange(24) / 24)], 1) @ random.normal(size=(2, channels))

# a third of the events happen at any hour, a third by day (8 to 17) only, a third by night only
day = (np.arange(24) >= 8) & (np.arange(24) < 18)
lives = np.stack([np.ones(24, bool), day, ~day])[np.arange(events) % 3]  # [events, 24]
rate = 0.05 * lives / lives.mean(1, keepdims=True)
happens = random.random((stretches, length, events)) < rate.T[hour]
strength = happens * (1 + random.exponential(0.5, happens.shape))
noise = 0.05 * random.normal(size=(stretches, length, channels))
x = strength @ directions + 0.3 * daily[hour] + noise
x = x.astype(np.float32)
print(x.shape, f"{happens.sum(2).mean():.2f} events at a time")

# %% [markdown]
# ## Two stores of the same array
#
# `positions` has the shape of the first two axes. `position_names` are shown in place of numbers, everywhere. `exclude_first=False`:
# without positions index 0 is left out by default, because in causal language models the first token is an attention sink; in a
# recording it is an hour like any other.

# %%
import temporallens as tl

by_index = tl.ActivationStore.from_arrays(x, "by-index", exclude_first=False)
by_hour = tl.ActivationStore.from_arrays(x, "by-hour", positions=hour, position_names=[f"{h:02d}h" for h in range(24)])

# %% [markdown]
# Before anything is trained: how much of the variance do the means of positions explain, and how much would chance give?

# %%
for name, store in {"index": by_index, "hour": by_hour}.items():
    share, floor = store.moments.position_share()
    print(f"{name:6} explains {100 * share:5.1f} % (noise floor {100 * floor:.1f} %)")

# %% [markdown]
# The command line says the same, and more: which share of the *covariance* depends on position once its means are taken off. That is
# what masks can use and means cannot.

# %%
# !temporallens scan by-hour --out scan

# %% [markdown]
# ## Train on it
#
# A mean that moves with the hour needs no feature: `position_mean` takes it off before anything is coded, and adds it back. Features that
# live at some hours only are what masks are for. `centre: position_scaled` puts masks on top of what `position_mean` does.

# %%
from temporallens.evaluation.reconstruction import evaluate_reconstruction

arms = {
    "batchtopk": tl.BatchTopK(features=60, k=3),
    "position_mean": tl.PositionMean(features=60, k=3),
    "positional": tl.Positional(features=60, k=3, groups="positions", centre="position_scaled"),
}
held_out = by_hour.split(0.1, 0).held_out
trained = {}
for name, arm in arms.items():
    trained[name] = tl.train(by_hour, arm, steps=500, out=f"arms/{name}", batch_size=512, learning_rate=0.003)
    found = evaluate_reconstruction(trained[name].dictionary, by_hour, held_out, trained[name].summary["scale"])
    print(f"{name:14} FVE {found.fve:.4f} at L0 {found.l0:.2f}")

# %% [markdown]
# ## What the masks say
#
# A row of the mask is an hour, a column a feature: 1 where it may fire. We sort features by the hours at which they are open.

# %%
from matplotlib import pyplot as plt

gates = trained["positional"].dictionary.gates_by_position().detach().numpy()
by_day = gates[day].mean(0) - gates[~day].mean(0)
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
axes.imshow(gates[:, np.argsort(by_day)], aspect="auto", vmin=0, vmax=1, interpolation="nearest")
axes.set(xlabel="features, from those of the night to those of the day", ylabel="hour", title="Where each feature may fire")
plt.show()

# %%
match = np.abs(trained["positional"].dictionary.decoder.detach().numpy() @ directions.T)  # cosines: decoder rows have norm 1
best, cosine = match.argmax(1), match.max(1)
for kind, name in enumerate(("at any hour", "by day", "by night")):
    own = gates[:, (best % 3 == kind) & (cosine > 0.9)]
    print(f"events {name:12} {own.shape[1]:3} features: open by day {own[day].mean():.2f}, by night {own[~day].mean():.2f}")

# %% [markdown]
# ## What to keep in mind
#
# - Documents are what training and held-out data are divided by. Here each stretch is one; if several of yours belong together (one
#   animal, one day), say so with `documents=`, or the held-out part is not held out.
# - Closed masks need not mean better reconstruction. They say *where features live*; compare FVE above before you say that they help.
# - A study takes the store as `{source: store, path: by-hour}` and does all of this with seeds, intervals and a report.

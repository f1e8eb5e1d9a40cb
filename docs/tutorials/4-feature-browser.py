# %% [markdown]
# # Reading the feature browser
#
# The report of a study that asks for `features` ends with a browser: every feature of every dictionary, with its profile over
# positions. It opens on a dictionary with masks, sorted by how strongly features depend on position. This notebook
# measures what the browser shows, opens the files behind it, and shows how not to be fooled by the top of a sorted list.
# (`temporallens report` goes on to the pictures and the page; `evaluate` ends before them.)

# %%
from pathlib import Path

_ = Path("study.yaml").write_text("""
name: browsed
threads: 1
activations:
  known: {source: world, variant: known, sequences: 1200}
arms:
  batchtopk: {kind: batchtopk, features: 256, k: 6}
  positional: {kind: positional, features: 256, k: 6, groups: positions}
training: {steps: 300, batch_size: 1024, learning_rate: 0.003, held_out: 0.1}
seeds: [0]
evaluation: {positions: {}, features: {}}
""")

# %%
# !temporallens evaluate study.yaml --out run

# %% [markdown]
# ## What a line holds
#
# | column | what it is |
# |---|---|
# | by position | the share of tokens at each position on which the feature fires, drawn from 0 to its own highest |
# | fires | the same over all positions |
# | peak position | where it fires most often |
# | specialisation | how far its profile is from flat, from 0 (alike everywhere) to 1 (at one position only), less chance |
# | information | how many bits a position and "does it fire?" tell of each other, per token, less chance |
# | q | the false discovery rate at which it would still be called dependent on position |
#
# The files behind it are JSON, one for each dictionary.

# %%
import json

import numpy as np

features = json.loads(Path("run/measures/features/known/positional-seed0.json").read_text())
measured = json.loads(Path("run/measures/positions/known/positional-seed0.json").read_text())["features"]
print(f"{len(features['firings'])} features on {features['tokens']:,} held-out tokens")
print(f"{len(measured['feature'])} of them fire often enough to be asked")

# %%
order = np.argsort(measured["specialisation"])[::-1]
print("feature  fires  peak  specialisation  q")
for place in order[:8]:
    feature = measured["feature"][place]
    peak = features["first"][int(np.argmax(features["rate"][feature]))]
    print(f"{feature:7} {features['firings'][feature]:6} {peak:5} {measured['specialisation'][place]:15.3f}  {measured['q'][place]:.4f}")

# %% [markdown]
# ## One feature
#
# Bars are how often it fires at each position. The grey band is what chance gives, which is not "no firing": the same firings, with
# every sequence's labels of positions turned in a circle. A bar inside the band says nothing. The line is how far the mask is open: the
# mask is what the *training* made, the bars are what *held-out* documents show, and only where both agree is the feature's place known.

# %%
from matplotlib import pyplot as plt

feature = measured["feature"][order[0]]
at = np.arange(len(features["first"]))
rate, low, high = (np.array(features[name][feature]) for name in ("rate", "low", "high"))
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.bar(at, rate, width=0.9)
axes.fill_between(at, low, high, step="mid", alpha=0.35, color="grey", label="chance, 95 %")
axes.set(xlabel="position", ylabel="share of tokens", title=f"Feature {feature}")
axes.set_xticks(at[:: max(1, len(at) // 12)], [str(features["first"][bin]) for bin in at[:: max(1, len(at) // 12)]])
mask = axes.twinx()
mask.step(at, features["open"][feature], where="mid", color="darkorange", label="mask open")
mask.set_ylim(0, 1.05)
figure.legend(loc="outside lower center", ncols=2)
plt.show()

# %% [markdown]
# ## The top of a sorted list
#
# Sort any noisy number and the top looks striking. Here that can be checked, because nothing in a "null" world depends on position.

# %%
# !temporallens evaluate study.yaml --out null --set 'activations.known.variant="null"' | tail -1

# %%
for name, title in (("run", "known"), ("null", "nothing depends on position")):
    found = json.loads(Path(f"{name}/measures/positions/known/positional-seed0.json").read_text())["features"]
    q, top = np.array(found["q"]), sorted(found["specialisation"])[::-1][:3]
    print(f"{title:28} top specialisation {', '.join(f'{value:.3f}' for value in top)}; q < .05: {(q < 0.05).sum()} of {len(q)}")

# %% [markdown]
# The highest values of the null world are what to expect from the top of a list where there is nothing. `q` is made for this
# question, and "only features that depend on position" in the browser keeps those with q < .05: of these, at most one in twenty is
# named by chance, on average over studies. So among many named ones a few are mistakes, and where nothing depends on position, whatever
# is named is one.
#
# ## Was it right?
#
# In a made world each true feature has a class. We match learned features to true ones by the cosine of their directions.

# %%
import temporallens as tl
from temporallens.activations.made.worlds import CLASSES, read_truth
from temporallens.evaluation.known.worlds import true_cosines

truth = read_truth(Path("run/stores/known"))
cosines = true_cosines(tl.load_dictionary("run/arms/known/positional-seed0"), truth)  # [true, learned]
chosen = np.array(measured["feature"])
best, specialised = cosines[:, chosen].argmax(0), np.array(measured["q"]) < 0.05
for number, name in enumerate(CLASSES):
    own = truth.profiles.kind[best] == number
    print(f"{name:9} {own.sum():3} learned features are nearest to one; {specialised[own].sum():3} of them are said to depend on position")

# %% [markdown]
# Features of the class `global` that are named are mistakes; those of the other classes that are not named are misses. Both happen: how
# often depends on the number of firings, which you see in the column "fires".
#
# ## Contexts
#
# With a language model the right-hand side lists the texts on which a feature fires most strongly, the firing token marked. They are the
# *strongest* contexts, a few of thousands: they show what a feature is for at its best, not what it usually does. Search for a word to see
# which features share it. A world has no text, so there are none here.

# %% [markdown]
# # Your first study
#
# A study asks one question of some activations: does it help a sparse dictionary to know where in the sequence it stands?
# Here the activations are *made*, by a world whose answer is known, so that you can see whether the study finds it.
# With a language model everything below is the same; only the part `activations` differs (`temporallens init MODEL` writes it).
#
# ## The study file
#
# A study is one YAML file. This one has two sets of activations of the same size. In `known` four fifths of the true features
# depend on position: they live in a window, at the start of the row, at every fourth or eighth position, or grow along the row.
# In `nothing` no feature does. Whatever a method finds there it makes up.

# %%
from pathlib import Path

_ = Path("study.yaml").write_text("""
name: first
threads: 1

activations:
  known: {source: world, variant: known, sequences: 1200}
  nothing: {source: world, variant: "null", sequences: 1200}

arms: # the dictionaries to compare
  batchtopk: {kind: batchtopk, features: 256, k: 6} # knows nothing of position
  position_mean: {kind: position_mean, features: 256, k: 6} # loses the mean and the scale of its position first
  positional: {kind: positional, features: 256, k: 6, groups: positions} # learns where each feature may fire

training: {steps: 300, batch_size: 1024, learning_rate: 0.003, held_out: 0.1}
seeds: [0, 1]
""")

# %% [markdown]
# `--dry-run` prints what will be done, and touches nothing. Every line is a stage; a stage that is finished is never done twice.

# %%
# !temporallens run study.yaml --out run --dry-run

# %% [markdown]
# ## Run it
#
# It ends with a table: one row for every dictionary. **FVE** is the fraction of the variance that the dictionary explains on
# documents that it was not trained on. **L0** is how many features are in use at a token, on average. A dictionary with more codes
# explains more by that alone, so only rows of equal L0 are compared.

# %%
# !temporallens run study.yaml --out run

# %% [markdown]
# ## What it found
#
# `temporallens show` prints what the report opens with (`temporallens open run` opens the report itself). Each set of activations
# begins with sentences in words, then come the numbers behind them. Differences are paired by seed: all arms see the same batches in the
# same order, so that what differs is the arm. An interval that leaves out zero is a difference; anything else is called none.

# %%
import subprocess
import textwrap

shown = subprocess.run(["temporallens", "show", "run"], capture_output=True, text=True, check=True).stdout
for line in shown[shown.index("\nknown:") :].splitlines():
    print(textwrap.fill(line, 120))

# %% [markdown]
# ## Was it right?
#
# A made world says so. `mask F1` compares where the learned masks are open with where the true features live: 1 is perfect.

# %%
import json

results = json.loads(Path("run/results.json").read_text())
for run in results["runs"]:
    if run["arm"] == "positional":
        f1 = run["world"]["mask"]["matched"]["f1"]
        print(f"{run['activations']:8} seed {run['seed']}: FVE {run['fve']:.3f}, mask F1 {f1:.3f}, openness {run['openness']:.3f}")

# %% [markdown]
# ## What to take from it
#
# - Position explains a few percent even in `nothing`: worlds have a mean that moves with position, as models with learned positions
#   do. That is an offset, no feature depends on it, and `position_mean`, which takes it off, is the arm for it. "Position matters" and
#   "features live at positions" are two findings.
# - In `nothing` masks should close next to nothing. If they do close something there, that is what masks do without any reason,
#   and a finding of that size elsewhere is none.
# - Two seeds give very wide intervals (Student's t with one degree of freedom), so that most rows say "none" whatever is true. A study
#   for a paper has five or more.
# - 300 steps are few. What holds for short trainings need not hold for long ones: `--set training.steps=5000 --out longer`.

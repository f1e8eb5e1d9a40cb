# %% [markdown]
# # Writing an arm
#
# An **arm** is a way to make a dictionary: how codes are computed and what is learned. One that does not come with the package is a
# class of settings and a class of the dictionary, in a file of your own. Everything else (batches, optimiser, checkpoints, held-out
# documents, saving) is what all arms have.
#
# ## The question
#
# TopK keeps the `k` largest codes of a token. Which are largest depends on the scale of each feature, and features that live at few
# positions have fewer tokens to learn theirs from. Would it do to give every feature an *offset by position*, that is, to take the
# largest of `pre + offset[position, feature]` as codes? The offset is learned from nothing but the reconstruction error.

# %%
from typing import ClassVar, Literal

import torch
from torch import nn

import temporallens as tl
from temporallens.activations.made.worlds import WorldPolicy, harvest_world
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.config import Role
from temporallens.dictionaries.steps import Forward


class Offset(ArmConfig):
    """TopK of codes that an offset by position is added to."""

    roles: ClassVar[tuple[Role, ...]] = ("positional",)
    kind: Literal["offset"] = "offset"
    k: int = 6
    """Codes of a token."""

    def build(self, width, positions, generator):
        return OffsetDictionary(width, positions, self, generator)


class OffsetDictionary(Dictionary):
    masked = True  # codes depend on positions, so they are asked for

    def __init__(self, width, positions, config, generator):
        super().__init__(width, config, generator)
        self.shift = nn.Parameter(torch.zeros(positions, config.features))

    def codes(self, x, positions):
        shifted = (self.pre_activations(x) + self.shift[positions]).relu()
        kept = shifted.topk(self.config.k, dim=1)
        return torch.zeros_like(shifted).scatter(1, kept.indices, kept.values)

    def training_forward(self, x, positions, previous=None):
        codes = self.codes(x, positions)
        used = (codes > 0).float()
        return Forward(self.reconstruct(codes), codes.sum(1), used.sum(1), used.sum(0))


# %% [markdown]
# `codes` is what a token is turned into; `training_forward` says what a step needs: the reconstruction, the sum of the codes (which a
# penalty may use), how many are in use, and which features fired. `roles` says what the arm is for in a comparison.
#
# ## Train it beside others
#
# On a world whose features are known, with the same seed and the same batches.

# %%
store = harvest_world(WorldPolicy(sequences=1600), "world")
settings = {"steps": 300, "batch_size": 1024, "learning_rate": 0.003}
arms = {
    "topk": tl.TopK(features=256, k=6),
    "position_mean": tl.PositionMean(features=256, k=6),
    "offset": Offset(features=256, k=6),
    "positional": tl.Positional(features=256, k=6, groups="positions"),
}
trained = {name: tl.train(store, arm, out=f"arms/{name}", seed=0, **settings) for name, arm in arms.items()}

# %% [markdown]
# ## Judge it
#
# On documents that none of them saw, and at what L0. BatchTopK arms (the second and the last) keep `k` codes on *average* over a batch;
# at inference they use a threshold, so their L0 need not be exactly 6. Mind that when you read FVE.

# %%
from temporallens.evaluation.reconstruction import evaluate_reconstruction

held_out = store.split(0.1, 0).held_out
print(f"{'arm':14} {'FVE':>6} {'L0':>6} {'dead':>5}")
for name, run in trained.items():
    found = evaluate_reconstruction(run.dictionary, store, held_out, run.summary["scale"])
    print(f"{name:14} {found.fve:6.3f} {found.l0:6.2f} {found.dead_features:5}")

# %% [markdown]
# One seed and 400 steps show whether an idea is worth a study, not whether it is right. Before you believe a gain of an arm of your own:
#
# - give the baseline what the arm has in addition. Here that is an offset by position, and `position_bias` is the arm that has one
#   without changing which codes are chosen;
# - train five seeds, and compare at equal L0 (a study with `levels: {k: [4, 6, 8]}` reads every arm off its own curve);
# - run it where there is nothing to find: `WorldPolicy(variant="null")`.
#
# ## Save and load
#
# What was trained is on disk already. To read it, say which class it is; nothing is unpickled, and no code comes with the file.

# %%
again = tl.load_dictionary("arms/offset", arm=Offset)
x, positions = torch.randn(3, store.width), torch.tensor([1, 5, 40])
print(torch.equal(again.encode(x, positions), trained["offset"].dictionary.encode(x, positions)))

# %% [markdown]
# An arm that proves itself can move into the package, after which a study names it by its `kind`: the page "Contributing" has the steps.

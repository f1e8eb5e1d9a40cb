# %% [markdown]
# # Your own SAE
#
# You have a dictionary already, trained by your own code or somebody else's, and want to know what it makes of position. It need not
# know what a position is. Here we train one in a few lines of plain PyTorch, which stand for your code, and then judge its file.
#
# The activations come from a world whose features are known, so that at the end you can see what the answers were worth. With a
# language model, `temporallens inspect FOLDER` does all of this in one command.
#
# ## A dictionary from elsewhere

# %%
import torch
from safetensors.torch import save_file
from torch import nn

from temporallens.activations.made.worlds import WorldPolicy, harvest_world

store = harvest_world(WorldPolicy(sequences=1200), "world")
rows = store.read(store.split(0.1, 0).train)
x = rows.x[rows.position > 0]  # position 0 is an attention sink, as in most causal models
print(tuple(x.shape))

# %%
torch.manual_seed(0)
features, k = 256, 6
encoder, decoder = nn.Parameter(torch.randn(features, store.width) / 10), nn.Parameter(torch.randn(features, store.width) / 10)
encoder_bias, decoder_bias = nn.Parameter(torch.zeros(features)), nn.Parameter(x.mean(0))
parameters = [encoder, decoder, encoder_bias, decoder_bias]
optimiser = torch.optim.Adam(parameters, lr=3e-3)
for _ in range(400):
    batch = x[torch.randint(len(x), (1024,))]
    codes = ((batch - decoder_bias) @ encoder.T + encoder_bias).relu()
    kept = codes.topk(k, dim=1)
    codes = torch.zeros_like(codes).scatter(1, kept.indices, kept.values)
    loss = (codes @ decoder + decoder_bias - batch).square().sum(1).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
names = ("W_enc", "W_dec", "b_enc", "b_dec")
save_file({name: parameter.detach() for name, parameter in zip(names, parameters, strict=True)}, "sae.safetensors")
print(f"squared error {loss.item():.2f} a token, of {(x - x.mean(0)).square().sum(1).mean():.2f}")

# %% [markdown]
# ## Read it
#
# A file of named tensors does not say which is which, how many codes are kept, or whether the decoder's bias is taken off the input
# first; you do. Files of SAELens, dictionary_learning, sparsify, Gemma Scope and Llama Scope say all of it, and need a path only.

# %%
import temporallens as tl

names = {"encoder": "W_enc", "decoder": "W_dec", "encoder_bias": "b_enc", "decoder_bias": "b_dec"}
sae = tl.load_dictionary("sae.safetensors", **names, k=k, subtracts_bias=True)
ours = torch.zeros(5, features).scatter(1, *((x[:5] - decoder_bias) @ encoder.T + encoder_bias).relu().topk(k, dim=1)[::-1])
print("the same codes as our own loop:", torch.allclose(sae.encode(x[:5]), ours, atol=1e-5))

# %% [markdown]
# ## Judge it beside others
#
# A dictionary that is trained already is an arm of kind `pretrained`. It takes part in everything but the training. Four sections ask
# what is asked of any dictionary: are some positions explained worse than others, which features depend on position, how many live on
# the first tokens, and what a mask made after training would close for free.

# %%
from pathlib import Path

_ = Path("study.yaml").write_text("""
name: judged
threads: 1
activations:
  known: {source: world, variant: known, sequences: 1200}
arms:
  theirs: {kind: pretrained, path: sae.safetensors, encoder: W_enc, decoder: W_dec, encoder_bias: b_enc, decoder_bias: b_dec,
           k: 6, subtracts_bias: true}
  topk: {kind: topk, features: 256, k: 6}
  positional: {kind: positional, features: 256, k: 6, groups: positions}
training: {steps: 400, batch_size: 1024, learning_rate: 0.003, held_out: 0.1}
seeds: [0]
evaluation: {octaves: {}, positions: {}, sinks: {}, closing: {}}
""")

# %%
# !temporallens run study.yaml --out run > /dev/null 2>&1

import subprocess
import textwrap

shown = subprocess.run(["temporallens", "show", "run"], capture_output=True, text=True, check=True).stdout
for line in shown.splitlines():
    print(line if line.startswith(" ") else textwrap.fill(line, 120))

# %% [markdown]
# ## What the numbers mean
#
# - *Theirs* and `topk` are nearly the same method; the distance between their FVE is what details of training are worth, and no
#   difference that is smaller than it should be made much of. One seed has no interval.
# - The share of features that depend on position is at a false discovery rate of 5 %, against circular shifts of whole documents. In
#   this world four fifths of the *true* features depend on position. A dictionary need not find as many: a feature that fires seldom
#   is not asked, and one that mixes a true feature with its neighbours depends on position less.
# - What closes "for free" is counted on documents that did not give the mask, and beside what closes when the labels of positions mean
#   nothing. Only the points beyond that are due to position.
# - The three sections that need a language model (pushing text to later positions, longer rows, splicing) have nothing to run here.

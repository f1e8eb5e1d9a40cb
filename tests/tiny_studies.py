"""Studies that run in seconds: one of a tiny model, one of levels on a tiny world."""

import json

import pytest

from temporallens.study import pictures

VALID = """\
name: tiny
threads: 1
scans:
  - model: {model}
    text: {text}
    context_length: 16
    sequences: 4
activations:
  low: {{model: {model}, text: {text}, layer: 0, context_length: 16, batch_size: 4, dtype: float32}}
  high: {{model: {model}, text: {text}, layer: 2, context_length: 16, batch_size: 4, dtype: float32}}
arms:
  standard:
    kind: standard
    features: 48
  positional:
    kind: positional
    features: 48
    k: 4
    groups: 3
training:
  steps: 12
  batch_size: 32
  log_every: 4
  held_out: 0.4
seeds: [0]
"""


LEVELED = """\
name: leveled
threads: 1
activations:
  world:
    {source: world, width: 16, features: 24, positions: 16, sequences: 64, start: 3, periods: [4], active: 2, highest_rate: 0.2}
arms:
  batchtopk: {kind: batchtopk, features: 32}
  positional: {kind: positional, features: 32, groups: 3}
  standard: {kind: standard, features: 32, sparsity: 1.0}
levels: {k: [2, 4]}
seeds: [0, 1]
one_seed: {arms: [standard]}
notes: {standard: "training_steps: 0, final_loss: None"}
training: {steps: 12, batch_size: 64, learning_rate: 0.005, log_every: 6, held_out: 0.25}
"""


def documents(count: int, seed: int = 0) -> str:
    """JSON lines of a few dozen words each, all different."""
    words = ["state", "union", "people", "prices", "moon", "rain", "river", "bridge", "law", "peace", "trade", "road", "school", "winter"]
    texts = [" ".join(words[(seed + number * 7 + place * (number % 5 + 1)) % len(words)] for place in range(40)) for number in range(count)]
    return "".join(json.dumps({"text": f"{text}. Document {number} ends."}) + "\n" for number, text in enumerate(texts))


def draw_headline_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs draw their last picture only, which proves that figures are done: pictures take most of a tiny study's time."""
    every = pictures.pictures_of
    monkeypatch.setattr(pictures, "pictures_of", lambda *run: every(*run)[-1:])

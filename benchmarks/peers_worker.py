"""Runs in the peers' environment: trains with one library's own trainer, so many steps at a time as it is asked to.

    python -m benchmarks.peers_worker sparsify | sparsify_fit | saelens | dictionary_learning

Reads lines of JSON: first the sizes, then `{"steps": n}`, answered by `{"seconds": s}`, until its input ends. Every library gets
the same activations, float32 and its own defaults otherwise; none comes to revive a dead feature in so few steps. What belongs
to collecting activations or to saving is left out:

- sparsify: its `SparseCoder` with all that its trainer does to it in a step, and Adam, as everywhere here; nothing else of the loop.
- sparsify_fit: the same through `Trainer.fit`, the whole loop, on a model that hands out activations without computing any; its copies
  of them and its checks are then counted too. Saving is off.
- SAELens: `SAETrainer.step`, its activation scaler included, and the step counter as `fit` advances it.
- dictionary_learning: `BatchTopKTrainer.update`, after the division by the norm factor that `trainSAE` makes. Its `nnsight`, which
  it imports for collecting activations alone, is replaced by an empty module.
"""

import json
import os
import sys
import time
import types
from collections.abc import Callable
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Sizes, batches, synchronise

Steps = Callable[[int], None]
SEQUENCES = 32
"""Rows of tokens in a batch, where a library wants to see rows."""


def sparsify_steps(sizes: Sizes, device: torch.device) -> Steps:
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(sizes.width, SparseCoderConfig(num_latents=sizes.features, k=sizes.k), device)
    optimizer = torch.optim.Adam(coder.parameters())
    stream = cycle(batches(sizes, device))
    fired = torch.zeros(sizes.features, dtype=torch.bool, device=device)

    def steps(count: int) -> None:
        for _ in range(count):
            coder.set_decoder_norm_to_unit_norm()
            output = coder(next(stream))
            fired[output.latent_indices.flatten()] = True
            output.fvu.backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def sparsify_fit_steps(sizes: Sizes, device: torch.device) -> Steps:
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    class Stream(nn.Module):
        """A language model whose one layer puts out activations that were there before."""

        def __init__(self) -> None:
            super().__init__()
            rows = SEQUENCES if sizes.batch % SEQUENCES == 0 else 1
            self.data = cycle(x.view(rows, -1, sizes.width) for x in batches(sizes, device))
            self.layer = nn.Identity()
            self.device = device
            self.tokens = torch.zeros(rows, sizes.batch // rows, dtype=torch.long)
            self.dummy_inputs = {"input_ids": self.tokens}

        @property
        def base_model(self) -> nn.Module:
            return self

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.layer(next(self.data))

    class Tokens:
        """So many rows of tokens, none of which matters."""

        def __init__(self, row: Tensor, count: int) -> None:
            self.row, self.count = row, count

        def __len__(self) -> int:
            return self.count

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return {"input_ids": self.row}

        def select(self, indices: range) -> "Tokens":
            return Tokens(self.row, len(indices))

    class Timed(Trainer):
        def save(self) -> None:
            """Only training is timed."""

    model = Stream()
    rows = len(model.tokens)
    config = TrainConfig(
        SparseCoderConfig(num_latents=sizes.features, k=sizes.k),
        batch_size=rows,
        optimizer="adam",
        hookpoints=["layer"],
        log_to_wandb=False,
    )
    dataset = Tokens(model.tokens[0], 10**9 * rows)
    trainer = Timed(config, dataset, model)

    def steps(count: int) -> None:
        dataset.count = (trainer.global_step + count) * rows
        trainer.fit()

    return steps


def saelens_steps(sizes: Sizes, device: torch.device) -> Steps:
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAETrainer
    from sae_lens.config import SAETrainerConfig

    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=sizes.width,
            d_sae=sizes.features,
            k=sizes.k,
            device=str(device),
            normalize_activations="expected_average_only_in",
        )
    )
    config = SAETrainerConfig(
        total_training_samples=10**5 * sizes.batch, train_batch_size_samples=sizes.batch, lr_end=3e-5, device=str(device)
    )
    stream = cycle(batches(sizes, device))
    trainer = SAETrainer(config, sae, stream)
    trainer.activation_scaler.estimate_scaling_factor(d_in=sizes.width, data_provider=stream, n_batches_for_norm_estimate=4)

    def steps(count: int) -> None:
        for _ in range(count):
            trainer.step(next(stream))
            trainer.n_training_steps += 1

    return steps


def dictionary_learning_steps(sizes: Sizes, device: torch.device) -> Steps:
    harvesting: Any = types.ModuleType("nnsight")
    harvesting.LanguageModel = None
    sys.modules["nnsight"] = harvesting
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    trainer = BatchTopKTrainer(
        steps=10**5, activation_dim=sizes.width, dict_size=sizes.features, k=sizes.k, layer=0, lm_name="none", device=str(device)
    )
    data = batches(sizes, device)
    factor = torch.cat(data).square().sum(1).mean().sqrt()
    stream, done = cycle(data), 0

    def steps(count: int) -> None:
        nonlocal done
        for _ in range(count):
            trainer.update(done, next(stream) / factor)
            done += 1

    return steps


LIBRARIES: dict[str, Callable[[Sizes, torch.device], Steps]] = {
    "sparsify": sparsify_steps,
    "sparsify_fit": sparsify_fit_steps,
    "saelens": saelens_steps,
    "dictionary_learning": dictionary_learning_steps,
}


def main() -> None:
    # Libraries greet on the standard output; answers alone go to the parent.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    question = json.loads(sys.stdin.readline())
    torch.set_num_threads(question["threads"])
    device = torch.device(question["device"])
    try:
        steps = LIBRARIES[sys.argv[1]](Sizes(**question["sizes"]), device)
        answer({"ready": True})
        for line in sys.stdin:
            synchronise(device)
            start = time.perf_counter()
            steps(json.loads(line)["steps"])
            synchronise(device)
            answer({"seconds": time.perf_counter() - start})
    except Exception as error:  # whatever it is, the benchmark that waits for an answer gets one, and it is raised on
        answer({"error": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()

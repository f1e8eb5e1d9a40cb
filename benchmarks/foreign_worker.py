"""Runs in the peers' environment: SAELens trains a BatchTopK dictionary with its own trainer and saves it in its own format.

    python -m benchmarks.foreign_worker ACTIVATIONS OUT --features N --k K --steps N --batch N --context N

`ACTIVATIONS` is a NumPy file [N, D] of activations behind block 12 of SmolLM2-135M. SAELens' own store of activations reads models from the
hub, which is not asked for here; its trainer takes any iterator of batches. Everything else is the library's: its normalisation of
activations, its optimizer and schedule, its folding at the end, and its files.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MODEL, LAYER = "HuggingFaceTB/SmolLM2-135M", 12


def batches(x: Tensor, size: int) -> Iterator[Tensor]:
    """Shuffled batches, pass after pass."""
    generator = torch.Generator().manual_seed(0)
    while True:
        for rows in torch.randperm(len(x), generator=generator).split(size):
            if len(rows) == size:
                yield x[rows].float()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("activations", type=Path)
    parser.add_argument("out", type=Path)
    for name in ("features", "k", "steps", "batch", "context"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAETrainer
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(0)
    x = torch.from_numpy(np.load(options.activations))
    hook = f"blocks.{LAYER}.hook_resid_post"
    metadata = SAEMetadata(model_name=MODEL, hook_name=hook, context_size=options.context, prepend_bos=False)
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=x.shape[1], d_sae=options.features, k=options.k, normalize_activations="expected_average_only_in", metadata=metadata
        )
    )
    samples = options.steps * options.batch
    config = SAETrainerConfig(
        total_training_samples=samples,
        train_batch_size_samples=options.batch,
        lr=1e-3,
        lr_end=1e-4,
        lr_decay_steps=options.steps // 5,
        lr_warm_up_steps=options.steps // 20,
        dead_feature_window=100,
        n_batches_for_norm_estimate=8,
    )
    SAETrainer(config, sae, batches(x, options.batch)).fit().save_inference_model(options.out)


if __name__ == "__main__":
    main()

"""Runs in the environment of `make parity`: sparse probing by the unmodified sae_bench 0.6.0, from a file that says on what.

    python -m tools.parity_worker JOB.json

The package fetches model and texts from a hub; here both come from the job. Its loader of texts is asked for nothing but names, so
the job's texts stand in for it; its loader of models is replaced by one that reads a local directory. With `stream: transformer_lens`
the model is TransformerLens's HookedTransformer, built by its own conversion of that directory; with `stream: transformers` it is the
same network as transformers runs it, behind the two things that the package uses of a model: `tokenizer` and `run_with_hooks`.
Tokens, masks, pooling, tasks, probes, averages and the JSON are the package's own.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ |= {"JAXTYPING_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import transformer_lens.loading_from_pretrained as loading
from sae_bench.evals.sparse_probing import main as sparse_probing
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
from sae_bench.evals.sparse_probing.eval_output import SparseProbingEvalOutput
from sae_bench.sae_bench_utils import dataset_info, dataset_utils
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.utilities.tokenize_utils import get_tokenizer_with_bos
from transformers import AutoModelForCausalLM, AutoTokenizer

from temporallens.interop.saebench import wrap

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Hook = tuple[str, Callable[..., Any]]


class TransformersModel:
    """A network of transformers behind what sae_bench uses of a HookedTransformer."""

    def __init__(self, folder: str, dtype: torch.dtype, padding_side: str) -> None:
        self.tokenizer = get_tokenizer_with_bos(AutoTokenizer.from_pretrained(folder))
        self.tokenizer.padding_side = padding_side
        self._network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).model.eval()

    @torch.no_grad()
    def run_with_hooks(self, tokens: Tensor, stop_at_layer: int, fwd_hooks: list[Hook]) -> None:
        """Run the blocks below `stop_at_layer` and show the stream after the last of them to the hook."""
        found: list[Tensor] = []
        self._network.layers = self._network.layers[:stop_at_layer]
        block = self._network.layers[stop_at_layer - 1]
        handle = block.register_forward_hook(
            lambda _module, _inputs, output: found.append(output[0] if isinstance(output, tuple) else output)
        )
        try:
            self._network(**self._arguments(tokens))
        finally:
            handle.remove()
        fwd_hooks[0][1](found[0], hook=None)

    def _arguments(self, tokens: Tensor) -> dict[str, Tensor]:
        if self.tokenizer.padding_side == "right":
            return {"input_ids": tokens}
        real = (tokens != self.tokenizer.pad_token_id).cumsum(1) > 0  # padding ends where the text begins
        return {"input_ids": tokens, "attention_mask": real.long(), "position_ids": (real.cumsum(1) - 1).clamp(min=0)}


def hooked_transformer(folder: str, dtype: torch.dtype, padding_side: str) -> HookedTransformer:
    """What `HookedTransformer.from_pretrained_no_processing` makes of a hub's model, of a local directory."""
    source = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    cfg = loading.get_pretrained_model_config(folder, dtype=dtype, device="cpu")
    weights = loading.get_pretrained_state_dict(folder, cfg, source, dtype=dtype)
    model = HookedTransformer(cfg, AutoTokenizer.from_pretrained(folder), move_to_device=False, default_padding_side=padding_side)
    plain = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices")
    model.load_and_process_state_dict(weights, **dict.fromkeys(plain, False))
    return model


STREAMS = {"transformers": TransformersModel, "transformer_lens": hooked_transformer}


def run(job: dict[str, Any]) -> None:
    """Evaluate the job's dictionary as the package does, and check that our JSON is one of its own."""
    torch.set_num_threads(job["threads"])
    config = SparseProbingEvalConfig(**job["config"])
    sets, folder = job["sets"], job["model_folder"]
    make = STREAMS[job["stream"]]

    def texts(name: str, *_sizes: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        return dict(sets[name]["train"]), dict(sets[name]["test"])

    def model(_name: str, device: str, dtype: torch.dtype) -> Any:
        return make(folder, dtype, job["padding"])

    with (
        mock.patch.object(dataset_utils, "get_multi_label_train_test_data", texts),
        mock.patch.dict(dataset_info.chosen_classes_per_dataset, {name: list(one["train"]) for name, one in sets.items()}),
        mock.patch.object(HookedTransformer, "from_pretrained_no_processing", model),
    ):
        sparse_probing.run_eval(
            config,
            [(job["release"], wrap(job["dictionary"], config.model_name, job["layer"]))],
            "cpu",
            job["out"],
            force_rerun=True,
            save_activations=False,
            artifacts_path=str(Path(job["out"]) / "artifacts"),
        )


def check(path: str) -> None:
    """Raise pydantic's complaint unless the file is a result of sae_bench, by its own model."""
    from pydantic import TypeAdapter

    TypeAdapter(SparseProbingEvalOutput).validate_json(Path(path).read_bytes())


if __name__ == "__main__":
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    if "check" in job:
        check(job["check"])
    else:
        run(job)

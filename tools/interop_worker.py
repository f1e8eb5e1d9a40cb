"""Runs in the environment of `make peers`: other libraries make small random dictionaries, save them, and say what they compute.

    python -m tools.interop_worker FOLDER [--width 16] [--features 48] [--tokens 64]

For every class that SAELens, dictionary_learning or sparsify can save, and for releases whose files SAELens converts, `FOLDER/<case>/` gets
the files as the library writes them (or, of releases, as their publishers do) and `expected.safetensors`: activations `x`, and the
library's `codes` and `reconstruction` of them. With `--read`, each folder in FOLDER holds `files/` that were exported from here, which are
loaded with the code of their card; `theirs.safetensors` gets what the library makes of the `x` of `ours.safetensors`. `request.json` holds
what a reader has to be told. Biases, thresholds and decoder rows are random, rows of any norm, so that nothing agrees by being zero or one.
`nnsight`, which dictionary_learning imports for collecting activations alone, is replaced by an empty module.
"""

import argparse
import json
import math
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ABOUT = {"model_name": "tiny", "hook_name": "blocks.3.hook_resid_post", "context_size": 64, "prepend_bos": True}


PAIR = ["blocks.3.hook_mlp_in", "blocks.3.hook_mlp_out"]
"""What SAELens' transcoders take, and what they give."""


class Answer:
    """What a library computes of the activations, and what a reader has to be told."""

    def __init__(self, codes: Tensor, reconstruction: Tensor, **request: Any) -> None:
        self.codes, self.reconstruction, self.request = codes, reconstruction, request


class Sizes:
    """Of every dictionary, with the activations and the random numbers of one case."""

    def __init__(self, width: int, features: int, tokens: int) -> None:
        self.width, self.features, self.tokens = width, features, tokens
        self.k = max(2, features // 8)

    def activations(self) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        return 2 * torch.randn(self.tokens, self.width, generator=generator) + torch.randn(self.width, generator=generator)


@torch.no_grad()
def randomised(module: nn.Module, seed: int = 1) -> None:
    """Every parameter and buffer of floating point: matrices of the size that gives pre-activations of order 1, biases of order 1/3,
    rows of the decoder of norms from 1/2 to 2, thresholds above 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted({**dict(module.named_parameters()), **dict(module.named_buffers())}.items()):
        if not tensor.is_floating_point():
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        if "threshold" in name:
            drawn = 0.2 + 0.8 * torch.rand(tensor.shape, generator=generator)
            drawn = drawn.log() if "log" in name else drawn
        elif tensor.ndim == 2:
            drawn /= math.sqrt(min(tensor.shape)) * (2 if "enc" in name else 1)
            if "dec" in name:
                features = int(tensor.shape[1] > tensor.shape[0])
                sizes = 0.5 + 1.5 * torch.rand(tensor.shape[features], generator=generator)
                drawn *= sizes[None, :] if features else sizes[:, None]
        else:
            drawn /= 3
        tensor.copy_(drawn)


# SAELens


def saelens(
    kind: str, training: bool = False, scale: float | None = None, wider: int = 0, **settings: Any
) -> Callable[[Path, Sizes], Answer]:
    """An architecture; `training` keeps the file of its trainer, where an inference file is what its codes are computed with. A transcoder
    gives activations that are so much `wider` than those that it takes."""

    @torch.no_grad()
    def make(folder: Path, sizes: Sizes) -> Answer:
        from sae_lens import SAE
        from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

        registry = SAE_TRAINING_CLASS_REGISTRY if training or kind not in SAE_CLASS_REGISTRY else SAE_CLASS_REGISTRY
        sae_class, config_class = registry[kind]
        given = {"d_in": sizes.width, "d_sae": sizes.features, "apply_b_dec_to_input": not kind.endswith("transcoder"), **settings}
        given |= {"d_out": sizes.width + wider} if kind.endswith("transcoder") else {}
        given |= {"k": sizes.k} if "topk" in kind else {}
        given |= {"matryoshka_widths": [sizes.features // 3, sizes.features]} if kind.startswith("matryoshka") else {}
        sae = sae_class(config_class(**given))
        heads = given.get("reshape_activations") == "hook_z"
        read = {"hook_name": "blocks.3.attn.hook_z"} if heads else {}
        if kind.endswith("transcoder"):
            read = {"hook_name": PAIR[0], "hook_name_out": PAIR[1]}
        for name, value in (ABOUT | read).items():
            sae.cfg.metadata[name] = value
        randomised(sae)
        x = sizes.activations().view(sizes.tokens, *((2, -1) if heads else (-1,)))
        if training:
            sae.save_model(folder)
        if registry is SAE_TRAINING_CLASS_REGISTRY:
            inference = folder.parent / f"{folder.name}.inference" if training else folder
            sae.save_inference_model(inference)
            sae = SAE.load_from_disk(inference) if "batchtopk" in kind else sae
            if training:
                for file in inference.iterdir():
                    file.unlink()
                inference.rmdir()
        else:
            sae.save_model(folder)
            sae = SAE.load_from_disk(folder)
        if given.get("normalize_activations") == "expected_average_only_in":
            assert scale is not None
            (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": scale, "has_whitening": False}))
            sae.fold_activation_norm_scaling_factor(scale)
        if given.get("normalize_activations") == "covariance_whitening":
            whitening = _whitening(sizes.width)
            save_file(whitening, folder / "activation_whitening.safetensors")
            sae.fold_activation_whitening(whitening["mean"], whitening["matrix"], whitening["inverse_matrix"])
        codes = sae.encode(x)
        sae.encode(x)  # what normalises keeps the norms of the rows that it saw last, and forgets them when it decodes
        if kind.endswith("transcoder"):
            return Answer(codes, sae(x), pair=PAIR)
        return Answer(codes, sae.decode(codes).flatten(1))

    return make


def _whitening(width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(width, width, generator=generator) / math.sqrt(width) + torch.eye(width)
    return {"mean": torch.randn(width, generator=generator), "matrix": matrix, "inverse_matrix": torch.linalg.inv(matrix).contiguous()}


@torch.no_grad()
def saelens_log_threshold(folder: Path, sizes: Sizes) -> Answer:
    """A JumpReLU as trainers of earlier versions kept it."""
    answer = saelens("jumprelu", training=True)(folder, sizes)
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    tensors["log_threshold"] = tensors.pop("threshold").log()
    save_file(tensors, path)
    return answer


@torch.no_grad()
def saelens_half(folder: Path, sizes: Sizes) -> Answer:
    """Weights of bfloat16, computed in float32."""
    from sae_lens import SAE

    saelens("jumprelu", dtype="bfloat16")(folder, sizes)
    sae = SAE.load_from_disk(folder, dtype="float32")
    codes = sae.encode(sizes.activations())
    return Answer(codes, sae.decode(codes))


# dictionary_learning


def dictionary_learning(kind: str, norms_in_codes: bool = False) -> Callable[[Path, Sizes], Answer]:
    @torch.no_grad()
    def make(folder: Path, sizes: Sizes) -> Answer:
        _without_harvesting()
        from dictionary_learning import dictionary, trainers

        made = getattr(dictionary, kind, None) or getattr(trainers, kind, None) or _trainers(kind)
        given: list[Any] = [sizes.width, sizes.features]
        given += [sizes.k] if "TopK" in kind else []
        given += [[sizes.features // 3, sizes.features - sizes.features // 3]] if kind.startswith("Matryoshka") else []
        autoencoder = made(*given)
        randomised(autoencoder)
        torch.save(autoencoder.state_dict(), folder / "ae.pt")
        trainer = {"dict_class": kind, "activation_dim": sizes.width, "dict_size": sizes.features, "layer": 3, "lm_name": "tiny"}
        trainer |= {"k": sizes.k} if "TopK" in kind else {}
        (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 64}}))
        if norms_in_codes:
            autoencoder.normalize_decoder()
        codes = autoencoder.encode(sizes.activations())
        return Answer(codes, autoencoder.decode(codes), **({"fold": True} if norms_in_codes else {}))

    return make


def _trainers(kind: str) -> Any:
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    return next(getattr(module, kind) for module in (top_k, batch_top_k, matryoshka_batch_top_k) if hasattr(module, kind))


# sparsify


def sparsify(multi: bool = False, point: str = "layers.3", **settings: Any) -> Callable[[Path, Sizes], Answer]:
    @torch.no_grad()
    def make(folder: Path, sizes: Sizes) -> Answer:
        from sparsify import SparseCoder, SparseCoderConfig

        coder = SparseCoder(sizes.width, SparseCoderConfig(num_latents=sizes.features, k=sizes.k, multi_topk=multi, **settings))
        randomised(coder)
        coder.save_to_disk(folder / point)
        (folder / "config.json").write_text(json.dumps({"model": "tiny", "ctx_len": 64}))
        x = sizes.activations()
        encoded = coder.encode(x)
        codes = torch.zeros(sizes.tokens, sizes.features).scatter_(1, encoded.top_indices, encoded.top_acts)
        if multi:  # its `forward` then gives what four times as many codes decode to
            return Answer(codes, coder.decode(encoded.top_acts, encoded.top_indices), folder=point, k=sizes.k)
        pair = {"pair": ["blocks.3.mlp.hook_in", point]} if coder.cfg.transcode else {}
        return Answer(codes, coder(x).sae_out, folder=point, **pair)

    return make


# Releases whose files SAELens converts


def _converted(
    folder: Path, loader: str, repository: str, inner: str, sizes: Sizes, scale: float | None = None, **overrides: Any
) -> Answer:
    """By SAELens' own loader of a release, which gets the files in `folder` instead of the hub's."""
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def local(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        return str(folder / "/".join(part for part in (subfolder, filename) if part))

    def shapes(_repository: str, filename: str) -> dict[str, list[int]]:
        return {name: list(tensor.shape) for name, tensor in load_file(folder / filename).items()}

    with mock.patch.object(loaders, "hf_hub_download", local), mock.patch.object(loaders, "get_safetensors_tensor_shapes", shapes):
        config, state, _ = getattr(loaders, loader)(repository, inner, "cpu", False, {"dtype": "float32", **overrides})
    config = loaders.handle_config_defaulting(config)
    sae = SAE.from_dict(config)
    sae.load_state_dict(state)
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    x = sizes.activations()
    return Answer(sae.encode(x), sae(x), folder=inner)


def _release(sizes: Sizes, seed: int = 5) -> dict[str, Tensor]:
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig

    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=sizes.width, d_sae=sizes.features))
    randomised(sae, seed)
    return {name: tensor.detach().contiguous() for name, tensor in sae.state_dict().items()}


@torch.no_grad()
def gemma_scope(folder: Path, sizes: Sizes) -> Answer:
    inner = "layer_3/width_16k/average_l0_71"
    (folder / inner).mkdir(parents=True)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in _release(sizes).items()}
    np.savez(folder / inner / "params.npz", **arrays)
    return _converted(
        folder, "gemma_2_sae_huggingface_loader", "google/gemma-scope-2b-pt-res", inner, sizes, d_in=sizes.width, d_sae=sizes.features
    )


@torch.no_grad()
def gemma_scope_2(kind: str) -> Callable[[Path, Sizes], Answer]:
    def make(folder: Path, sizes: Sizes) -> Answer:
        inner = f"{kind}/layer_3_width_16k_l0_small"
        (folder / inner).mkdir(parents=True)
        tensors = {name.replace("W_", "w_"): tensor for name, tensor in _release(sizes).items()}
        config: dict[str, Any] = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.3.output"}
        if kind.startswith("transcoder"):
            generator = torch.Generator().manual_seed(2)
            tensors["affine_skip_connection"] = torch.randn(sizes.width, sizes.width, generator=generator) / 4
            config |= {"affine_connection": True, "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output"}
            config["hf_hook_point_in"] = "model.layers.3.pre_feedforward_layernorm.output"
        save_file(tensors, folder / inner / "params.safetensors")
        (folder / inner / "config.json").write_text(json.dumps(config))
        answer = _converted(folder, "gemma_3_sae_huggingface_loader", "google/gemma-scope-2-1b-pt", inner, sizes)
        if kind.startswith("transcoder"):
            answer.request["pair"] = ["layers.3.pre_feedforward_layernorm", "layers.3.post_feedforward_layernorm"]
        return answer

    return make


@torch.no_grad()
def llama_scope(folder: Path, sizes: Sizes) -> Answer:
    """Decoder rows of unit norm and equal scales of input and output: where they are not, SAELens leaves both out of account."""
    inner, norm = "Llama3_1-8B-Base-L3R-8x", 11.0
    (folder / inner / "checkpoints").mkdir(parents=True)
    tensors = _release(sizes)
    tensors["W_dec"] /= tensors["W_dec"].norm(dim=1, keepdim=True)
    names = {
        "encoder.weight": tensors["W_enc"].T,
        "encoder.bias": tensors["b_enc"],
        "decoder.weight": tensors["W_dec"].T,
        "decoder.bias": tensors["b_dec"],
    }
    save_file({name: tensor.contiguous() for name, tensor in names.items()}, folder / inner / "checkpoints" / "final.safetensors")
    config = {
        "d_model": sizes.width,
        "d_sae": sizes.features,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 1.4,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
        "hook_point_in": "blocks.3.hook_resid_post",
        "hook_point_out": "blocks.3.hook_resid_post",
    }
    (folder / inner / "hyperparams.json").write_text(json.dumps(config))
    scale = sizes.width**0.5 / norm
    return _converted(folder, "llama_scope_sae_huggingface_loader", "fnlp/Llama3_1-8B-Base-LXR-8x", inner, sizes, scale)


# Files that were written here


def _without_harvesting() -> None:
    """Let dictionary_learning be imported without what it collects activations with."""
    harvesting: Any = types.ModuleType("nnsight")
    harvesting.LanguageModel = None
    sys.modules["nnsight"] = harvesting


@torch.no_grad()
def read_back(case: Path) -> None:
    """Load exported files as their card says, and compute with them."""
    request, x = json.loads((case / "request.json").read_text()), load_file(case / "ours.safetensors")["x"]
    code = (case / "files" / "README.md").read_text().split("```python\n", 1)[1].split("```", 1)[0]
    known: dict[str, Any] = {}
    exec(code.replace("FOLDER", str(case / "files")), known)  # our own card's, which is what is tested
    sae = known["sae"]
    if request["form"] == "sparsify":
        encoded = sae.encode(x)
        codes = torch.zeros(len(x), sae.num_latents).scatter_(1, encoded.top_indices, encoded.top_acts)
        reconstruction, kind = sae(x).sae_out, "topk"
    else:
        codes = sae.encode(x)
        reconstruction, kind = sae.decode(codes), type(sae).__name__
    if request["form"] == "saelens":
        kind = sae.cfg.architecture()
    theirs = {"codes": codes, "reconstruction": reconstruction}
    save_file({name: tensor.detach().float().contiguous().clone() for name, tensor in theirs.items()}, case / "theirs.safetensors")
    (case / "theirs.json").write_text(json.dumps({**request, "class": kind}))


CASES: dict[str, Callable[[Path, Sizes], Answer]] = {
    "saelens standard": saelens("standard"),
    "saelens standard, b_dec kept": saelens("standard", apply_b_dec_to_input=False),
    "saelens standard, layer_norm": saelens("standard", normalize_activations="layer_norm"),
    "saelens standard, constant_norm_rescale": saelens("standard", normalize_activations="constant_norm_rescale"),
    "saelens standard, expected_average_only_in": saelens("standard", normalize_activations="expected_average_only_in", scale=0.37),
    "saelens standard, covariance_whitening": saelens("standard", normalize_activations="covariance_whitening"),
    "saelens topk": saelens("topk"),
    "saelens topk, rescale_acts_by_decoder_norm": saelens("topk", rescale_acts_by_decoder_norm=True),
    "saelens topk, layer_norm": saelens("topk", normalize_activations="layer_norm", rescale_acts_by_decoder_norm=True),
    "saelens topk, covariance_whitening": saelens("topk", normalize_activations="covariance_whitening", rescale_acts_by_decoder_norm=True),
    "saelens jumprelu": saelens("jumprelu"),
    "saelens jumprelu, hook_z": saelens("jumprelu", reshape_activations="hook_z", apply_b_dec_to_input=False),
    "saelens jumprelu, bfloat16": saelens_half,
    "saelens jumprelu, log_threshold": saelens_log_threshold,
    "saelens jumprelu, constant_norm_rescale": saelens("jumprelu", normalize_activations="constant_norm_rescale"),
    "saelens jumprelu, covariance_whitening": saelens("jumprelu", normalize_activations="covariance_whitening", apply_b_dec_to_input=False),
    "saelens gated": saelens("gated"),
    "saelens gated, expected_average_only_in": saelens("gated", normalize_activations="expected_average_only_in", scale=2.1),
    "saelens gated, covariance_whitening": saelens("gated", normalize_activations="covariance_whitening", apply_b_dec_to_input=False),
    "saelens batchtopk": saelens("batchtopk"),
    "saelens batchtopk, of a training": saelens("batchtopk", training=True),
    "saelens matryoshka_batchtopk": saelens("matryoshka_batchtopk"),
    "saelens matryoshka_batchtopk, of a training": saelens("matryoshka_batchtopk", training=True, rescale_acts_by_decoder_norm=False),
    "saelens transcoder": saelens("transcoder"),
    "saelens skip_transcoder": saelens("skip_transcoder"),
    "saelens jumprelu_transcoder": saelens("jumprelu_transcoder", normalize_activations="layer_norm"),
    "saelens jumprelu_skip_transcoder": saelens("jumprelu_skip_transcoder"),
    "saelens jumprelu_transcoder, d_out": saelens("jumprelu_transcoder", wider=3),
    "saelens skip_transcoder, d_out": saelens("skip_transcoder", normalize_activations="constant_norm_rescale", wider=-2),
    "dictionary_learning AutoEncoder": dictionary_learning("AutoEncoder"),
    "dictionary_learning AutoEncoder, norms in codes": dictionary_learning("AutoEncoder", norms_in_codes=True),
    "dictionary_learning AutoEncoderNew": dictionary_learning("AutoEncoderNew"),
    "dictionary_learning GatedAutoEncoder": dictionary_learning("GatedAutoEncoder"),
    "dictionary_learning JumpReluAutoEncoder": dictionary_learning("JumpReluAutoEncoder"),
    "dictionary_learning AutoEncoderTopK": dictionary_learning("AutoEncoderTopK"),
    "dictionary_learning BatchTopKSAE": dictionary_learning("BatchTopKSAE"),
    "dictionary_learning MatryoshkaBatchTopKSAE": dictionary_learning("MatryoshkaBatchTopKSAE"),
    "sparsify topk": sparsify(),
    "sparsify topk, skip_connection": sparsify(skip_connection=True),
    "sparsify topk, multi_topk": sparsify(multi=True),
    "sparsify groupmax": sparsify(activation="groupmax"),
    "sparsify transcoder": sparsify(point="layers.3.mlp", transcode=True),
    "sparsify transcoder, skip_connection": sparsify(point="layers.3.mlp", transcode=True, skip_connection=True),
    "gemma_scope": gemma_scope,
    "gemma_scope_2": gemma_scope_2("resid_post"),
    "gemma_scope_2 transcoder": gemma_scope_2("transcoder"),
    "llama_scope": llama_scope,
}
"""By library and class; what follows a comma is a variant of the same format."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    for name, size in {"width": 16, "features": 48, "tokens": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--read", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.read:
        _without_harvesting()
        for case in sorted(options.folder.iterdir()):
            read_back(case)
        return
    sizes = Sizes(options.width, options.features, options.tokens)
    for case, make in CASES.items():
        folder = options.folder / case.replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        answer = make(folder, sizes)
        expected = {"x": sizes.activations(), "codes": answer.codes, "reconstruction": answer.reconstruction}
        save_file(
            {name: tensor.detach().float().contiguous().clone() for name, tensor in expected.items()}, folder / "expected.safetensors"
        )
        (folder / "request.json").write_text(json.dumps({"case": case, **answer.request}))


if __name__ == "__main__":
    main()

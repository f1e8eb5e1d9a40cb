"""SAEBench: our dictionaries as objects that its unmodified package evaluates, and our sparse probing as the JSON that it writes.

`wrap` gives a dictionary the face of an SAE of sae_bench 0.6.0. The package passes no positions, so they are inferred from the input:
a padded or masked token is a row of zeros (`passes.rule_positions`). `sparse_probing_json` lays results out as the package's own output
does, key by key in its order (docs/formats.md, "SAEBench's JSON"); `probe_folder` does everything for a saved dictionary.
The package itself is not needed here.
"""

import copy
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from temporallens import __version__
from temporallens.activations.language.hooks import block_of, hook_of, layer_named
from temporallens.activations.language.models import Layer
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.inputs import known_policy
from temporallens.dictionaries.saving import load_dictionary, read_config
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.passes import rule_positions
from temporallens.evaluation.probing.saebench import DividedSet, SparseProbing, SparseProbingPolicy, sparse_probing
from temporallens.evaluation.texts.labelled import LabelledSet
from temporallens.files import user_path, write_text

PROTOCOL = "sae_bench 0.6.0"
K_VALUES = (1, 2, 5, 10, 20, 50, 100)
"""For which numbers of features SAEBench's format has a field; others stand among the unstructured results only, as they do there."""
METRICS = "eval_result_metrics"
"""The key of the means over sets and classes in its JSON."""
CUSTOM = "custom_sae"
"""What SAEBench calls an SAE that is no release of SAELens."""

PositionPolicy = int | Literal["mean"]


@dataclass
class SAEConfig:
    """What the package reads of an SAE's configuration; it sets further attributes of its own, so this is not frozen."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    architecture: str
    dtype: str = "float32"
    device: str = "cpu"
    prepend_bos: bool = True
    """Whether rows open with BOS, from which positions are inferred."""
    position_policy: PositionPolicy | None = None
    """The position that codes of `[N, d]` input are computed for, where the package has lost it; None: such input is refused."""
    context_size: int | None = None
    hook_head_index: int | None = None
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    finetuning_scaling_factor: bool = False
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    exclude_special_tokens: bool = True
    """Positions 0 and special tokens were left out of training."""
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = -1
    """How many activations the dictionary was trained on; -1: not known."""
    temporallens: dict[str, Any] = field(default_factory=dict)
    """The arm, where it is known."""

    def to_dict(self) -> dict[str, Any]:
        """These fields, without what the package has set beside them."""
        return asdict(self)


class SAEBenchSAE(nn.Module):
    """A dictionary as sae_bench takes it. Made by `wrap`.

    The weights that it shows follow the dtype that the package requests. Codes are computed by the dictionary itself, whose weights,
    tables and thresholds stay float32 and whose positions stay integers; they are rounded to the dtype of the input at the end.
    """

    def __init__(self, dictionary: Dictionary, cfg: SAEConfig) -> None:
        super().__init__()
        self.cfg = cfg
        copied = copy.copy(dictionary)  # the weights are shared, the policy is not
        if cfg.position_policy is not None:
            copied.position_policy = cfg.position_policy
        self._held = (copied,)  # in a tuple, so that a cast of this module does not reach the dictionary
        self.W_enc = nn.Parameter(dictionary.encoder.detach().T.clone())
        self.b_enc = nn.Parameter(dictionary.encoder_bias.detach().clone())
        self.W_dec = nn.Parameter(dictionary.decoder.detach().clone())
        self.b_dec = nn.Parameter(dictionary.decoder_bias.detach().clone())

    @property
    def dictionary(self) -> Dictionary:
        """The dictionary that answers, on the device of this module."""
        return self._held[0]

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        return self.W_dec.dtype

    def _apply(self, fn: Any, recurse: bool = True) -> "SAEBenchSAE":
        super()._apply(fn, recurse)
        self.dictionary.to(self.device)
        self.cfg.dtype, self.cfg.device = str(self.dtype).removeprefix("torch."), str(self.device)
        return self

    def positions(self, x: Float[Tensor, "B L d"]) -> Tensor:
        """Where the rows of `x` stand, inferred from which of them are zero, as the package hands over no tokens; see
        `passes.rule_positions` for where that goes wrong."""
        return rule_positions((x != 0).any(-1), self.cfg.prepend_bos)

    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch F"]:
        """Codes. `[N, d]` input has lost its positions: a dictionary that needs them refuses it unless a policy was set."""
        return self.dictionary.encode(x, self.positions(x) if x.ndim == 3 else None).to(x.dtype)

    def decode(self, feature_acts: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch d"]:
        """Reconstructions. Codes do not show their positions: `[B, L, F]` is taken to stand at 0 to L - 1, as unpadded rows do."""
        return self.dictionary.decode(feature_acts.to(self.dictionary.decoder.dtype)).to(feature_acts.dtype)

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Encode and decode at the same positions."""
        positions = self.positions(x) if x.ndim == 3 else None
        return self.dictionary(x, positions).to(x.dtype)


def wrap(
    dictionary: Dictionary | Path | str,
    model_name: str | None = None,
    layer: Layer | None = None,
    *,
    prepend_bos: bool | None = None,
    position_policy: PositionPolicy | None = None,
) -> SAEBenchSAE:
    """A dictionary, or the one saved in a folder, as an SAE of sae_bench.

    Of a saved one, model, layer and BOS need not be given: its metadata has them. With `position_policy` (a position, or `mean` for the
    mean mask) `[N, d]` input is taken, too, for the evaluations that lose positions; the policy stands in `cfg` and so in their results.
    """
    about = UNKNOWN
    if not isinstance(dictionary, Dictionary):
        about, dictionary = origin(dictionary), load_dictionary(dictionary)
    if dictionary.config.expectation is not None:
        raise TemporalLensError(
            "this dictionary takes off what tokens say, and SAEBench hands no tokens over: measure it with the probing of this package"
        )
    return SAEBenchSAE(dictionary, _config(dictionary, about, model_name, layer, prepend_bos, position_policy))


class Origin(NamedTuple):
    """What a saved dictionary records of the activations that it was trained on."""

    model: str | None
    revision: str | None
    layer: Layer | None
    bos: bool
    clock: str
    ours: dict[str, Any]  # all of its `metadata.temporallens`


def origin(folder: Path | str) -> Origin:
    """What the dictionary saved in `folder` records of its model; None for what it does not record."""
    ours = read_config(folder)["metadata"]["temporallens"]
    source, policies = (ours.get(name) if isinstance(ours.get(name), dict) else {} for name in ("source", "policies"))
    if source.get("kind") != "model":
        source = {}
    clock = str(policies.get("clock", "index"))
    return Origin(source.get("model"), source.get("revision"), source.get("layer"), bool(policies.get("bos", True)), clock, ours)


UNKNOWN = Origin(None, None, None, True, "index", {})


def _config(
    dictionary: Dictionary,
    about: Origin,
    model_name: str | None,
    layer: Layer | None,
    prepend_bos: bool | None,
    position_policy: PositionPolicy | None,
) -> SAEConfig:
    """What the package is given of a dictionary; what is None comes from where the dictionary was trained."""
    if layer is not None and about.layer is not None and layer != about.layer:
        trained = f"layer {about.layer} of {about.model}"
        raise TemporalLensError(f"the dictionary was trained on {trained}, not on layer {layer}; leave the layer out")
    model_name = about.model if model_name is None else model_name
    layer = about.layer if layer is None else layer
    if model_name is None or layer is None:
        raise TemporalLensError("the dictionary does not say which model and layer it was trained on: name both")
    if dictionary.position_aware and about.clock != "index":
        raise TemporalLensError(
            f"this dictionary counts positions by the clock '{about.clock}', and SAEBench's protocol can tell the index in a row only"
        )
    training = about.ours.get("training")
    return SAEConfig(
        model_name=model_name,
        d_in=dictionary.width,
        d_sae=dictionary.features,
        hook_layer=max(block_of(layer), 0),
        hook_name="blocks.0.hook_resid_pre" if layer == "embed" else str(layer) if hook_of(layer) else f"blocks.{layer}.hook_resid_post",
        architecture=f"temporallens_{dictionary.kind}",
        prepend_bos=about.bos if prepend_bos is None else prepend_bos,
        position_policy=known_policy(dictionary.position_policy if position_policy is None else position_policy),
        context_size=about.ours.get("positions"),
        training_tokens=int(training.get("tokens_seen", -1)) if isinstance(training, dict) else -1,
        temporallens={"arm": about.ours["arm"]} if "arm" in about.ours else {},
    )


def sparse_probing_json(probing: SparseProbing, sae: SAEConfig, release: str) -> dict[str, Any]:
    """Results as sae_bench writes them. `eval_id` and the time are new with every call, all else follows from the arguments."""
    policy = probing.policy
    averages, by_set = probing.averages(), probing.by_set()
    return {
        "eval_type_id": "sparse_probing",
        "eval_config": {
            "random_seed": policy.random_seed,
            "dataset_names": list(probing.accuracies),
            "probe_train_set_size": policy.probe_train_set_size,
            "probe_test_set_size": policy.probe_test_set_size,
            "context_length": policy.context_length,
            "sae_batch_size": policy.sae_batch_size,
            "llm_batch_size": policy.llm_batch_size,
            "llm_dtype": policy.llm_dtype,
            "model_name": probing.model,
            "k_values": list(policy.k_values),
            "lower_vram_usage": False,
        },
        "eval_id": str(uuid.uuid4()),
        "datetime_epoch_millis": int(time.time() * 1000),
        METRICS: {"llm": _metrics(averages, "llm"), "sae": _metrics(averages, "sae")},
        "eval_result_details": [
            {"dataset_name": f"{name}_results", **_metrics(means, "llm"), **_metrics(means, "sae")} for name, means in by_set.items()
        ],
        "sae_bench_commit_hash": f"TemporalLens {__version__}, protocol of {PROTOCOL}",
        "sae_lens_id": CUSTOM,
        "sae_lens_release_id": release,
        "sae_lens_version": None,
        "sae_cfg_dict": sae.to_dict(),
        "eval_result_unstructured": {f"{name}_results": metrics for name, metrics in probing.accuracies.items()},
    }


def _metrics(means: dict[str, float], what: Literal["llm", "sae"]) -> dict[str, float | None]:
    """The fields of the format, null where a number of features was not requested."""
    names = [f"{what}_test_accuracy", *(f"{what}_top_{k}_test_accuracy" for k in K_VALUES)]
    return {name: means.get(name) for name in names}


WRITTEN = f"_{CUSTOM}_eval_results.json"
"""How the names of its files end."""


def probe_folder(
    folder: Path | str,
    sets: Sequence[LabelledSet | DividedSet],
    policy: SparseProbingPolicy,
    out: Path | str,
    *,
    model: str | None = None,
    layer: Layer | None = None,
) -> Path:
    """Probe the dictionary saved in `folder` and write SAEBench's JSON into the folder `out`; returns its path.

    Model and layer are those that the dictionary was trained on, unless `model` names another path of it. Activations
    are cached in `out/cache`, so that the next dictionary of the layer is quick. Raises TemporalLensError for another layer or width.
    """
    about, dictionary = origin(folder), load_dictionary(folder)
    cfg = _config(dictionary, about, model, layer, policy.bos, None)
    where = layer_named(cfg.hook_name)
    revision = about.revision if model is None else None
    probing = sparse_probing(dictionary, cfg.model_name, where, sets, policy, user_path(out) / "cache", revision)
    resolved = user_path(folder).resolve()
    release = f"{resolved.parent.name}/{resolved.name}"
    path = user_path(out) / f"{release}{WRITTEN}".replace("/", "_")
    write_text(path, json.dumps(sparse_probing_json(probing, cfg, release), indent=2, allow_nan=False) + "\n")
    return path

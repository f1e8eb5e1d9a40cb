"""What a language model makes of single tokens: the activation of each right behind the token that opens a row."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens.activations.language.loading import loading_of
from temporallens.activations.language.model_files import same_content
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError

TOGETHER = 512
"""Tokens in a pass."""


@torch.no_grad()
def unigram_activations(store: ActivationStore, tokens: Int[Tensor, " V"]) -> Float[Tensor, "V D"]:
    """Of these tokens, at the layer of the store, in float32.

    Raises TemporalLensError where the store is not of a language model, or that has changed since, or opens no row.
    """
    source: dict[str, Any] = store.manifest.description.source
    policies = store.manifest.description.policies
    dtype: Any = policies.get("compute_dtype", store.manifest.description.dtype)
    if source.get("kind") != "model":
        raise TemporalLensError(
            f"{store.folder} was not harvested from a language model, so there is none to read single tokens with: give start: mean"
        )
    model = LanguageModel.load(
        source["model"], up_to=source["layer"], dtype=dtype, revision=source["revision"], loading=loading_of(policies)
    )
    if not same_content(source["revision"], model.name, model.revision):
        raise TemporalLensError(f"{model.title} has changed since {store.folder} was harvested; remove that folder and harvest again")
    if model.bos is None:
        raise TemporalLensError(f"{model.title} has no token that opens a row, behind which single tokens could be read: give start: mean")
    found = []
    for part in tokens.split(TOGETHER):
        rows = torch.stack([torch.full_like(part, model.bos), part], dim=1)
        streams = model.residuals(rows, torch.ones_like(rows, dtype=torch.bool), [source["layer"]])
        found.append(streams[source["layer"]][:, 1].float().cpu())
    return torch.cat(found)

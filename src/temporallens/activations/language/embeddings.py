"""The embedding of every token of a model's vocabulary, for what tokens alone say of an activation."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from temporallens.activations.language.model_files import same_content
from temporallens.activations.language.models import LanguageModel
from temporallens.errors import TemporalLensError


def token_embeddings(source: dict[str, Any], where: object) -> Float[Tensor, "V E"]:
    """Of the model that a store's `source` names, float32. Raises TemporalLensError where there is none, or it has changed since."""
    if source.get("kind") != "model":
        raise TemporalLensError(
            f"{where} was not harvested from a language model, so there is no embedding to read: give the expectation embedding: false "
            "and token: table or pair"
        )
    model = LanguageModel.load(source["model"], up_to="embed", revision=source["revision"])
    if not same_content(source["revision"], model.name, model.revision):
        raise TemporalLensError(f"{model.title} has changed since {where} was harvested from it; remove that folder and harvest again")
    return model.embeddings.to(torch.float32)

"""What a mask does on held-out documents (`docs/method.md`, "Metrics")."""

import numpy as np
import torch
from jaxtyping import Int

from temporallens.activations.clocks import at_positions
from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import Dictionary


@torch.inference_mode()
def closed_mass(dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"]) -> float | None:
    """Share of would-be activation, codes as they were if the mask were open everywhere, that the mask removes: 0 where it does nothing.

    None for a dictionary without a mask, or where nothing would fire.
    """
    gates = dictionary.gates_by_position()
    if gates is None:
        return None
    removed, whole = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for rows in sequential(store, held_out):
        kept = rows.excluded == 0
        position = rows.position[kept].long()
        codes = dictionary.ungated(rows.x[kept].float(), position)
        whole += codes.sum(dtype=torch.float64)
        removed += (codes * (1 - at_positions(gates, position))).sum(dtype=torch.float64)
    return float(removed / whole) if whole > 0 else None

"""What tokens say of activations, fitted once for all arms of a training that ask for the same, and kept beside its checkpoint."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int

from temporallens import processes
from temporallens.activations.language.embeddings import token_embeddings
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import ArmConfig
from temporallens.dictionaries.expectations.fitting import fit_expectation, stored_chunks
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.dictionaries.expectations.tables import Expectation, load_expectation
from temporallens.files import fingerprint
from temporallens.training.objective import Inputs
from temporallens.training.scales import PositionScales


class Expectations:
    """Those of one training, by what is asked for: made when first asked for, or read where an interrupted run made it."""

    def __init__(
        self, store: ActivationStore, train: Int[np.ndarray, " n"], inputs: Inputs, scales: PositionScales, checkpoint: Path
    ) -> None:
        self._store, self._train, self._inputs, self._scales, self._checkpoint = store, train, inputs, scales, checkpoint
        self._made: dict[Path, Expectation] = {}

    def of(self, arm: ArmConfig, among: Bool[np.ndarray, " n"] | None = None) -> Expectation | None:
        """In the units of training; None where the arm asks for none. With `among`, of these of the training entries only.

        Raises TemporalLensError as `fit_expectation` does.
        """
        policy = arm.expectation
        if policy is None or policy.token is None:
            return None
        by_position = arm.centre != "pooled"
        asked = policy.model_dump(mode="json", exclude={"past", "decay", "past_of"})
        key = fingerprint([asked, by_position, "" if among is None else among.tolist()])[:16]
        file = self._checkpoint.with_name(f"{self._checkpoint.stem}-expectation-{key}.safetensors")
        if file not in self._made:
            if not processes.told(file.exists):
                train = self._train if among is None else self._train[among]
                processes.once(lambda: self._fitted(policy, by_position, train).save(file))
            self._made[file] = load_expectation(file, self._store.width).scaled(self._inputs.scale)
        return self._made[file]

    def _fitted(self, policy: ExpectationPolicy, by_position: bool, train: Int[np.ndarray, " n"]) -> Expectation:
        mean = self._inputs.centre.double().expand(self._store.positions, -1)
        if by_position:
            mean = mean + self._scales.offset.double() / self._inputs.scale
        source = self._store.manifest.description.source
        with torch.no_grad():
            chunks, where = stored_chunks(self._store, train, policy), self._store.folder
            return fit_expectation(chunks, mean, policy, lambda: token_embeddings(source, where), where)

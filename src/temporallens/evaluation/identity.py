"""What dictionaries and stores are, in a fingerprint each: what the keys of everything that is kept of them are made of."""

from typing import Any

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.inputs import known_policy
from temporallens.files import fingerprint, tensor_digest


def dictionary_fingerprint(dictionary: Dictionary) -> str:
    """SHA-256 of what a saved dictionary is: its arm, its tensors, and its settings at inference."""
    settings: list[Any] = [dictionary.config.model_dump(mode="json"), dictionary.record(), known_policy(dictionary.position_policy)]
    if dictionary.expectation is not None:
        settings.append(dictionary.expectation.digest)
    return fingerprint([*settings, tensor_digest(dictionary.state_dict())])


def store_fingerprint(store: ActivationStore) -> str:
    """SHA-256 of everything that the store holds, and its target."""
    own = store.manifest.model_dump(mode="json")
    return fingerprint(own if store.target is None else [own, store.target.manifest.model_dump(mode="json")])

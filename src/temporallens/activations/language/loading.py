"""How transformers is to hold a model that is too large, or too slow, as its files have it: spread over devices, in eight bits, with
another implementation of attention. Packages for the first two are the extra `large`.
"""

import importlib.util
import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from torch import Tensor

from temporallens import processes
from temporallens.activations.language.block_stack import Network
from temporallens.errors import TemporalLensError
from temporallens.settings import Settings

PACKAGES = {"weights": "torchao", "device_map": "accelerate"}

Memory = Annotated[str, Field(pattern=r"^\d+(\.\d+)?\s?[KMGT]i?B$")]
"""Such as 20GiB."""
NUMBER = re.compile(r"0|[1-9][0-9]{0,3}")
GPU = Annotated[int, Field(ge=0, lt=1024)]
"""By its number."""


class Loading(Settings):
    """What stands under `loading:` beside a model. Stores that were read in different ways are different stores."""

    weights: Literal["int8"] | None = None
    """In what the weights of linear maps are held: `int8`, with one scale a row (torchao), is a quarter of float32. What they are
    multiplied with is not rounded, so that a row's activations do not depend on the rows beside it, as those of bitsandbytes' 8 bits do.
    None: in what the model computes in."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"] | None = None
    """As transformers names them; None: its choice, which is sdpa where the model has it."""
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = None
    """As accelerate spreads blocks over all GPUs, then the processor's memory, then the disk; None: all of it on one device."""
    max_memory: dict[GPU | Literal["cpu"], Memory] | None = None
    """With a device map: what a model may take of each device, by the number of a GPU or `cpu`, such as `{0: 20GiB, cpu: 60GiB}`. What a
    dictionary needs beside it is not known to accelerate."""

    @field_validator("max_memory", mode="before")
    @classmethod
    def _numbered(cls, given: Any) -> Any:
        """The number of a GPU may be in quotes, as JSON has all keys, and as YAML has them that is made of it."""
        if not isinstance(given, dict):
            return given
        return {int(key) if isinstance(key, str) and NUMBER.fullmatch(key) else key: memory for key, memory in given.items()}

    @model_validator(mode="after")
    def _consistent(self) -> "Loading":
        if self.max_memory is not None and self.device_map is None:
            raise ValueError("max_memory limits what a device map gives to each device: name a device_map, too")
        return self

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def check_here(self, title: str, device: str | None) -> None:
        """Raise TemporalLensError where this cannot be done here: by packages, processes, or a device that was asked for."""
        for option, package in PACKAGES.items():
            if getattr(self, option) is not None and importlib.util.find_spec(package) is None:
                raise TemporalLensError(
                    f"loading {title} with {option}: {getattr(self, option)} needs the package {package}: pip install 'temporallens[large]'"
                )
        if self.device_map is not None and device is not None:
            raise TemporalLensError(f"{title} cannot be on {device} and where device_map: {self.device_map} puts it: name one of them")
        if self.device_map is not None and processes.count() > 1:
            raise TemporalLensError(
                f"device_map: {self.device_map} spreads {title} over all devices, and {processes.count()} processes would each do so: run "
                "it with one process, or leave device_map out"
            )

    def arguments(self) -> dict[str, Any]:
        """What transformers is asked."""
        asked = self.model_dump(exclude={"weights"}, exclude_none=True)
        if self.weights is not None:
            from torchao.quantization import Int8WeightOnlyConfig
            from transformers import TorchAoConfig

            asked["quantization_config"] = TorchAoConfig(Int8WeightOnlyConfig())
        return asked


AS_IT_IS = Loading()


def loading_field() -> Any:
    """The setting of whatever reads a model: where nothing is asked for, it leaves no trace."""
    return Field(AS_IT_IS, exclude_if=lambda loading: loading == AS_IT_IS)


def recorded_loading(loading: Loading) -> dict[str, Any]:
    """What files say of it, of which `loading_of` makes it again."""
    return {} if loading == AS_IT_IS else {"loading": loading.model_dump(mode="json", exclude_none=True)}


def loading_of(recorded: Any) -> Loading:
    """How the model was loaded that a file names. Raises pydantic's ValidationError where it says no such thing."""
    return Loading.model_validate(recorded.get("loading", {}))


def loading_in_words(recorded: Any) -> str | None:
    """How the model was loaded that a file names, for people; None where nothing was asked for."""
    asked: dict[str, Any] = recorded.get("loading", {})
    memory = [f"{memory} on {place}" for place, memory in asked.get("max_memory", {}).items()]
    words = [f"{name} {value}".replace("_", " ") for name, value in asked.items() if name != "max_memory"]
    return ", ".join([*words, *(f"at most {each}" for each in memory)]) or None


def is_dense(tensor: Tensor) -> bool:
    """Whether the numbers of a weight are here, and as they are multiplied: neither packed into eight bits nor on the disk."""
    return type(tensor.data) is Tensor and tensor.device.type != "meta"


def is_offloaded(network: Network) -> bool:
    """Whether accelerate has put a part of it where nothing is computed."""
    places = {str(place) for place in getattr(network, "hf_device_map", {}).values()}
    return "disk" in places or ("cpu" in places and len(places) > 1)


def packed_share(network: Network) -> float:
    """Of the weights of a network, those that are packed into eight bits."""
    sizes = [(type(weight.data) is not Tensor, weight.numel()) for weight in network.parameters()]
    return sum(size for packed, size in sizes if packed) / max(1, sum(size for _, size in sizes))

"""In which precision to compute: bfloat16 where the machine multiplies it natively, else float32.

A processor without bfloat16 arithmetic emulates it, six times slower than float32; that is most laptops. What is computed in has nothing
to do with what is stored.
"""

from typing import Annotated, Literal, cast, overload

import torch
from pydantic import AliasChoices, Field

from temporallens.errors import TemporalLensError, first_line

Precision = Literal["float32", "bfloat16"]
"""Of what is stored. Never float16: it ends at 65,504, and sinks go beyond."""
ModelPrecision = Literal["float32", "bfloat16", "float16"]
"""Of what a language model computes in; float16 where it is asked for, and what then goes beyond is refused as infinite."""
RequestedPrecision = Literal["auto", "float32", "bfloat16", "float16"]
ComputeDtype = Annotated[RequestedPrecision, Field(validation_alias=AliasChoices("compute_dtype", "dtype"))]
"""The setting of what only computes and stores nothing, where `dtype` can mean nothing else and is taken too."""
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def has_bfloat16(device: str | torch.device) -> bool:
    """Whether bfloat16 is native: on processors with AVX512-BF16 or AMX, as far as PyTorch is let use them (ATEN_CPU_CAPABILITY), and on
    NVIDIA GPUs from Ampere on."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = torch.cpu.get_capabilities()
    return kind == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(flags.get("avx512_bf16") or flags.get("amx_bf16"))


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_for(requested: str | None) -> str:
    """`requested`, or by default a GPU where there is one. Raises TemporalLensError for a device that is not here."""
    if requested is None:
        return default_device()
    try:
        torch.empty(0, device=requested, dtype=torch.float32)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise TemporalLensError(
            f"there is no device {requested!r} here ({first_line(error)}); the default is {default_device()}"
        ) from error
    return requested


@overload
def precision(requested: Literal["auto", "float32", "bfloat16"], device: str | torch.device | None = None) -> Precision: ...


@overload
def precision(requested: str, device: str | torch.device | None = None) -> ModelPrecision: ...


def precision(requested: str, device: str | torch.device | None = None) -> ModelPrecision:
    """What `requested` means on `device` (None: the one that models run on). Raises TemporalLensError for anything but a precision."""
    if requested == "auto":
        return "bfloat16" if has_bfloat16(device or default_device()) else "float32"
    if requested not in DTYPES:
        raise TemporalLensError(f"there is no precision '{requested}': choose auto, {', '.join(DTYPES)}")
    return cast(ModelPrecision, requested)

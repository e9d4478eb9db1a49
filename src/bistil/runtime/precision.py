"""What `precision = "auto"` means here: bf16 where the hardware multiplies bf16 matrices faster, else float32."""

import os
from typing import Literal

import torch

from bistil.runtime.devices import device_for
from bistil.runtime.insides import has_bf16_units

Precision = Literal["float32", "bf16"]


def precision_here(device: str | None = None) -> Precision:
    """bf16 on a GPU that has it and on a processor with AMX or AVX512-BF16; BISTIL_PRECISION=float32 or bf16 overrides.

    A rule on what the hardware says of itself and not a measurement, because the same machine must choose alike each
    time.

    Args:
        device: type of the device that is trained on; default: a GPU if there is one.
    """
    override = os.environ.get("BISTIL_PRECISION")
    if override in ("float32", "bf16"):
        return "bf16" if override == "bf16" else "float32"
    device = device or device_for()
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    return "bf16" if device == "cpu" and has_bf16_units() else "float32"

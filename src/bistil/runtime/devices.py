"""Where models run: on the device that is asked for, or on what there is."""

import torch

from bistil.errors import InputError, first_line

AUTO = "auto"


def device_for(wanted: str | None = None) -> str:
    """PyTorch's name of a device that is there.

    Args:
        wanted: such as "cpu", "cuda", "cuda:1" or "mps"; "auto" or None: a CUDA GPU if there is one, else the CPU. An
            Apple GPU is taken only where it is asked for.

    Raises:
        InputError: PyTorch has no such device here.
    """
    if wanted in (None, AUTO):
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InputError(f"device is {wanted!r}, which PyTorch does not know: {first_line(error)}") from error
    why = None
    if device.type == "cuda" and not torch.cuda.is_available():
        why = "this PyTorch was built without CUDA" if torch.version.cuda is None else "PyTorch finds no CUDA GPU"
    elif device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        why = f"PyTorch finds {torch.cuda.device_count()} CUDA GPUs, numbered from 0"
    elif device.type == "mps" and not torch.backends.mps.is_available():
        why = "PyTorch finds no Apple GPU"
    if why is not None:
        raise InputError(f"device is {wanted!r}, but {why}: leave it out for what is there, or say cpu")
    return str(device)

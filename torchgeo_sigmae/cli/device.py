# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The device of a command."""

__all__ = ('default_device',)


def default_device(device: str | None) -> str:
    """The device that is asked for; by default CUDA if there is any."""
    import torch

    return device or ('cuda' if torch.cuda.is_available() else 'cpu')

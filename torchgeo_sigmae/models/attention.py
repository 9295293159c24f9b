# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The attention that is fast where a model trains."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ('fast_attention',)


def fast_attention(image: Tensor) -> AbstractContextManager[None]:
    """Choose PyTorch's implementation of attention for a training step.

    On a CPU the backward pass of the fused attention has no fast path for half
    precision, see ``with fused attention`` in ``python -m benchmarks.pretrain_step``.
    There the unfused one is taken. It keeps the attention weights, a small matter with
    the few tokens that masking leaves; without gradients, and everywhere else, PyTorch
    chooses.

    Args:
        image: What the model is about to see.

    Returns:
        A context to run the model in.
    """
    half = torch.is_autocast_enabled('cpu') or image.dtype != torch.float32
    if image.device.type == 'cpu' and half and torch.is_grad_enabled():
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()

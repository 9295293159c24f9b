# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The attention that is fast where a model trains."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ('fast_attention',)

#: Tokens of an image up to which attention weights are a small matter.
_FEW = 320


def fast_attention(image: Tensor, tokens: int) -> AbstractContextManager[None]:
    """Choose PyTorch's implementation of attention for a training step.

    On a CPU the backward pass of the fused attention has no fast path for half
    precision, see ``with fused attention`` in ``python -m benchmarks.pretrain_step``.
    There the unfused one is taken, up to 320 *tokens* that attend to each other: it
    keeps the attention weights.
    """
    half = torch.is_autocast_enabled('cpu') or image.dtype != torch.float32
    slow = image.device.type == 'cpu' and half and torch.is_grad_enabled()
    if slow and tokens <= _FEW:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Positions of tokens in the image and in the spectrum."""

import torch
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor

__all__ = ('POSITIONS', 'sincos_1d', 'sincos_2d')

#: Kinds of positions of tokens with a spectral axis, as ablated by S2MAE.
POSITIONS = ('learnable', 'sincos', 'vanilla')


def sincos_1d(count: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Sines, then cosines of a running number (arXiv:1706.03762), ``(count, dim)``."""
    omega = torch.arange(dim // 2, device=device) / (dim / 2)
    angle = torch.outer(torch.arange(count, device=device), 10000.0**-omega)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_2d(
    grid: tuple[int, int], dim: int, device: torch.device | None = None
) -> Tensor:
    """Sines and cosines of rows and columns, as MAE's, ``(N, dim)`` row by row."""
    return build_sincos2d_pos_embed(list(grid), dim, device=device)

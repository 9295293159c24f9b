# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Rotary positions: queries and keys turn with their place, tokens hold content alone.

After RoFormer (Su et al., arXiv:2104.09864) and its axial form for images (Heo et al.,
arXiv:2403.13298): half of the values of a head turn with the row, half with the column.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ('RotaryBlock', 'rotation', 'turn')

#: The slowest pair of values turns so many times more slowly than the fastest, which
#: makes a quarter turn per patch.
_BASE = 100.0


def rotation(rows: Tensor, columns: Tensor, head_dim: int, prefix: int = 0) -> Tensor:
    """Cosines, and sines that are negative in the first half, see :func:`turn`.

    Args:
        rows: Row of every patch, ``(..., N)``.
        columns: Its column, ``(..., N)``.
        head_dim: Values of an attention head, a multiple of 4.
        prefix: Number of class and register tokens in front, which do not turn.

    Returns:
        ``(2, ..., 1, prefix + N, head_dim)``, for all heads.
    """
    count = head_dim // 4
    steps = torch.arange(count, device=rows.device) / count
    speeds = math.pi / 2 * _BASE**-steps
    angles = torch.cat([rows[..., None] * speeds, columns[..., None] * speeds], dim=-1)
    angles = F.pad(angles, (0, 0, prefix, 0)).unsqueeze(-3)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])


class RotaryBlock(Block):
    """A block of timm that also takes a rotation of queries and keys.

    Attributes:
        checkpointing: Whether the backward pass computes the block again, which saves
            memory. timm does not checkpoint blocks that take a mask.
    """

    checkpointing = False

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Update tokens ``(B, N, D)``.

        timm's models hand *attn_mask* to all of their blocks. Here it is what
        :func:`rotation` returns, or None for a plain block.
        """
        if attn_mask is None:
            return super().forward(x, **kwargs)
        if self.checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(self._turned, x, attn_mask, use_reentrant=False)
            return out
        return self._turned(x, attn_mask)

    def _turned(self, x: Tensor, turns: Tensor) -> Tensor:
        """Update tokens whose queries and keys are turned."""
        attended = _attend(self.attn, self.norm1(x), turns)
        x = x + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def _attend(attention: Attention, x: Tensor, turns: Tensor) -> Tensor:
    """Self-attention of timm, with queries and keys turned."""
    parts = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = parts.permute(2, 0, 3, 1, 4)
    # Both at once: the operators are many, and small.
    q, k = turn(torch.stack([attention.q_norm(q), attention.k_norm(k)]), turns)
    attended = F.scaled_dot_product_attention(
        q, k, v, dropout_p=attention.attn_drop.p if attention.training else 0.0
    )
    return attention.proj_drop(attention.proj(attended.transpose(1, 2).flatten(2)))


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """Turn queries or keys ``(..., B, heads, N, head_dim)`` by a :func:`rotation`.

    The first half of the values of a head holds the first of all pairs.
    """
    cos, sin = turns.to(x.dtype)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)

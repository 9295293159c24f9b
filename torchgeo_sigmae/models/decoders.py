# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Decoders: from encoded visible tokens to the pixels of predicted tokens."""

import torch
import torch.nn.functional as F
from timm.layers import Mlp, resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .positions import sincos_1d, sincos_2d
from .tokens import own_group

__all__ = ('CrossDecoder', 'SelfDecoder')


class _Decoder(nn.Module):
    """What both decoders share: mask token, positions, final norm, head to pixels."""

    def __init__(
        self,
        out_dim: int,
        dim: int,
        depth: int,
        num_heads: int,
        groups: int,
        heads: int,
        positions: str,
        grid: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        if dim % 4 or dim % num_heads:
            raise ValueError(
                f'decoder_dim: {dim} must be a multiple of 4 (2-D sine-cosine '
                f'positions) and of decoder_num_heads={num_heads}. Use for example '
                f'{max(dim // (4 * num_heads), 1) * 4 * num_heads}.'
            )
        if depth < 1:
            raise ValueError(f'decoder_depth: {depth} must be at least 1.')
        self.dim = dim
        self.groups = groups
        self.heads = heads
        self.joint = positions == 'vanilla'
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, heads * out_dim)
        self.pos_embed: Tensor | None = None
        self.spectral_embed: Tensor | None = None
        if positions == 'learnable':
            if grid is None:
                raise ValueError('grid: learnable positions need the grid they are of.')
            self.grid = grid
            self.pos_embed = nn.Parameter(sincos_2d(grid, dim).unsqueeze(0))
            self.spectral_embed = nn.Parameter(sincos_1d(groups, dim).unsqueeze(0))

    def init_weights(self) -> None:
        """Initialise as MAE does: Xavier linear layers, a small random mask token."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions of all tokens ``(G * N, dim)``."""
        device = self.mask_token.device
        if self.joint:
            return sincos_1d(self.groups * grid[0] * grid[1], self.dim, device)
        if self.pos_embed is None or self.spectral_embed is None:
            spatial = sincos_2d(grid, self.dim, device)
            if self.groups == 1:
                return spatial
            spectral = sincos_1d(self.groups, self.dim, device)
        else:
            spatial = resample_abs_pos_embed(
                self.pos_embed, list(grid), list(self.grid), num_prefix_tokens=0
            )[0]
            spectral = self.spectral_embed[0]
        return (spectral.unsqueeze(1) + spatial).flatten(0, 1)

    def predict(self, x: Tensor, predicted: Tensor, grid: tuple[int, int]) -> Tensor:
        """Bring decoded tokens ``(B, P, dim)`` to pixels, each by its group's head."""
        out: Tensor = self.head(self.norm(x))
        if self.heads == 1:
            return out
        group = predicted // (grid[0] * grid[1])
        return own_group(out.unflatten(-1, (self.heads, -1)), group)


class CrossDecoder(_Decoder):
    """Predicted tokens attend to encoded visible tokens, not to each other.

    After CrossMAE (Fu et al., arXiv:2401.14391), written from the paper: only the
    tokens to be predicted are computed, and every block reads its own learned mix of
    the encoder's depths. A mix starts as the last depth alone.
    """

    def __init__(
        self,
        encoder_dim: int,
        encoder_depth: int,
        out_dim: int,
        dim: int = 256,
        depth: int = 4,
        num_heads: int = 8,
        groups: int = 1,
        heads: int = 1,
        positions: str = 'sincos',
        grid: tuple[int, int] | None = None,
    ) -> None:
        """Initialize a new CrossDecoder instance.

        Args:
            encoder_dim: Width of the encoder.
            encoder_depth: Number of blocks of the encoder.
            out_dim: Values to predict per token, L.
            dim: Width of the decoder, a multiple of 4 and of *num_heads*.
            depth: Number of blocks.
            num_heads: Number of attention heads.
            groups: Tokens at every place, G.
            heads: Heads to pixels: 1, or one for every group.
            positions: ``'sincos'``, ``'learnable'`` or ``'vanilla'`` (of the running
                number of a token).
            grid: Patches per column and per row that learnable positions are made for;
                other grids are interpolated.

        Raises:
            ValueError: If *dim* is no multiple of 4 and *num_heads*, *depth* < 1, or
                learnable positions have no grid.
        """
        super().__init__(out_dim, dim, depth, num_heads, groups, heads, positions, grid)
        self.mix = nn.Parameter(torch.zeros(depth, encoder_depth))
        self.blocks = nn.ModuleList(
            _CrossBlock(dim, encoder_dim, num_heads) for _ in range(depth)
        )
        self.init_weights()
        with torch.no_grad():
            self.mix[:, -1] = 1

    def forward(
        self,
        features: list[Tensor],
        keep: Tensor,
        predicted: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """Predict tokens.

        Args:
            features: Output of every encoder block, each ``(B, prefix + V, D)``.
            keep: Indices of the visible tokens, ``(B, V)``; their positions are in
                *features* already.
            predicted: Indices of the tokens to predict, ``(B, P)``.
            grid: Patches per column and per row.

        Returns:
            Predictions ``(B, P, L)``.
        """
        x = self.mask_token + self.positions(grid)[predicted]
        contexts = torch.einsum('kl,lbvd->kbvd', self.mix, torch.stack(features))
        for block, context in zip(self.blocks, contexts, strict=True):
            x = block(x, context)
        return self.predict(x, predicted, grid)


class SelfDecoder(_Decoder):
    """MAE's decoder (arXiv:2111.06377): self-attention over visible and predicted.

    Tokens are not put back in image order: their positions are added one by one, and
    attention does not care about order. The last block is computed for predicted tokens
    alone.
    """

    def __init__(
        self,
        encoder_dim: int,
        encoder_depth: int,
        out_dim: int,
        dim: int = 256,
        depth: int = 4,
        num_heads: int = 8,
        groups: int = 1,
        heads: int = 1,
        positions: str = 'sincos',
        grid: tuple[int, int] | None = None,
    ) -> None:
        """Initialize a new SelfDecoder instance.

        Args:
            encoder_dim: Width of the encoder.
            encoder_depth: Not used; here for one signature with
                :class:`CrossDecoder`.
            out_dim: Values to predict per token, L.
            dim: Width of the decoder, a multiple of 4 and of *num_heads*.
            depth: Number of blocks.
            num_heads: Number of attention heads.
            groups: Tokens at every place, G.
            heads: Heads to pixels: 1, or one for every group.
            positions: ``'sincos'``, ``'learnable'`` or ``'vanilla'`` (of the running
                number of a token).
            grid: Patches per column and per row that learnable positions are made for;
                other grids are interpolated.

        Raises:
            ValueError: If *dim* is no multiple of 4 and *num_heads*, *depth* < 1, or
                learnable positions have no grid.
        """
        super().__init__(out_dim, dim, depth, num_heads, groups, heads, positions, grid)
        self.embed = nn.Linear(encoder_dim, dim)
        self.blocks = nn.Sequential(
            *(Block(dim, num_heads, qkv_bias=True) for _ in range(depth))
        )
        self.init_weights()

    def forward(
        self,
        features: list[Tensor],
        keep: Tensor,
        predicted: Tensor,
        grid: tuple[int, int],
    ) -> Tensor:
        """Predict tokens.

        Args:
            features: Output of every encoder block; only the last is used.
            keep: Indices of the visible tokens, ``(B, V)``.
            predicted: Indices of the tokens to predict, ``(B, P)``.
            grid: Patches per column and per row.

        Returns:
            Predictions ``(B, P, L)``.
        """
        positions = self.positions(grid)
        x = self.embed(features[-1])
        x = torch.cat(
            [
                x[:, : -keep.shape[1]],
                x[:, -keep.shape[1] :] + positions[keep],
                (self.mask_token + positions[predicted]).to(x.dtype),
            ],
            dim=1,
        )
        count = predicted.shape[1]
        x = _attend_last(self.blocks[-1], self.blocks[:-1](x), count)
        return self.predict(x, predicted, grid)


def _attend_last(block: Block, x: Tensor, count: int) -> Tensor:
    """Compute a block of timm for the last *count* tokens, which attend to all.

    Nobody reads what the last block of a decoder makes of visible tokens.
    """
    attention, seen, dim = block.attn, block.norm1(x), x.shape[-1]
    weight, bias = attention.qkv.weight, attention.qkv.bias
    q = F.linear(seen[:, -count:], weight[:dim], bias[:dim])
    k, v = F.linear(seen, weight[dim:], bias[dim:]).chunk(2, dim=-1)
    q, k, v = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for part in (q, k, v)
    )
    attended = F.scaled_dot_product_attention(q, k, v)
    x = x[:, -count:] + attention.proj(attended.transpose(1, 2).flatten(2))
    out: Tensor = x + block.mlp(block.norm2(x))
    return out


class _CrossBlock(nn.Module):
    """Cross-attention to a context, then an MLP, both residual and pre-normalised."""

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(context_dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(context_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Update ``(B, P, dim)`` from a context ``(B, V, context_dim)``."""
        q = self.q(self.norm1(x)).unflatten(-1, (self.num_heads, -1))
        kv = self.kv(self.norm_context(context)).unflatten(-1, (2, self.num_heads, -1))
        k, v = kv.unbind(dim=2)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        )
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out

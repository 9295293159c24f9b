# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Decoders: from encoded visible tokens to the pixels of predicted tokens."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from timm.layers import Mlp, resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .positions import sincos_1d, sincos_2d
from .rotary import rotation, turn
from .tokens import pick_group

__all__ = ('CrossDecoder', 'SelfDecoder')


class Decoder(nn.Module, ABC):
    """Mask token, positions and heads, which both decoders share."""

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
        spectral_dim: int = 0,
    ) -> None:
        """Initialize a new decoder.

        Args:
            encoder_dim: Width of the encoder.
            encoder_depth: Number of blocks of the encoder.
            out_dim: Pixel values to predict per token, L.
            dim: Width of the decoder, a multiple of 4 and of *num_heads*.
            depth: Number of blocks.
            num_heads: Number of attention heads.
            groups: Tokens at every patch position, G.
            heads: Number of output heads: 1, or one for every group.
            positions: ``'rotary'`` (of :class:`CrossDecoder`, for one group),
                ``'sincos'``, ``'learnable'`` or ``'vanilla'`` (of the running number of
                a token).
            grid: Patches per column and per row that learnable positions are made for;
                other grids are interpolated.
            spectral_dim: Spectral statistics to predict per token, S; 0 for none.
        """
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
        self.num_heads = num_heads
        self.groups = groups
        self.heads = heads
        self.joint = positions == 'vanilla'
        self.rotary = positions == 'rotary'
        if self.rotary and dim % (4 * num_heads):
            raise ValueError(
                f'decoder_dim: {dim} must be a multiple of 4 x decoder_num_heads='
                f'{num_heads} (rotary positions). Use for example '
                f'{max(dim // (4 * num_heads), 1) * 4 * num_heads}.'
            )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, heads * out_dim)
        self.spectral_head = (
            nn.Linear(dim, heads * spectral_dim) if spectral_dim else None
        )
        self.pos_embed: Tensor | None = None
        self.spectral_embed: Tensor | None = None
        if positions == 'learnable':
            if grid is None:
                raise ValueError('grid: learnable positions need the grid they are of.')
            self.grid = grid
            self.pos_embed = nn.Parameter(sincos_2d(grid, dim).unsqueeze(0))
            self.spectral_embed = nn.Parameter(sincos_1d(groups, dim).unsqueeze(0))
        self.add_blocks(encoder_dim, encoder_depth, depth, num_heads)
        self.init_weights()

    @abstractmethod
    def add_blocks(
        self, encoder_dim: int, encoder_depth: int, depth: int, num_heads: int
    ) -> None:
        """Add the blocks, and how features of the encoder reach them."""

    @abstractmethod
    def decode(
        self, features: list[Tensor], keep: Tensor, predicted: Tensor, positions: Tensor
    ) -> Tensor:
        """Decode the predicted tokens ``(B, P, dim)``; *positions* are all tokens'."""

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
            keep: Indices of the visible tokens, ``(B, V)``.
            predicted: Indices of the tokens to predict, ``(B, P)``.
            grid: Patches per column and per row.

        Returns:
            Predictions ``(B, P, L + S)``: pixel values, then spectral statistics.
        """
        x = self.decode(features, keep, predicted, self.positions(grid))
        return self.predict(x, predicted, grid)

    def init_weights(self) -> None:
        """Initialize as MAE does: Xavier linear layers, a small random mask token."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions of all tokens ``(G * N, dim)``; their rotation if rotary."""
        device = self.mask_token.device
        if self.rotary:
            index = torch.arange(grid[0] * grid[1], device=device)
            head_dim = self.dim // self.num_heads
            return rotation(index // grid[1], index % grid[1], head_dim).squeeze(1)
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
        """Apply the heads to decoded tokens ``(B, P, dim)``, each its group's head."""
        x = self.norm(x)
        outputs = [self.head(x)]
        if self.spectral_head is not None:
            outputs.append(self.spectral_head(x))
        if self.heads > 1:
            group = predicted // (grid[0] * grid[1])
            outputs = [
                pick_group(out.unflatten(-1, (self.heads, -1)), group)
                for out in outputs
            ]
        return torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]


class CrossDecoder(Decoder):
    """Predicted tokens attend to encoded visible tokens, not to each other.

    After CrossMAE (Fu et al., arXiv:2401.14391), written from the paper: only the
    tokens to be predicted are computed, and every block reads its own learned mix of
    the encoder's depths. A mix starts as the last depth alone.

    Unlike CrossMAE's, the keys know their positions. Otherwise the encoder has to carry
    positions up to its last block, where they made 95 % of the variance of single
    tokens, see ``docs/dev/recipe.md``. Rotary positions turn queries and keys, so that
    attention sees where a token lies relative to another. Other positions are added to
    the mask tokens, and through a small linear map to the keys of every block.
    """

    def add_blocks(
        self, encoder_dim: int, encoder_depth: int, depth: int, num_heads: int
    ) -> None:
        """Add the mix of depths and the blocks."""
        mix = torch.zeros(depth, encoder_depth)
        mix[:, -1] = 1
        self.mix = nn.Parameter(mix)
        self.blocks = nn.ModuleList(
            _CrossBlock(self.dim, encoder_dim, num_heads, self.rotary)
            for _ in range(depth)
        )

    def decode(
        self, features: list[Tensor], keep: Tensor, predicted: Tensor, positions: Tensor
    ) -> Tensor:
        """Let predicted tokens attend to every depth of the encoder."""
        positions = positions.to(self.mask_token.dtype)
        if self.rotary:
            x = self.mask_token.expand(*predicted.shape, -1)
        else:
            x = self.mask_token + positions[predicted]
        contexts = torch.einsum('kl,lbvd->kbvd', self.mix, torch.stack(features))
        for block, context in zip(self.blocks, contexts, strict=True):
            x = block(x, context, positions, keep, predicted)
        return x


class SelfDecoder(Decoder):
    """MAE's decoder (arXiv:2111.06377): self-attention over visible and predicted.

    Tokens are not put back in image order, on which attention does not depend. The last
    block is computed for predicted tokens alone.
    """

    def add_blocks(
        self, encoder_dim: int, encoder_depth: int, depth: int, num_heads: int
    ) -> None:
        """Add the embedding of the encoder's last features and the blocks."""
        self.embed = nn.Linear(encoder_dim, self.dim)
        self.blocks = nn.Sequential(
            *(Block(self.dim, num_heads, qkv_bias=True) for _ in range(depth))
        )

    def decode(
        self, features: list[Tensor], keep: Tensor, predicted: Tensor, positions: Tensor
    ) -> Tensor:
        """Let visible and predicted tokens attend to each other."""
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
        return _attend_last(self.blocks[-1], self.blocks[:-1](x), count)


def _attend_last(block: Block, x: Tensor, count: int) -> Tensor:
    """Compute a block of timm for the last *count* tokens, which attend to all."""
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
    return x + block.mlp(block.norm2(x))


class _CrossBlock(nn.Module):
    """Cross-attention to a context, then an MLP, both residual and pre-normalized."""

    def __init__(
        self, dim: int, context_dim: int, num_heads: int, rotary: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(context_dim)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(context_dim, 2 * dim)
        self.k_position = None if rotary else nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.register_load_state_dict_pre_hook(_add_missing_positions)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        positions: Tensor,
        keep: Tensor,
        predicted: Tensor,
    ) -> Tensor:
        """Update predicted tokens ``(B, P, dim)`` from a context of encoded tokens.

        *context* is ``(B, prefix + V, context_dim)``; *positions* are those of all
        tokens, ``(G * N, dim)``, or their rotation; *keep* and *predicted* hold the
        indices of visible tokens ``(B, V)`` and of *x* ``(B, P)``.
        """
        q = self.q(self.norm1(x))
        k, v = self.kv(self.norm_context(context)).chunk(2, dim=-1)
        # Prefix tokens are nowhere.
        prefix = k.shape[1] - keep.shape[1]
        if self.k_position is not None:
            # Mapped once for all images.
            k = k + F.pad(self.k_position(positions)[keep], (0, 0, prefix, 0))
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (q, k, v)
        )
        if self.k_position is None:
            q = turn(q, positions[:, predicted].unsqueeze(2))
            turned = turn(k[:, :, prefix:], positions[:, keep].unsqueeze(2))
            k = torch.cat([k[:, :, :prefix], turned], dim=2)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def _add_missing_positions(
    block: _CrossBlock, state_dict: dict[str, Tensor], prefix: str, *args: object
) -> None:
    """Load decoders of the first edition, whose keys had no positions, unchanged."""
    name = f'{prefix}k_position.weight'
    keys = block.k_position
    if keys is not None and f'{prefix}kv.weight' in state_dict:
        state_dict.setdefault(name, torch.zeros_like(keys.weight))

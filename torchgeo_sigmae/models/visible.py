# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoding of the visible tokens alone, which is what makes pretraining cheap."""

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models import VisionTransformer
from torch import Tensor

from .encoder import prefix_tokens
from .layout import TokenLayout
from .spectral import SpectralViT
from .tokens import gather_tokens

__all__ = ('encode_visible', 'layout_of')


def layout_of(encoder: VisionTransformer) -> TokenLayout:
    """The layout of the tokens of one of our encoders, or of a plain timm ViT."""
    if isinstance(encoder, SpectralViT):
        return encoder.layout
    embed = encoder.patch_embed
    return TokenLayout.whole(embed.patch_size[0], embed.proj.in_channels)


def encode_visible(
    encoder: VisionTransformer, patches: Tensor, keep: Tensor, grid: tuple[int, int]
) -> list[Tensor]:
    """Embed and encode the visible tokens only.

    Pixels are gathered before the patch embedding, whose convolution is applied as the
    linear map it is, so masked patches cost nothing.

    Args:
        encoder: The encoder.
        patches: Flat tokens ``(B, G * N, L)``, see :meth:`.TokenLayout.patchify`.
        keep: Indices of the visible tokens, ``(B, V)``.
        grid: Patches per column and per row.

    Returns:
        The output of every block, each ``(B, prefix + V, D)``; the last one normalized,
        equal to the encoder's tokens of whole images restricted to the visible ones.
    """
    visible = gather_tokens(patches, keep)
    if isinstance(encoder, SpectralViT):
        group = keep // (grid[0] * grid[1])
        x = encoder.patch_embed.embed(visible, group)
        x = x + encoder.token_positions(grid)[keep]
    else:
        embed = encoder.patch_embed
        x = embed.norm(F.linear(visible, embed.proj.weight.flatten(1), embed.proj.bias))
        if encoder.pos_embed is not None:
            skipped = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
            positions = resample_abs_pos_embed(
                encoder.pos_embed, list(grid), list(embed.grid_size), skipped
            )
            x = x + positions[0, skipped:][keep]
    head = prefix_tokens(encoder).expand(len(x), -1, -1)
    x = torch.cat([head.to(x.dtype), x], dim=1)
    x = encoder.norm_pre(encoder.patch_drop(encoder.pos_drop(x)))

    features = []
    for block in encoder.blocks:
        x = block(x)
        features.append(x)
    features[-1] = encoder.norm(features[-1])
    return features

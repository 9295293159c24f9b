# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The masked autoencoder: encoder, decoder, and the tokens between them."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .decoders import CrossDecoder, SelfDecoder
from .encoder import SIGMAEViT, patch_positions, prefix_tokens
from .layout import TokenLayout
from .spectral import SatMAEViT, SpectralViT
from .tokens import gather_tokens

__all__ = (
    'DECODERS',
    'MaskedAutoencoder',
    'encode_visible',
    'fast_attention',
    'layout_of',
)

#: Tokens of an image up to which attention weights are a small matter.
_FEW = 320

#: Decoders by name.
DECODERS: dict[str, type[CrossDecoder] | type[SelfDecoder]] = {
    'cross': CrossDecoder,
    'self': SelfDecoder,
}


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
            x = x + patch_positions(encoder, grid)[keep]
    head = prefix_tokens(encoder).expand(len(x), -1, -1)
    x = torch.cat([head.to(x.dtype), x], dim=1)
    x = encoder.norm_pre(encoder.patch_drop(encoder.pos_drop(x)))

    turns = encoder.rotation(grid, keep) if isinstance(encoder, SIGMAEViT) else None
    features = []
    for block in encoder.blocks:
        x = block(x, attn_mask=turns)
        features.append(x)
    features[-1] = encoder.norm(features[-1])
    return features


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


def _decoder_positions(encoder: VisionTransformer, decoder: str) -> str:
    """The kind of positions of the decoder for an encoder."""
    if isinstance(encoder, SpectralViT):
        return encoder.positions
    rotary = isinstance(encoder, SIGMAEViT) and encoder.positions == 'rotary'
    return 'rotary' if rotary and decoder == 'cross' else 'sincos'


class MaskedAutoencoder(nn.Module):
    """Predict hidden patches of multispectral images from the visible ones.

    Asymmetric encoder-decoder as in MAE (arXiv:2111.06377). Which tokens are hidden is
    not decided here: the model takes indices.
    """

    #: Chooses the implementation of attention.
    attention = staticmethod(fast_attention)

    def __init__(
        self,
        encoder: VisionTransformer,
        decoder: str = 'cross',
        decoder_dim: int = 256,
        decoder_depth: int = 4,
        decoder_num_heads: int = 8,
        num_indices: int | None = None,
    ) -> None:
        """Initialize a new MaskedAutoencoder instance.

        Args:
            encoder: A timm ViT, see :func:`~torchgeo_sigmae.models.build_encoder`.
            decoder: ``'cross'`` (CrossMAE's) or ``'self'`` (MAE's).
            decoder_dim: Width of the decoder.
            decoder_depth: Number of decoder blocks.
            decoder_num_heads: Number of attention heads in the decoder.
            num_indices: Number of spectral indices K, if every token also predicts its
                spectral statistics: the mean in each of its m bands, and mean and
                standard deviation of each index. None for pixels alone.
        """
        super().__init__()
        if decoder not in DECODERS:
            raise ValueError(
                f'decoder: {decoder!r} is unknown. Use one of {", ".join(DECODERS)}.'
            )
        self.encoder = encoder
        self.layout = layout_of(encoder)
        self.patch_size = self.layout.patch_size
        self.in_channels = self.layout.channels
        groups = self.layout.num_groups
        self.spectral_dim = 0
        if num_indices is not None:
            self.spectral_dim = self.layout.group_size + 2 * num_indices
        self.decoder = DECODERS[decoder](
            encoder.embed_dim,
            len(encoder.blocks),
            self.layout.token_size,
            decoder_dim,
            decoder_depth,
            decoder_num_heads,
            groups=groups,
            heads=groups if isinstance(encoder, SatMAEViT) else 1,
            positions=_decoder_positions(encoder, decoder),
            grid=encoder.patch_embed.grid_size,
            spectral_dim=self.spectral_dim,
        )

    def grid(self, image: Tensor) -> tuple[int, int]:
        """Count the patches of an image ``(..., H, W)``, per column and per row."""
        return image.shape[-2] // self.patch_size, image.shape[-1] // self.patch_size

    def forward(
        self,
        image: Tensor,
        keep: Tensor,
        predicted: Tensor,
        patches: Tensor | None = None,
    ) -> Tensor:
        """Predict the pixels of hidden patches.

        Args:
            image: Normalized images ``(B, C, H, W)``.
            keep: Indices of the visible tokens, ``(B, V)``.
            predicted: Indices of the tokens to predict, ``(B, P)``.
            patches: The tokens of *image*, if they were cut already.

        Returns:
            Predicted tokens ``(B, P, L + S)``: pixel values in the space of the target,
            then spectral statistics (S = 0 without *num_indices*).
        """
        if patches is None:
            patches = self.layout.patchify(image)
        grid = self.grid(image)
        tokens = keep.shape[1] + predicted.shape[1] + self.encoder.num_prefix_tokens
        with self.attention(image, tokens):
            features = encode_visible(self.encoder, patches, keep, grid)
            out: Tensor = self.decoder(features, keep, predicted, grid)
        return out

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The masked autoencoder: encoder, decoder, and the tokens between them."""

from timm.models import VisionTransformer
from torch import Tensor, nn

from .attention import fast_attention
from .decoders import CrossDecoder, SelfDecoder
from .spectral import SatMAEViT, SpectralViT
from .visible import encode_visible, layout_of

__all__ = ('DECODERS', 'MaskedAutoencoder')

#: Known decoders by name.
DECODERS: dict[str, type[CrossDecoder] | type[SelfDecoder]] = {
    'cross': CrossDecoder,
    'self': SelfDecoder,
}


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
            positions=(
                encoder.positions if isinstance(encoder, SpectralViT) else 'sincos'
            ),
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
        if image.shape[1] != self.in_channels:
            raise ValueError(
                f'image: {image.shape[1]} channels, but the encoder takes '
                f'{self.in_channels}. Select bands by name before the model.'
            )
        if patches is None:
            patches = self.layout.patchify(image)
        grid = self.grid(image)
        tokens = keep.shape[1] + predicted.shape[1] + self.encoder.num_prefix_tokens
        with self.attention(image, tokens):
            features = encode_visible(self.encoder, patches, keep, grid)
            out: Tensor = self.decoder(features, keep, predicted, grid)
        return out

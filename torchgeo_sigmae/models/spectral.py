# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoders with several tokens per patch position: S2MAE's and SatMAE's.

To the outside they are plain timm ViTs: ``forward_features`` and the intermediate
features have one token per patch position, the mean over the spectrum.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embeddings import CubeEmbed, GroupEmbed
from .encoder import SIGMAEViT, patch_positions, prefix_tokens
from .layout import TokenLayout, layout_of_state
from .positions import POSITIONS, sincos_1d, sincos_2d

__all__ = (
    'S2MAEViT',
    'SatMAEViT',
    'SpectralViT',
    'encoder_arguments',
)


class SpectralViT(SIGMAEViT):
    """A ViT with G tokens at every patch position, each with a part of the spectrum.

    Positions are separable: ``pos_embed`` says where in the image, ``spectral_embed``
    where in the spectrum, and a token gets the sum. Features that leave the encoder are
    the mean over the G tokens of a patch position, so that heads, decoders and pyramids
    see a plain ViT.

    The number of bands a state dict was made for is checked when it loads: TorchGeo's
    loaders look at the first layer only, which does not always show it.
    """

    pos_embed: nn.Parameter

    def __init__(self, *args: Any, positions: str = 'learnable', **kwargs: Any) -> None:
        """Initialize a new SpectralViT instance.

        Args:
            *args: Passed to :class:`timm.models.VisionTransformer`.
            positions: ``'learnable'``; ``'sincos'`` (the same, but fixed at their
                start); ``'vanilla'`` (fixed, of the running number of a token, which
                does not separate space and spectrum).
            **kwargs: Passed to :class:`timm.models.VisionTransformer`.
        """
        if positions not in POSITIONS:
            raise ValueError(
                f'positions: {positions!r} is unknown. Use one of {POSITIONS}.'
            )
        super().__init__(*args, positions='learnable', **kwargs)
        # In the state dict, because the encoder is wrong without it.
        joint = torch.tensor(positions == 'vanilla')
        self.register_buffer('joint_positions', joint)
        self.joint_positions: Tensor
        self.joint = positions == 'vanilla'
        self.learnable = positions == 'learnable'
        shape = (1, self.layout.num_groups, self.embed_dim)
        self.spectral_embed = nn.Parameter(torch.zeros(shape))
        self.init_positions()

    @property
    def layout(self) -> TokenLayout:
        """Layout of its tokens."""
        return self.patch_embed.layout

    @property
    def positions(self) -> str:
        """The kind of its positions, those of the weights it has loaded."""
        if self.joint:
            return 'vanilla'
        return 'learnable' if self.learnable else 'sincos'

    def init_positions(self) -> None:
        """Set positions to where they start."""
        spatial, spectral = self.position_tables()
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        with torch.no_grad():
            self.pos_embed[:, prefix:] = 0 if self.joint else spatial
            self.spectral_embed.copy_(0 * spectral if self.joint else spectral)
        self.pos_embed.requires_grad_(self.learnable)
        self.spectral_embed.requires_grad_(self.learnable)

    def position_tables(self) -> tuple[Tensor, Tensor]:
        """Learnable positions at the start: space ``(N, D)``, spectrum ``(G, D)``."""
        return (
            sincos_2d(self.patch_embed.grid_size, self.embed_dim),
            sincos_1d(self.layout.num_groups, self.embed_dim),
        )

    def token_positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions of all tokens of a grid of patches, ``(G * N, D)``."""
        groups = self.layout.num_groups
        if self.joint:
            count = groups * grid[0] * grid[1]
            return sincos_1d(count, self.embed_dim, self.pos_embed.device)
        spectral = self.spectral_embed[0].unsqueeze(1)
        return (spectral + patch_positions(self, grid)).flatten(0, 1)

    def set_in_channels(self, in_channels: int, pretrained: bool = False) -> None:
        """Take another number of bands: new, random first layer and spectrum."""
        if in_channels != self.layout.channels:
            self.patch_embed.set_bands(in_channels)
            self.in_chans = in_channels
            self._resize_spectrum(self.layout.num_groups)
            self.init_positions()

    def _resize_spectrum(self, groups: int) -> None:
        """Make room for the positions of another number of groups."""
        if groups != self.spectral_embed.shape[1]:
            shape = (1, groups, self.embed_dim)
            self.spectral_embed = nn.Parameter(
                self.spectral_embed.new_zeros(shape), requires_grad=self.learnable
            )

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Add positions to ``(B, G, h, w, D)``, and put the prefix tokens in front."""
        positions = self.token_positions((x.shape[2], x.shape[3]))
        x = x.flatten(1, 3) + positions
        # len(x) would fix the batch size in torch.export.
        head = prefix_tokens(self).expand(x.shape[0], -1, -1)
        return self.pos_drop(torch.cat([head, x], dim=1))

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the normalized tokens of whole images, ``(B, prefix + N, D)``."""
        tokens = super().forward_features(x, *args, **kwargs)
        return self.pool_spectrum(tokens, self.num_prefix_tokens)

    def forward_intermediates(
        self,
        x: Tensor,
        *args: Any,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
        output_dict: bool = False,
        return_prefix_tokens: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Compute features of several blocks as timm does, one token per patch."""
        last, blocks = super().forward_intermediates(
            x, *args, output_fmt='NLC', return_prefix_tokens=True, **kwargs
        )
        grid = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
        levels, prefixes = [], []
        for level in blocks:
            tokens, prefix = level if isinstance(level, tuple) else (level, None)
            tokens = self.pool_spectrum(tokens)
            if output_fmt == 'NCHW':
                tokens = tokens.transpose(1, 2).unflatten(2, grid).contiguous()
            levels.append(tokens)
            prefixes.append(prefix)
        last = self.pool_spectrum(last, self.num_prefix_tokens)
        with_prefix = return_prefix_tokens and self.num_prefix_tokens > 0
        if output_dict:
            features: dict[str, Any] = {'image_intermediates': levels}
            if with_prefix:
                features['image_intermediates_prefix'] = prefixes
            if not intermediates_only:
                features['image_features'] = last
            return features
        pairs = list(zip(levels, prefixes, strict=True)) if with_prefix else levels
        return pairs if intermediates_only else (last, pairs)

    def pool_spectrum(self, tokens: Tensor, prefix: int = 0) -> Tensor:
        """Average ``(B, prefix + G * N, D)`` over G, to ``(B, prefix + N, D)``."""
        head, rest = tokens[:, :prefix], tokens[:, prefix:]
        pooled = rest.unflatten(1, (self.layout.num_groups, -1)).mean(dim=1)
        return torch.cat([head, pooled], dim=1)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that should not decay."""
        return {*super().no_weight_decay(), 'spectral_embed'}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Sort parameters into layers; those of the spectrum belong to the first."""
        groups: dict[str, Any] = super().group_matcher(coarse)
        stem = groups['stem'].removeprefix('^')
        return {**groups, 'stem': f'^spectral_embed|^{stem}'}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Become what the state dict is of, where the number of bands allows it."""
        joint = state_dict.get(f'{prefix}joint_positions')
        if joint is not None:
            self.joint = bool(joint)
        self.adopt(state_dict, prefix)
        for positions in (self.pos_embed, self.spectral_embed):
            positions.requires_grad_(self.learnable and not self.joint)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def adopt(self, state_dict: Mapping[str, Tensor], prefix: str = '') -> None:
        """Take over how the bands of a state dict are shared out."""
        raise NotImplementedError


class S2MAEViT(SpectralViT):
    """S2MAE's encoder: tokens are cubes of p x p pixels and b neighboring bands.

    After "S2MAE: A Spatial-Spectral Pretraining Foundation Model for Spectral Remote
    Sensing Data" (CVPR 2024), of which we know the slides. One kernel serves all cubes,
    and learnable positions tell them apart.
    """

    def __init__(
        self, *args: Any, cube_bands: int | None = None, **kwargs: Any
    ) -> None:
        """Initialize a new S2MAEViT instance.

        Args:
            *args: Passed to :class:`.SpectralViT`.
            cube_bands: Bands of a cube, a divisor of the number of bands; None for 3 or
                else 2, whichever divides it.
            **kwargs: Passed to :class:`.SpectralViT`.
        """
        embed = partial(CubeEmbed, cube_bands=cube_bands)
        super().__init__(*args, embed_layer=embed, **kwargs)

    def adopt(self, state_dict: Mapping[str, Tensor], prefix: str = '') -> None:
        """Take over the depth of a cube, and check the number of bands."""
        kernel = state_dict.get(f'{prefix}patch_embed.proj.weight')
        spectrum = state_dict.get(f'{prefix}spectral_embed')
        if kernel is None or kernel.ndim != 5 or spectrum is None:
            return  # refused by the hook
        depth, groups = kernel.shape[2], spectrum.shape[1]
        if depth * groups != self.layout.channels:
            raise ValueError(
                f'weights: made for {depth * groups} bands in cubes of {depth}, but '
                f'this encoder takes {self.layout.channels}. Pass '
                f'in_channels={depth * groups} and data with the bands of the weights, '
                'or bring the weights to other bands with adapt_bands.'
            )
        self.patch_embed.set_bands(self.layout.channels, depth)
        self._resize_spectrum(groups)


class SatMAEViT(SpectralViT):
    """SatMAE's encoder: a token for every group of bands.

    After "SatMAE: Pre-training Transformers for Temporal and Multi-Spectral Satellite
    Imagery" (https://arxiv.org/abs/2207.08051), written from the paper. Every group has
    its own patch embedding. As there, three quarters of a position start as sines and
    cosines of the patch position, one quarter as those of the group.
    """

    def __init__(
        self,
        *args: Any,
        groups: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new SatMAEViT instance.

        Args:
            *args: Passed to :class:`.SpectralViT`.
            groups: Channels of each group; None for SatMAE's of the ten bands of
                Sentinel-2 (10 m; red edge; short-wave infrared), or for another number
                of channels groups of four neighbors.
            **kwargs: Passed to :class:`.SpectralViT`.
        """
        embed = partial(GroupEmbed, groups=groups)
        super().__init__(*args, embed_layer=embed, **kwargs)

    def position_tables(self) -> tuple[Tensor, Tensor]:
        """Learnable positions at the start: space ``(N, D)``, groups ``(G, D)``."""
        part = self.embed_dim // 4
        spatial = sincos_2d(self.patch_embed.grid_size, self.embed_dim - part)
        spectral = sincos_1d(self.layout.num_groups, part)
        return F.pad(spatial, (0, part)), F.pad(spectral, (self.embed_dim - part, 0))

    def adopt(self, state_dict: Mapping[str, Tensor], prefix: str = '') -> None:
        """Take over the groups; the number of bands shows in the first layer."""
        membership = state_dict.get(f'{prefix}patch_embed.band_group')
        if membership is None or len(membership) != self.layout.channels:
            return  # refused by the hook
        layout = TokenLayout.grouped(self.layout.patch_size, membership.tolist())
        self.patch_embed.share(layout.channels, layout.groups)
        self._resize_spectrum(self.layout.num_groups)


def encoder_arguments(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of an encoder that shares bands out as that of a state dict does.

    Returns:
        ``cube_bands`` of S2MAE, ``groups`` of SatMAE, nothing of others.
    """
    if 'spectral_embed' not in state_dict:
        return {}
    layout = layout_of_state(state_dict)
    if 'patch_embed.band_group' in state_dict:
        return {'groups': layout.groups}
    return {'cube_bands': layout.group_size}

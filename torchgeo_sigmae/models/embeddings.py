# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""First layers of encoders with several tokens per patch position."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ..bands import SENTINEL2, SENTINEL2_TEN_BANDS, Band, BandSet, Sensor
from .layout import TokenLayout
from .tokens import pick_group

__all__ = ('CubeEmbed', 'GroupEmbed', 'SpectralEmbed', 'group_bands')

#: SatMAE's groups of Sentinel-2: 10 m; red edge and narrow infrared; short-wave
#: infrared.
_SATMAE_GROUPS = (
    ('B02', 'B03', 'B04', 'B08'),
    ('B05', 'B06', 'B07', 'B8A'),
    ('B11', 'B12'),
)


class SpectralEmbed(PatchEmbed):
    """Patch embedding with G tokens per patch position, ``(B, G, h, w, D)``."""

    layout: TokenLayout
    proj: Any
    norm: Any

    def forward(self, x: Tensor) -> Tensor:
        """Embed the tokens of whole images ``(B, C, H, W)``."""
        height, width = x.shape[-2:]
        patch = self.layout.patch_size
        if self.dynamic_img_pad:
            x = F.pad(x, (0, -width % patch, 0, -height % patch))
        tokens = self.layout.patchify(x)
        groups = self.layout.num_groups
        group = torch.arange(groups, device=x.device)
        group = group.repeat_interleave(tokens.shape[1] // groups)
        embedded = self.embed(tokens, group.expand(x.shape[0], -1))
        return embedded.unflatten(1, (groups, *self.dynamic_feat_size((height, width))))

    def embed(self, tokens: Tensor, group: Tensor) -> Tensor:
        """Embed tokens ``(B, K, L)`` of the groups ``(B, K)``; returns (B, K, D)."""
        raise NotImplementedError


class CubeEmbed(SpectralEmbed):
    """One kernel for the cubes of all bands: a 3-D convolution, S2MAE's."""

    def __init__(
        self, *args: Any, cube_bands: int | None = None, **kwargs: Any
    ) -> None:
        """Initialize with *cube_bands* bands a cube; None for 3 or else 2."""
        super().__init__(*args, **kwargs)
        self.set_bands(self.proj.in_channels, cube_bands)

    def set_bands(self, channels: int, cube_bands: int | None = None) -> None:
        """Take other bands, with a new kernel where the depth of a cube changes."""
        patch = self.patch_size[0]
        depth = _cube_depth(channels, cube_bands)
        self.layout = TokenLayout.cubes(patch, channels, depth)
        kernel = (depth, patch, patch)
        old = self.proj
        if old.kernel_size != kernel:
            self.proj = nn.Conv3d(
                1, old.out_channels, kernel, kernel, bias=old.bias is not None
            ).to(old.weight)

    def embed(self, tokens: Tensor, group: Tensor) -> Tensor:
        """Apply the convolution as the linear map it is."""
        weight = self.proj.weight.flatten(1)
        return self.norm(F.linear(tokens, weight, self.proj.bias))


class GroupEmbed(SpectralEmbed):
    """A kernel for every group of bands, kept as one convolution over all: SatMAE's."""

    band_group: Tensor

    def __init__(
        self, *args: Any, groups: Sequence[Sequence[int]] | None = None, **kwargs: Any
    ) -> None:
        """Initialize with the channels of each group, as :class:`.SatMAEViT`."""
        super().__init__(*args, **kwargs)
        self.share(self.proj.in_channels, groups)

    def share(
        self, channels: int, groups: Sequence[Sequence[int]] | None = None
    ) -> None:
        """Share the channels out to groups."""
        if groups is None and channels == len(SENTINEL2_TEN_BANDS):
            groups = group_bands(SENTINEL2_TEN_BANDS)
        elif groups is None:
            groups = _neighbors(channels)
        if sorted(c for group in groups for c in group) != list(range(channels)):
            raise ValueError(
                f'groups: {[list(group) for group in groups]} must hold each of the '
                f'{channels} channels once.'
            )
        membership = [
            next(g for g, group in enumerate(groups) if channel in group)
            for channel in range(channels)
        ]
        # As a state dict stores it: the channels of a group in ascending order.
        self.layout = TokenLayout.grouped(self.patch_size[0], membership)
        # In the state dict, because the encoder is wrong without it.
        device = self.proj.weight.device
        self.register_buffer('band_group', torch.tensor(membership, device=device))

    def set_bands(self, channels: int) -> None:
        """Take other bands, with a new kernel and default groups."""
        old = self.proj
        self.proj = nn.Conv2d(
            channels, old.out_channels, old.kernel_size, old.stride
        ).to(old.weight)
        self.share(channels)

    def embed(self, tokens: Tensor, group: Tensor) -> Tensor:
        """Apply every group's kernel to its own tokens."""
        layout, weight = self.layout, self.proj.weight
        if layout.num_groups == 1:
            return self.norm(F.linear(tokens, weight.flatten(1), self.proj.bias))
        kernels = weight[:, layout.padded()].flatten(1)
        kernels = kernels.unflatten(1, (layout.num_groups, -1))
        kernels = torch.where(layout.slots(weight.device), kernels, 0)
        # All kernels on every token, then each token's own: a few per cent of a block.
        x = F.linear(tokens, kernels.transpose(0, 1).flatten(0, 1))
        x = x.unflatten(-1, (layout.num_groups, -1))
        return self.norm(pick_group(x, group) + self.proj.bias)


def group_bands(
    bands: Sequence[str],
    groups: Sequence[Sequence[str]] | None = None,
) -> list[list[int]]:
    """Share bands out to groups by their names.

    Args:
        bands: Names of the bands, in order; a :class:`~torchgeo_sigmae.bands.BandSet`
            for another sensor than Sentinel-2.
        groups: Names of the bands of each group, any spelling; None for SatMAE's
            groups of Sentinel-2, with what is in none of them (B01, B09, B10) as one
            more. Bands of other sensors join the group of the nearest wavelength; four
            neighbors each where there are no wavelengths.

    Returns:
        Channel indices of every group, none of them empty.
    """
    bands = BandSet.from_data(bands)
    if groups is not None:
        named = [BandSet.from_data(group, bands.sensor) for group in groups]
        if sorted(name for group in named for name in group) != sorted(bands):
            raise ValueError(
                f'groups: {[list(group) for group in groups]} must name each of the '
                f'bands {list(bands)} once.'
            )
        return [sorted(bands.index(name) for name in group) for group in named]
    if None in bands.wavelengths:
        return _neighbors(len(bands))
    shared: list[list[int]] = [[] for _ in range(len(_SATMAE_GROUPS) + 1)]
    for channel, band in enumerate(bands.bands):
        shared[_nearest_group(band, bands.sensor)].append(channel)
    return [group for group in shared if group]


def _cube_depth(channels: int, cube_bands: int | None) -> int:
    """Bands of a cube: as asked for, or 3 or 2, whichever divides."""
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    if cube_bands is None:
        usual = [depth for depth in (3, 2, channels) if depth in divisors]
        if usual[0] > 3:
            raise ValueError(
                f'in_channels: {channels} bands cannot be cut into cubes of 3 or 2 '
                f'neighbors. Leave bands out, for example down to {channels - 1}, or '
                f'pass cube_bands, one of {divisors}.'
            )
        return usual[0]
    if cube_bands not in divisors:
        raise ValueError(
            f'cube_bands: {cube_bands} does not divide {channels} bands. Use one of '
            f'{divisors}, or leave bands out.'
        )
    return cube_bands


def _neighbors(channels: int) -> list[list[int]]:
    """Groups of four neighbors."""
    return [
        list(range(start, min(start + 4, channels))) for start in range(0, channels, 4)
    ]


def _nearest_group(band: Band, sensor: Sensor) -> int:
    """Number of SatMAE's group a band belongs to."""
    name = band.name
    if sensor.name != SENTINEL2.name:
        center = band.wavelength or 0.0
        grouped = [SENTINEL2.band(n) for group in _SATMAE_GROUPS for n in group]
        name = min(grouped, key=lambda b: abs((b.wavelength or 0.0) - center)).name
    return next(
        (number for number, group in enumerate(_SATMAE_GROUPS) if name in group),
        len(_SATMAE_GROUPS),
    )

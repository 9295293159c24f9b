# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The layout of tokens: patches of all bands, of neighboring bands, or of groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..patches import patchify, unpatchify

__all__ = ('TokenLayout', 'layout_of_state')


@dataclass(frozen=True)
class TokenLayout:
    """Division of the bands among the G tokens at every patch position.

    Tokens are ordered group by group: token ``g * N + n`` is group g at patch position
    n, of N positions in row-major order. A token is a vector of ``L = m * p * p``
    values, channel first, where m is the size of the largest group. Smaller groups are
    padded; :meth:`slots` marks the values that are data.

    Attributes:
        patch_size: Side p of a patch in pixels.
        groups: Indices of the channels of each group; every channel is in one group.
    """

    patch_size: int
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def whole(cls, patch_size: int, channels: int) -> 'TokenLayout':
        """One token of all bands per patch position: SIGMAE's and every plain ViT's."""
        return cls(patch_size, (tuple(range(channels)),))

    @classmethod
    def cubes(cls, patch_size: int, channels: int, depth: int) -> 'TokenLayout':
        """Cubes of *depth* neighboring bands, a divisor of *channels*: S2MAE's."""
        starts = range(0, channels, depth)
        return cls(patch_size, tuple(tuple(range(i, i + depth)) for i in starts))

    @classmethod
    def grouped(cls, patch_size: int, membership: Sequence[int]) -> 'TokenLayout':
        """Groups of bands, from the number of the group of every channel: SatMAE's."""
        groups: list[tuple[int, ...]] = [()] * (max(membership) + 1)
        for channel, group in enumerate(membership):
            groups[group] += (channel,)
        return cls(patch_size, tuple(groups))

    @property
    def channels(self) -> int:
        """Number of bands C."""
        return sum(map(len, self.groups))

    @property
    def num_groups(self) -> int:
        """Number of tokens at every patch position, G."""
        return len(self.groups)

    @property
    def group_size(self) -> int:
        """Bands of the largest group, m."""
        return max(map(len, self.groups))

    @property
    def token_size(self) -> int:
        """Values of a token, L."""
        return self.group_size * self.patch_size**2

    def names(self, bands: Sequence[str]) -> list[list[str]]:
        """Name the bands of every group."""
        return [[bands[channel] for channel in group] for group in self.groups]

    def padded(self) -> list[int]:
        """Channels of all groups one after the other, ``G * m``.

        Smaller groups are filled with their first channel.
        """
        return [
            group[slot] if slot < len(group) else group[0]
            for group in self.groups
            for slot in range(self.group_size)
        ]

    def locate_channels(self) -> list[tuple[int, int]]:
        """Number of the group of each of the C channels, and its index in the group."""
        located = {
            channel: (g, slot)
            for g, group in enumerate(self.groups)
            for slot, channel in enumerate(group)
        }
        return [located[channel] for channel in range(self.channels)]

    def slots(self, device: torch.device | None = None) -> Tensor:
        """Mark the values of a token that are data, not padding: boolean ``(G, L)``."""
        sizes = torch.tensor([len(group) for group in self.groups], device=device)
        slots = torch.arange(self.group_size, device=device) < sizes[:, None]
        return slots.repeat_interleave(self.patch_size**2, dim=1)

    def patchify(self, image: Tensor) -> Tensor:
        """Cut images ``(B, C, H, W)`` into tokens ``(B, G * N, L)``."""
        if image.shape[1] != self.channels:
            raise ValueError(
                f'image: {image.shape[1]} channels, but the encoder takes '
                f'{self.channels}. Select bands by name before the model.'
            )
        padded = self.padded()
        if padded != list(range(self.channels)):
            image = image[:, padded]
        flat = patchify(image, self.patch_size)
        if self.num_groups == 1:
            return flat
        return flat.unflatten(-1, (self.num_groups, -1)).transpose(1, 2).flatten(1, 2)

    def unpatchify(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Put tokens ``(B, G * N, L)`` of a *grid* of N patches back together."""
        if self.num_groups > 1:
            tokens = tokens.unflatten(1, (self.num_groups, -1))
            tokens = tokens.transpose(1, 2).flatten(2)
        image = unpatchify(tokens, self.patch_size, grid)
        order = [g * self.group_size + slot for g, slot in self.locate_channels()]
        return image if order == list(range(image.shape[1])) else image[:, order]


def layout_of_state(encoder: Mapping[str, Tensor]) -> TokenLayout:
    """Derive the layout of the tokens from the tensors of an encoder."""
    kernel = encoder['patch_embed.proj.weight']
    patch_size = kernel.shape[-1]
    if kernel.ndim == 5:
        depth, cubes = kernel.shape[2], encoder['spectral_embed'].shape[1]
        return TokenLayout.cubes(patch_size, depth * cubes, depth)
    membership = encoder.get('patch_embed.band_group')
    if membership is None:
        return TokenLayout.whole(patch_size, kernel.shape[1])
    return TokenLayout.grouped(patch_size, membership.tolist())

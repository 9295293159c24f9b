# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The encoder as segmentation-models-pytorch wants it: maps at strides 2 to 32."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .encoder import SIGMAEViT
from .registry import NAMES
from .spectral import S2MAEViT, SatMAEViT

__all__ = ('PYRAMIDS', 'S2MAEPyramid', 'SIGMAEPyramid', 'SatMAEPyramid')

#: Strides of the maps, one per level of an smp decoder.
_STRIDES = (2, 4, 8, 16, 32)

#: Strides of the maps that hold pixels beside tokens.
_WITH_PIXELS = (2, 4)


class _Pyramid(SIGMAEViT):
    """A :class:`~.encoder.SIGMAEViT` that returns a pyramid of feature maps.

    A plain ViT has one resolution, that of its patches. Every level of the pyramid is a
    token map resampled to the level's stride: averaged where it is coarser than the
    patches, interpolated bilinearly where it is finer. The levels read blocks evenly
    spaced in depth, the finest the shallowest and the coarsest the last: of 12 blocks
    the 3rd, 5th, 8th, 10th and 12th for strides 2, 4, 8, 16 and 32, as UPerNet is fed
    in `BEiT <https://arxiv.org/abs/2106.08254>`__.

    The maps at strides 2 and 4 also hold the pixels of each of their cells, as further
    channels: what is to be segmented may be smaller than a patch, and tokens give up
    detail with depth. This is ours; what it gains is measured in
    ``docs/dev/weights.md``.

    There are no parameters beside the ViT's, so the state dict has the plain timm keys:
    loading is strict, and freezing this encoder freezes pretrained tensors only. The
    last block goes through the ViT's own final norm, hence equals its
    ``forward_features``; earlier blocks, whose tokens grow with depth, through a layer
    norm without weights.

    A state dict with positions of another grid brings its grid along: positions are
    interpolated once, from the grid they were learned on to that of the image.
    """

    def __init__(
        self, model: str, depth: int = 5, output_stride: int = 32, **kwargs: Any
    ) -> None:
        """Initialize a new pyramid.

        Args:
            model: One of our names, for example ``'sigmae_vit_small_patch8'``.
            depth: Number of maps, 1 to 5: strides 2 to ``2 ** depth``.
            output_stride: Largest stride: 8, 16 or 32.
            **kwargs: Passed to the encoder.
        """
        names = [n for n in NAMES if PYRAMIDS[NAMES[n].encoder] is type(self)]
        if model not in names:
            raise ValueError(f'model: {model!r} is not one of {names}.')
        if not 1 <= depth <= len(_STRIDES):
            raise ValueError(
                f'depth: {depth} maps were asked for; use 1 to {len(_STRIDES)} '
                '(encoder_depth of the smp model).'
            )
        arguments = {**NAMES[model].arguments(), 'num_classes': 0, **kwargs}
        super().__init__(**arguments, dynamic_img_pad=True)
        blocks = len(self.blocks)
        self._taken = [math.ceil(blocks * (i + 1) / depth) - 1 for i in range(depth)]
        self._strides = _STRIDES[:depth]
        if output_stride != _STRIDES[-1]:
            self.make_dilated(output_stride)

    @property
    def out_channels(self) -> list[int]:
        """Channels of the maps :meth:`forward` returns."""
        bands = self.layout.channels
        return [
            bands,
            *(
                self.embed_dim + (bands * stride**2 if stride in _WITH_PIXELS else 0)
                for stride in self._strides
            ),
        ]

    @property
    def output_stride(self) -> int:
        """Stride of the coarsest map."""
        return self._strides[-1]

    def make_dilated(self, output_stride: int) -> None:
        """Keep maps at *output_stride*, 8 or 16, or finer, which DeepLab asks for.

        Nothing is dilated: coarser maps are pooled less.
        """
        if output_stride not in (8, 16):
            raise ValueError(
                f'output_stride: {output_stride} is not possible; use 8, 16 or 32 '
                '(encoder_output_stride of the smp model).'
            )
        self._strides = tuple(min(stride, output_stride) for stride in self._strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the pyramid of images of any size ``(B, C, H, W)``.

        Patches over the edge are filled with zeros. Returns the images themselves and a
        map ``(B, D, ceil(H / s), ceil(W / s))`` for every stride s, with ``D + C * s *
        s`` channels at strides 2 and 4: last the pixels, band by band, row by row.
        """
        size = (x.shape[-2], x.shape[-1])
        grid = self.patch_embed.dynamic_feat_size(size)
        last, tokens = self.forward_intermediates(
            x, indices=self._taken, output_fmt='NLC'
        )
        tokens = [
            *(F.layer_norm(token, token.shape[-1:]) for token in tokens[:-1]),
            last[:, self.num_prefix_tokens :],
        ]
        maps = [token.transpose(1, 2).unflatten(2, grid) for token in tokens]
        patch = self.patch_embed.patch_size[0]
        pyramid = [x]
        for tokens_map, stride in zip(maps, self._strides, strict=True):
            level = _resample(tokens_map, patch, stride, size)
            if stride in _WITH_PIXELS:
                level = torch.cat([level, _pixels(x, stride).to(level.dtype)], dim=1)
            pyramid.append(level)
        return pyramid

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        """Take over the grid of the positions before they load."""
        positions = state_dict.get(f'{prefix}pos_embed')
        if positions is not None:
            skipped = 0 if self.no_embed_class else self.num_prefix_tokens
            count = positions.shape[1] - skipped
            side = math.isqrt(max(count, 0))
            # What is not square is refused by the hook of our base class.
            if side and side * side == count:
                patch = self.patch_embed.patch_size[0]
                self.set_input_size((side * patch, side * patch))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SIGMAEPyramid(_Pyramid):
    """The pyramid of ``sigmae_vit_*``."""


class S2MAEPyramid(_Pyramid, S2MAEViT):
    """The pyramid of ``s2mae_vit_*``: of the mean over the spectrum."""


class SatMAEPyramid(_Pyramid, SatMAEViT):
    """The pyramid of ``satmae_vit_*``: of the mean over the groups."""


#: The pyramid of each encoder.
PYRAMIDS: dict[type[SIGMAEViT], type[_Pyramid]] = {
    SIGMAEViT: SIGMAEPyramid,
    S2MAEViT: S2MAEPyramid,
    SatMAEViT: SatMAEPyramid,
}


def _resample(level: Tensor, patch: int, stride: int, size: tuple[int, int]) -> Tensor:
    """Bring a map of tokens of *patch* pixels to a stride, aligned with the images."""
    if stride > patch:
        # Windows over the edge average the tokens they hold.
        return F.avg_pool2d(level, stride // patch, ceil_mode=True)
    if stride < patch:
        scale = float(patch // stride)
        level = F.interpolate(level, scale_factor=scale, mode='bilinear')
    return level[..., : -(-size[0] // stride), : -(-size[1] // stride)]


def _pixels(image: Tensor, stride: int) -> Tensor:
    """Turn the pixels of every cell into channels, zero over the edge.

    Images ``(B, C, H, W)`` become maps ``(B, C * s * s, ceil(H / s), ceil(W / s))``.
    """
    height, width = image.shape[-2:]
    image = F.pad(image, (0, -width % stride, 0, -height % stride))
    return F.pixel_unshuffle(image, stride)

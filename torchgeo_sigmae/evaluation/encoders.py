# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoders that are not trained: raw images in, features out."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchgeo.models import get_model
from torchvision.models._api import WeightsEnum

from ..bands import SENTINEL2_TEN_BANDS, BandSet
from ..weights import load_weights, read_weights
from ..weights.packaged import PackagedWeights, normalization
from ..weights.read import find_weights
from ..weights.schema import check_model
from .baseline import POOLS, pool
from .position import position_share, rolled_batches

__all__ = ('FrozenEncoder',)


class FrozenEncoder(nn.Module):
    """Features of an encoder without training.

    Attributes:
        name: Name of the encoder in tables.
        bands: Names of the bands that it takes.
        transform: Raw values to the encoder's input; None until
            :meth:`fit_normalization` if it is not stored with the weights.
        position_bias: Part of the features ``(D, h, w)`` that depends on the position
            alone; subtracted by :meth:`patch_features`, see
            :meth:`remove_position_bias`.
        unit: Scale and offset of raw values: reflectance = value x scale + offset.
    """

    position_bias: Tensor | None
    unit: tuple[float, float] = (1e-4, 0.0)

    def __init__(
        self,
        encoder: nn.Module,
        bands: Sequence[str],
        transform: nn.Module | None = None,
        name: str = '',
        depth: int | None = None,
        pooling: str = 'mean',
        magnification: float = 1.0,
    ) -> None:
        """Initialize a new FrozenEncoder instance.

        Args:
            encoder: A timm model with ``forward_intermediates``.
            bands: Names of the bands that it takes.
            transform: Raw values to its input; None to fit a normalization later.
            name: Name in tables; default: that of the class.
            depth: Number of the block whose output is taken, from 1; None for the
                output of the encoder.
            pooling: ``'mean'`` over all patches, or ``'mean+std'``.
            magnification: Factor by which images are enlarged, bilinearly, before they
                are encoded: with 2, a patch of 8 px covers 4 px of the image.
        """
        super().__init__()
        if pooling not in POOLS:
            raise ValueError(f'pooling: {pooling!r} is unknown. Use one of {POOLS}.')
        self.encoder = encoder.eval().requires_grad_(False)
        self.bands = BandSet.from_data(bands)
        self.transform = transform
        self.name = name or type(encoder).__name__
        self.depth = depth
        self.pooling = pooling
        if not 0 < magnification < math.inf:
            raise ValueError(
                f'magnification: {magnification} is not positive. Pass 1 for none.'
            )
        self.magnification = magnification
        self.register_buffer('position_bias', None)
        blocks = len(getattr(encoder, 'blocks', getattr(encoder, 'feature_info', [])))
        if depth is not None and not 1 <= depth <= blocks:
            raise ValueError(f'depth: {depth} is not in 1 to {blocks} of {self.name}.')

    @classmethod
    def load(
        cls,
        source: WeightsEnum | str | Path,
        bands: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> 'FrozenEncoder':
        """Load an encoder from weights or by name.

        Args:
            source: Any source that :func:`.read_weights` takes; or the timm name of a
                model, which then has random weights.
            bands: Bands of a random encoder, default the ten of 10 and 20 m; or of
                weights that do not name theirs.
            **kwargs: Passed to the class: ``name``, ``depth``, ``pooling``,
                ``magnification``.
        """
        kwargs.setdefault('name', Path(str(source)).name)
        if isinstance(source, str) and timm.is_model(source):
            bands = BandSet.from_data(bands or SENTINEL2_TEN_BANDS)
            return cls(_build(source, len(bands)), bands, **kwargs)
        source = find_weights(source)
        if isinstance(source, WeightsEnum) and not isinstance(source, PackagedWeights):
            model = get_model(source.meta['model'], weights=source)
            return cls(model, source.meta['bands'], source.transforms, **kwargs)
        weights = read_weights(source, bands)
        info = weights.info
        if weights.bands is None:
            raise ValueError(
                f'weights: {str(source)!r} does not name its bands. Name them in '
                'order: bands=, --bands on the command line.'
            )
        check_model(info['model'], weights.encoder, weights.name)
        # On the grid of pretraining: positions are resampled once, to the images' size.
        size = {'img_size': info['size']} if info.get('size') else {}
        encoder = _build(info['model'], len(weights.bands), **size)
        load_weights(encoder, weights)
        transform = None
        if None not in (info.get('mean') or [None]):
            transform = normalization(info['mean'], info['std'])
        frozen = cls(encoder, weights.bands, transform, **kwargs)
        scale, offset = info.get('scale'), info.get('offset')
        if isinstance(scale, float) and isinstance(offset, float):
            frozen.unit = scale, offset
        return frozen

    def untrained(self) -> 'FrozenEncoder | None':
        """Return the same encoder with random weights; None if timm cannot build it."""
        model = getattr(self.encoder, 'pretrained_cfg', {}).get('architecture')
        if not model or not timm.is_model(model):
            return None
        encoder = _build(model, len(self.bands))
        name = f'{model}, untrained'
        options = (self.depth, self.pooling, self.magnification)
        return FrozenEncoder(encoder, self.bands, self.transform, name, *options)

    def fit_normalization(self, images: Tensor) -> None:
        """Normalize by mean and std of raw images ``(B, C, H, W)`` from now on."""
        values = images.double().movedim(1, 0).flatten(1)
        mean = values.nanmean(dim=1)
        variance = (values - mean[:, None]).square().nanmean(dim=1)
        std = variance.sqrt().clamp(min=1e-6)
        self.transform = normalization(mean.tolist(), std.tolist())

    def remove_position_bias(
        self, images: Tensor, count: int = 128, batch_size: int = 64
    ) -> None:
        """Estimate the part of the features that depends on the position alone.

        :meth:`patch_features` subtracts it from then on. Positions are added to the
        tokens of a transformer, and an encoder may keep them up to its last block;
        where positions in the image mean nothing, they are noise. The bias is the mean
        of the features at each position, over images that are rolled by random shifts.

        Args:
            images: Raw values ``(B, C, H, W)``, of the kind to be described.
            count: Approximate number of rolled images. The error that 128 leave
                was 0.5 % of the variance of tokens (packaged weights, one scene).
            batch_size: Number of images that are encoded at a time.
        """
        self.position_bias = None
        total, seen = torch.zeros(()), 0
        for batch in rolled_batches(images, count, batch_size):
            features = self.patch_features(batch.to(self._device))
            total = features.double().sum(dim=0) + total
            seen += len(batch)
        mean = total / seen
        self.position_bias = (mean - mean.mean(dim=(-2, -1), keepdim=True)).float()

    @torch.no_grad()
    def position_shares(
        self, images: Tensor, count: int = 256, batch_size: int = 64
    ) -> list[float]:
        """Measure how much of single tokens is their position, block by block.

        The share of a block, in [0, 1], is the variance of the mean token of each patch
        position, over the variance of all tokens; images are rolled by random shifts,
        which makes content independent of position. The variance that means over a
        finite number of images have by chance is subtracted. Arguments are those of
        :meth:`remove_position_bias`.
        """
        encoder: Any = self.encoder
        sums: list[Tensor] = []
        seen = 0
        for batch in rolled_batches(images, count, batch_size):
            blocks = encoder.forward_intermediates(
                self._normalized(batch.to(self._device)),
                norm=False,
                intermediates_only=True,
            )
            tokens = [block.double().flatten(2) for block in blocks]
            added = [torch.stack([x.sum(0), x.square().sum(0)]) for x in tokens]
            sums = [a + b for a, b in zip(sums, added, strict=True)] if sums else added
            seen += len(batch)
        return [position_share(total, square, seen) for total, square in sums]

    @property
    def _device(self) -> torch.device:
        """Device of the encoder."""
        return next(self.encoder.parameters()).device

    def _normalized(self, image: Tensor) -> Tensor:
        """Bring raw values to the encoder's input; missing pixels become the mean."""
        if self.transform is not None:
            image = self.transform(image).nan_to_num(0, 0, 0)
        if self.magnification == 1:
            return image
        return F.interpolate(
            image,
            scale_factor=self.magnification,
            mode='bilinear',
            antialias=self.magnification < 1,
        )

    @torch.no_grad()
    def patch_features(self, image: Tensor) -> Tensor:
        """Describe the patches of raw images ``(B, C, H, W)``.

        Returns ``(B, D, h, w)``, one for each patch of the magnified image.
        """
        encoder: Any = self.encoder
        features: Tensor
        (features,) = encoder.forward_intermediates(
            self._normalized(image),
            indices=1 if self.depth is None else [self.depth - 1],
            norm=self.depth is None,
            intermediates_only=True,
        )
        if self.position_bias is None:
            return features
        if features.shape[1:] != self.position_bias.shape:
            raise ValueError(
                'image: the position bias was estimated for '
                f'{tuple(self.position_bias.shape[1:])} patches, not for '
                f'{tuple(features.shape[2:])}. Pass images of the size that '
                'remove_position_bias had.'
            )
        return features - self.position_bias

    def forward(self, image: Tensor, patches: Tensor | None = None) -> Tensor:
        """Describe raw images ``(B, C, H, W)``: ``(B, D)``, or ``(B, 2 D)`` with std.

        *patches* are what :meth:`patch_features` returned for them; None to compute it.
        """
        if patches is None:
            patches = self.patch_features(image)
        return pool(patches.flatten(2), self.pooling)


def _build(model: str, channels: int, **kwargs: Any) -> Any:
    """Build a model without a head; vision transformers take images of any size."""
    if timm.model_entrypoint(model).__module__.endswith('.vision_transformer'):
        kwargs['dynamic_img_size'] = True
    return timm.create_model(model, in_chans=channels, num_classes=0, **kwargs)

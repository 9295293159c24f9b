# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Encoders that are not trained: raw images in, features out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchgeo.models import get_model
from torchvision.models._api import WeightsEnum

from ..bands import SENTINEL2_TEN_BANDS, BandSet
from ..patches import cut_patches
from ..weights import load_weights, read_weights
from ..weights.packaged import PackagedWeights, normalization
from ..weights.read import find_weights
from ..weights.schema import check_model

__all__ = ('POOLS', 'BandStatistics', 'Frozen', 'FrozenEncoder')

#: How the features of all places become those of an image.
POOLS: tuple[str, ...] = ('mean', 'mean+std')


class Frozen(nn.Module, ABC):
    """What describes raw images ``(B, C, H, W)`` by features ``(B, D)``.

    Attributes:
        name: What to call it in tables.
        bands: Names of the bands it takes.
    """

    name: str
    bands: BandSet

    @property
    def ready(self) -> bool:
        """Whether it knows how to normalise its input, or has no need to."""
        return True

    def standardize(self, image: Tensor) -> None:
        """Normalise by the statistics of some images, where nothing else is known.

        Args:
            image: Raw values ``(B, C, H, W)``.
        """

    @abstractmethod
    def maps(self, image: Tensor) -> Tensor:
        """Describe the places of images.

        Args:
            image: Raw values ``(B, C, H, W)``.

        Returns:
            Features ``(B, D, h, w)``.
        """

    @abstractmethod
    def pooled(self, image: Tensor, maps: Tensor) -> Tensor:
        """Describe images whose places are described.

        Args:
            image: Raw values ``(B, C, H, W)``.
            maps: What :meth:`maps` says of them.

        Returns:
            Features ``(B, D)``, those of ``forward``.
        """


class BandStatistics(Frozen):
    """Mean and standard deviation of every band: what any encoder has to beat."""

    def __init__(self, bands: Sequence[str] = SENTINEL2_TEN_BANDS) -> None:
        """Initialize a new BandStatistics instance.

        Args:
            bands: Names of the bands.
        """
        super().__init__()
        self.name = 'band mean and std'
        self.bands = BandSet.from_data(bands)

    def forward(self, image: Tensor) -> Tensor:
        """Describe images.

        Args:
            image: Raw values ``(B, C, H, W)``.

        Returns:
            Features ``(B, 2 C)``.
        """
        return pool(image.flatten(2), 'mean+std')

    def pooled(self, image: Tensor, maps: Tensor) -> Tensor:
        """Describe images, which does not take the description of their places.

        Args:
            image: Raw values ``(B, C, H, W)``.
            maps: Not used.

        Returns:
            Features ``(B, 2 C)``.
        """
        return self.forward(image)

    def maps(self, image: Tensor, patch_size: int = 8) -> Tensor:
        """Describe the patches of images.

        Args:
            image: Raw values ``(B, C, H, W)``.
            patch_size: Side of a patch in pixels; must divide H and W.

        Returns:
            Features ``(B, 2 C, H / patch_size, W / patch_size)``.
        """
        return pool(cut_patches(image, patch_size).flatten(-2), 'mean+std')


class FrozenEncoder(Frozen):
    """Features of an encoder as it is.

    Attributes:
        transform: Raw values to the encoder's input; None if that is not known yet.
        position_bias: Part of the features ``(D, h, w)`` that depends on the position
            alone; subtracted by :meth:`maps`, see :meth:`remove_position_bias`.
    """

    position_bias: Tensor | None

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
            bands: Names of the bands it takes.
            transform: Raw values to its input; None where :meth:`standardize` will say.
            name: What to call it in tables.
            depth: Number of the block whose output is taken, from 1; None for the
                output of the encoder.
            pooling: ``'mean'`` over all places, or ``'mean+std'``.
            magnification: Factor by which images are enlarged, bilinearly, before they
                are encoded: 2 shows an encoder that knows patches of 8 px ones of 4 px.

        Raises:
            ValueError: If there is no such block or pooling, or *magnification* is
                not positive.
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
        """Make an encoder of weights or of a name.

        Args:
            source: An exported encoder or training checkpoint of ours, a weight enum of
                ours or TorchGeo's, its string; or the timm name of a model, which then
                has random weights.
            bands: Bands of a random encoder, default the ten of 10 and 20 m. Weights
                tell their own.
            **kwargs: Passed to the class: ``name``, ``depth``, ``pooling``,
                ``magnification``.

        Returns:
            The encoder.

        Raises:
            FileNotFoundError: If there is no such file, weight enum or model.
            ValueError: If the file is not in the format, or tells no bands.
        """
        kwargs.setdefault('name', Path(str(source)).name)
        if isinstance(source, str) and timm.is_model(source):
            bands = BandSet.from_data(bands or SENTINEL2_TEN_BANDS)
            encoder = _build(source, len(bands))
            return cls(encoder, bands, **kwargs)
        source = find_weights(source)
        if isinstance(source, WeightsEnum) and not isinstance(source, PackagedWeights):
            model = get_model(source.meta['model'], weights=source)
            return cls(model, source.meta['bands'], source.transforms, **kwargs)
        weights = read_weights(source)
        known = weights.info
        if weights.bands is None:
            raise ValueError(
                f'weights: {str(source)!r} does not tell its bands. Pass a file made '
                'by SIGMAETask.export.'
            )
        model = known['model']
        check_model(model, weights.encoder, weights.name)
        # On the grid of pretraining: positions are resampled once, to the images' size.
        size = {'img_size': known['size']} if known.get('size') else {}
        encoder = _build(model, len(known['bands']), **size)
        load_weights(encoder, weights)
        transform = None
        if None not in (known.get('mean') or [None]):
            transform = normalization(known['mean'], known['std'])
        return cls(encoder, weights.bands, transform, **kwargs)

    def untrained(self) -> 'FrozenEncoder | None':
        """Make the same encoder with random weights, normalised alike.

        Returns:
            The encoder; None if timm does not know how to build it.
        """
        model = getattr(self.encoder, 'pretrained_cfg', {}).get('architecture')
        if not model or not timm.is_model(model):
            return None
        return FrozenEncoder(
            _build(model, len(self.bands)),
            self.bands,
            self.transform,
            f'{model}, untrained',
            self.depth,
            self.pooling,
            self.magnification,
        )

    @property
    def ready(self) -> bool:
        """Whether it knows how to normalise its input."""
        return self.transform is not None

    def standardize(self, image: Tensor) -> None:
        """Normalise by the statistics of some images, where nothing else is known.

        Args:
            image: Raw values ``(B, C, H, W)``.
        """
        if not self.ready:
            mean = image.double().mean(dim=(0, 2, 3)).tolist()
            std = image.double().std(dim=(0, 2, 3)).clamp(min=1e-6).tolist()
            self.transform = normalization(mean, std)

    def remove_position_bias(
        self, images: Tensor, count: int = 256, batch_size: int = 64
    ) -> None:
        """Estimate the part of the features that depends on the position alone.

        :meth:`maps` subtracts it from then on. Positions are added to the tokens of a
        transformer, and an encoder may keep them up to its last block; where positions
        in the image mean nothing, they are noise. The bias is the mean of the features
        at each position, over images that are rolled by random shifts.

        Args:
            images: Raw values ``(B, C, H, W)``, of the kind to be described.
            count: About how many rolled images to take.
            batch_size: Number of images that are encoded at a time.
        """
        self.position_bias = None
        total, seen = torch.zeros(()), 0
        for batch in self._rolled(images, count, batch_size):
            total = self.maps(batch).double().sum(dim=0) + total
            seen += len(batch)
        mean = total / seen
        self.position_bias = (mean - mean.mean(dim=(-2, -1), keepdim=True)).float()

    @torch.no_grad()
    def position_shares(
        self, images: Tensor, count: int = 256, batch_size: int = 64
    ) -> list[float]:
        """Measure how much of single tokens is their position, block by block.

        The share of a block is the variance of the mean token of each patch position,
        over the variance of all tokens; images are rolled by random shifts, so that
        content does not depend on position. The variance that means over a finite
        number of images have by chance is taken off.

        Args:
            images: Raw values ``(B, C, H, W)``.
            count: About how many rolled images to take.
            batch_size: Images at a time.

        Returns:
            A share in [0, 1] for every block, the first block first.
        """
        encoder: Any = self.encoder
        sums: list[tuple[Tensor, Tensor]] = []
        seen = 0
        for batch in self._rolled(images, count, batch_size):
            blocks = encoder.forward_intermediates(
                self._normalized(batch), norm=False, intermediates_only=True
            )
            tokens = [block.double().flatten(2) for block in blocks]
            added = [(x.sum(dim=0), x.square().sum(dim=0)) for x in tokens]
            if sums:
                pairs = zip(sums, added, strict=True)
                added = [(a + c, b + d) for (a, b), (c, d) in pairs]
            sums = added
            seen += len(batch)
        return [_position_share(total, square, seen) for total, square in sums]

    def _rolled(self, images: Tensor, count: int, batch_size: int) -> Iterator[Tensor]:
        """Roll images by random shifts, about *count* in all, batch by batch."""
        generator = torch.Generator().manual_seed(0)
        device = next(self.encoder.parameters()).device
        side = max(images.shape[-2:])
        for _ in range(math.ceil(count / len(images))):
            shifts = torch.randint(side, (len(images), 2), generator=generator)
            rolled = [
                image.roll(shift, (-2, -1))
                for image, shift in zip(images, shifts.tolist(), strict=True)
            ]
            for batch in torch.stack(rolled).split(batch_size):
                yield batch.to(device)

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
    def maps(self, image: Tensor) -> Tensor:
        """Describe the places of images.

        Args:
            image: Raw values ``(B, C, H, W)``.

        Returns:
            Features ``(B, D, h, w)``, one a patch of the scaled image.

        Raises:
            ValueError: If the position bias is that of images of another size.
        """
        encoder: Any = self.encoder
        (maps,) = encoder.forward_intermediates(
            self._normalized(image),
            indices=1 if self.depth is None else [self.depth - 1],
            norm=self.depth is None,
            intermediates_only=True,
        )
        features: Tensor = maps
        if self.position_bias is None:
            return features
        if features.shape[1:] != self.position_bias.shape:
            raise ValueError(
                'image: the position bias is known for '
                f'{tuple(self.position_bias.shape[1:])} patches, not for '
                f'{tuple(features.shape[2:])}. Pass images of the size that '
                'remove_position_bias had.'
            )
        return features - self.position_bias

    def forward(self, image: Tensor) -> Tensor:
        """Describe images.

        Args:
            image: Raw values ``(B, C, H, W)``.

        Returns:
            Features ``(B, D)``, or ``(B, 2 D)`` with ``'mean+std'``.
        """
        return self.pooled(image, self.maps(image))

    def pooled(self, image: Tensor, maps: Tensor) -> Tensor:
        """Describe images whose places are described.

        Args:
            image: Not used.
            maps: Features ``(B, D, h, w)``.

        Returns:
            Features ``(B, D)``, or ``(B, 2 D)`` with ``'mean+std'``.
        """
        return pool(maps.flatten(2), self.pooling)


def pool(values: Tensor, pooling: str) -> Tensor:
    """Pool over all places.

    Args:
        values: Features ``(B, D, ..., N)``.
        pooling: One of :data:`POOLS`.

    Returns:
        Features ``(B, D, ...)`` or ``(B, 2 D, ...)``.
    """
    mean = values.mean(dim=-1)
    if pooling == 'mean':
        return mean
    return torch.cat([mean, values.std(dim=-1, correction=0)], dim=1)


def _position_share(total: Tensor, square: Tensor, count: int) -> float:
    """Share of position in the variance of tokens, from sums over images ``(D, N)``."""
    mean = total / count
    center = mean.mean(dim=1, keepdim=True)
    variance = (square / count).mean(dim=1) - center.squeeze(1).square()
    positions = (mean - center).square().mean(dim=1)
    within = (variance - positions).sum()
    between = positions.sum() - within / (count - 1)
    return float((between / variance.sum()).clamp(0, 1))


def _build(model: str, channels: int, **kwargs: Any) -> Any:
    """Build a model without a head; vision transformers take images of any size."""
    module = timm.model_entrypoint(model).__module__
    plain = module.endswith('.vision_transformer')
    if plain:
        kwargs['dynamic_img_size'] = True
    return timm.create_model(model, in_chans=channels, num_classes=0, **kwargs)

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Streams as what packs are made from."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor

from ..bands import BandSet
from .band_files import UNIT
from .pack_index import choose_bands
from .pack_shards import Chip

__all__ = ('StreamSource',)


class StreamSource:
    """Samples of a dataset without length, in one pass and in its order.

    A pack that was interrupted goes on behind the samples of its finished shards, which
    are read again and dropped.
    """

    def __init__(
        self,
        stream: Iterable[dict[str, Any]],
        bands: BandSet,
        chosen: Sequence[str] | None = None,
        key: str = 'image',
        scale: float = UNIT,
        offset: float = 0.0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Initialize a new StreamSource instance.

        Args:
            stream: A dataset that yields dictionaries with an image ``(C, H, W)`` or
                ``(H, W)``, all of one size.
            bands: Names of the channels of the image, in order.
            chosen: Bands to pack, in order; None for all.
            key: Key of the image.
            scale: Reflectance = value x scale + offset.
            offset: Reflectance at 0.
            settings: What decides about the samples.

        Raises:
            ValueError: If the stream is empty, or a sample has no such image.
        """
        self._stream, self._key = stream, key
        self.bands, self._channels = choose_bands(bands, chosen, 'the stream')
        self._count = len(bands)
        self.scale, self.offset = scale, offset
        first = next(iter(stream), None)
        if first is None:
            raise ValueError('source: the stream is empty.')
        image = self._image(first, 0)
        self.shape = len(self.bands), image.shape[1], image.shape[2]
        self.sources = [{'name': type(stream).__name__}]
        self.settings = {
            **(settings or {}),
            'bands': list(self.bands),
            'shape': list(self.shape),
        }
        self._samples: Iterator[dict[str, Any]] = iter(())
        self._position: int | None = None

    def read(self, start: int, stop: int, skipped: set[str]) -> Iterator[Chip | None]:
        """Read a range of chips, which ends early where the stream does."""
        if self._position != start:
            self._samples = islice(iter(self._stream), start, None)
            self._position = start
        for sample in islice(self._samples, stop - start):
            image = self._image(sample, self._position)[self._channels]
            if image.shape != self.shape:
                raise ValueError(
                    f'source: the image of sample {self._position} is {image.shape}, '
                    f'that of the first {self.shape}. Crop or pad the images in a '
                    'transform of the stream.'
                )
            self._position += 1
            yield Chip(image, 0)

    def _image(self, sample: Any, number: int) -> np.ndarray:
        """The image of a sample ``(C, H, W)``, float32."""
        image = sample.get(self._key) if isinstance(sample, dict) else None
        if not isinstance(image, Tensor):
            keys = [k for k, v in dict(sample).items() if isinstance(v, Tensor)]
            raise ValueError(
                f'key: sample {number} holds no image under {self._key!r}, but under '
                f'{keys}. Pass one of them.'
            )
        image = image[None] if image.ndim == 2 else image
        if image.ndim != 3 or len(image) != self._count:
            raise ValueError(
                f'bands: {self._count} names for the image {tuple(image.shape)} of '
                f'sample {number}. Pass one name for every channel.'
            )
        return image.float().numpy()

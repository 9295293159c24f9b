# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Imagery that is sound, odd or broken, drawn by hypothesis.

Each input is drawn as a recipe whose ``repr`` makes it again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from hypothesis import strategies as st

from helpers import oracles
from helpers.geotiffs import write

#: A band that no default index needs, and those of the oracle of saliency.
BANDS = ('B02', *oracles.BANDS)

#: Flaws of pixels, by name: functions of a generator and an image ``(C, H, W)``.
FLAWS: dict[str, Any] = {
    'sound': lambda rng, image: None,
    'zeros': lambda rng, image: image.fill(0),
    'constant': lambda rng, image: image.fill(
        rng.integers(1, min(5000, int(_largest(image))))
    ),
    'almost constant': lambda rng, image: np.add(
        min(1000, _largest(image) - 1), image % 2, out=image, casting='unsafe'
    ),
    'stripe': lambda rng, image: image[:, :, _span(rng, image.shape[2])].fill(0),
    'rows': lambda rng, image: image[:, _span(rng, image.shape[1])].fill(0),
    'dark band': lambda rng, image: image[rng.integers(len(image))].fill(0),
    'saturated': lambda rng, image: image.__setitem__(
        rng.random(image.shape) < 0.3, _largest(image)
    ),
    'all saturated': lambda rng, image: image.fill(_largest(image)),
    'negative': lambda rng, image: image.__isub__(2000 * _signed(image)),
    'nan': lambda rng, image: _sprinkle(rng, image, np.nan),
    'all nan': lambda rng, image: image.fill(np.nan if _float(image) else 0),
    'inf': lambda rng, image: _sprinkle(rng, image, np.inf),
    '-inf': lambda rng, image: _sprinkle(rng, image, -np.inf),
}

_DTYPES = ('uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'float32', 'float64')
_PROFILES: tuple[dict[str, Any], ...] = (
    {}, {'compress': 'deflate'}, {'compress': 'lzw', 'predictor': 2},
    {'compress': 'zstd'}, {'interleave': 'band'},
    {'tiled': True, 'blockxsize': 16, 'blockysize': 16, 'compress': 'deflate'},
    {'bigtiff': 'yes'},
)  # fmt: skip
_LOCAL = 'LOCAL_CS["mine",UNIT["metre",1]]'
_AZIMUTHAL = (
    'PROJCS["c",GEOGCS["g",DATUM["d",SPHEROID["s",6378137,298.25]],PRIMEM["Greenwich",'
    '0],UNIT["degree",0.0174532925199433]],PROJECTION["Lambert_Azimuthal_Equal_Area"],'
    'PARAMETER["latitude_of_center",-90],PARAMETER["longitude_of_center",0],'
    'UNIT["metre",1]]'
)
_MOON = (
    'GEOGCS["Moon",DATUM["D",SPHEROID["Moon",1737400,0]],PRIMEM["R",0],'
    'UNIT["degree",0.0174532925199433]]'
)
_UTM = Affine(10, 0, 5e5, 0, -10, 5e6)
#: Where on Earth: nowhere, degrees, over the pole, a system of one's own, turned.
_PLACES: dict[str, tuple[str | None, Affine | None]] = {
    'none': (None, None), 'utm': ('EPSG:32632', _UTM),
    'degrees': ('EPSG:4326', Affine(1e-4, 0, 10, 0, -1e-4, 50)),
    'beyond': ('EPSG:4326', Affine(10, 0, 170, 0, -10, 100)),
    'pole': ('EPSG:3413', Affine(30, 0, -300, 0, -30, 300)),
    'own': (_AZIMUTHAL, Affine(10, 0, 0, 0, -10, 0)),
    'local': (_LOCAL, Affine(1, 0, 0, 0, -1, 0)), 'moon': (_MOON, _UTM),
    'turned': ('EPSG:32632', Affine(7, 7, 5e5, 7, -7, 5e6)),
    'south up': ('EPSG:32632', Affine(10, 0, 5e5, 0, 10, 5e6)),
    'off the map': ('EPSG:32632', Affine(1e9, 0, 0, 0, -1e9, 1e12)),
    'nan': ('EPSG:32632', Affine(np.nan, 0, 5e5, 0, -10, 5e6)),
    'inf': ('EPSG:32632', Affine(10, 0, np.inf, 0, -10, 5e6)),
}  # fmt: skip
_LAYOUTS = ('ordered', 'swapped', 'more', 'missing', 'unnamed', 'twice', 'complex')


@dataclass(frozen=True)
class Chips:
    """A batch of chips in reflectance x 10000, each with a flaw."""

    side: int
    flaws: tuple[str, ...]
    seed: int

    def make(self) -> np.ndarray:
        """Draw it, ``(B, C, side, side)`` float32."""
        rng = np.random.default_rng(self.seed)
        shape = (len(BANDS), self.side, self.side)
        images = np.empty((len(self.flaws), *shape), np.float32)
        for image, flaw in zip(images, self.flaws, strict=True):
            image[:] = rng.integers(1, 10000, shape)
            FLAWS[flaw](rng, image)
        return images


@dataclass(frozen=True)
class Scene:
    """A GeoTIFF with one flaw of its pixels and one of its header."""

    height: int
    width: int
    dtype: str
    flaw: str
    nodata: float | None
    place: str
    profile: int
    layout: str
    seed: int

    def write(self, path: Path) -> np.ndarray | None:
        """Write it.

        Returns:
            What must be read of it, NaN where pixels are missing; None if the file must
            be refused.
        """
        rng = np.random.default_rng(self.seed)
        high = min(10000, np.iinfo(self.dtype).max if self.dtype[0] in 'iu' else 10000)
        count = len(BANDS) + (self.layout == 'more')
        image = rng.integers(1, high, (count, self.height, self.width)).astype(
            self.dtype
        )
        FLAWS[self.flaw](rng, image)
        names, order = [*BANDS, 'QA'][:count], list(range(count))
        if self.layout == 'swapped':
            order = rng.permutation(count).tolist()
        if self.layout in ('missing', 'twice'):
            names[2] = {'missing': 'QA', 'twice': 'B03'}[self.layout]
        crs, transform = _PLACES[self.place]
        stored = image[order].astype('complex64' if self.layout == 'complex' else None)
        profile = dict(_PROFILES[self.profile])
        if self.layout == 'complex' or image.dtype.kind == 'f':
            profile.pop('predictor', None)
        described = None
        if self.layout != 'unnamed':
            described = [names[i] for i in order]
        if crs is not None:
            profile |= {'crs': crs, 'transform': transform}
        write(path, stored, described, nodata=self.nodata, **profile)
        if self.layout in ('missing', 'unnamed', 'twice', 'complex'):
            return None
        return self._expected(image[: len(BANDS)])

    def _expected(self, image: np.ndarray) -> np.ndarray:
        """As the documentation has it, in float64."""
        wanted = image.astype('float32')
        if self.nodata is not None:
            same = image.astype('float64') == self.nodata
            wanted[same & (same.all(0) if self.nodata == 0 else True)] = np.nan
        return wanted


_sides = st.integers(1, 48)
chips = st.builds(
    Chips,
    st.sampled_from((8, 16, 32, 40)),
    st.lists(st.sampled_from(sorted(FLAWS)), min_size=32, max_size=32).map(tuple),
    st.integers(0, 2**32),
)
scenes = st.builds(
    Scene, _sides, _sides, st.sampled_from(_DTYPES), st.sampled_from(sorted(FLAWS)),
    st.sampled_from((None, 0.0, 1.0, 127.0)), st.sampled_from(sorted(_PLACES)),
    st.integers(0, len(_PROFILES) - 1),
    # Half of them are to be read.
    st.one_of(st.sampled_from(_LAYOUTS[:3]), st.sampled_from(_LAYOUTS)),
    st.integers(0, 2**32),
)  # fmt: skip
#: Sound as far as one knows, until bytes of the file change.
plain = st.builds(
    Scene, st.integers(16, 48), st.integers(16, 48),
    st.sampled_from(('uint16', 'int16', 'float32')),
    st.sampled_from(('sound', 'stripe')), st.sampled_from((None, 0.0)),
    st.sampled_from(('none', 'utm')), st.integers(0, len(_PROFILES) - 1),
    st.just('ordered'), st.integers(0, 2**32),
)  # fmt: skip


@dataclass(frozen=True)
class Damage:
    """What happens to the bytes of a file."""

    how: str
    seed: int

    def apply(self, data: bytes) -> bytes:
        """Make the damaged file."""
        rng = np.random.default_rng(self.seed)
        changed, size = bytearray(data), len(data)
        if self.how == 'truncated':
            del changed[rng.integers(size) :]
        elif self.how in ('flipped', 'header flipped'):
            end = size if self.how == 'flipped' else min(size, 800)
            for _ in range(rng.integers(1, 9)):
                changed[rng.integers(end)] ^= 1 << int(rng.integers(8))
        else:
            start = 0 if self.how == 'header zeroed' else int(rng.integers(size))
            end = min(size, start + int(rng.integers(1, 400)))
            changed[start:end] = bytes(end - start)
        return bytes(changed)


damages = st.builds(
    Damage,
    st.sampled_from(
        ('truncated', 'flipped', 'header flipped', 'zeroed', 'header zeroed')
    ),
    st.integers(0, 2**32),
)


def _span(rng: np.random.Generator, length: int) -> slice:
    start = int(rng.integers(length))
    return slice(start, start + int(rng.integers(1, length + 1)))


def _largest(image: np.ndarray) -> float:
    return float(np.iinfo(image.dtype).max) if image.dtype.kind in 'iu' else 65535.0


def _signed(image: np.ndarray) -> bool:
    return image.dtype.kind == 'f' or image.dtype in ('int16', 'int32')


def _float(image: np.ndarray) -> bool:
    return image.dtype.kind == 'f'


def _sprinkle(rng: np.random.Generator, image: np.ndarray, value: float) -> None:
    if _float(image):
        image[rng.random(image.shape) < rng.choice([0.001, 0.05, 0.5])] = value

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Training, validation and test chips of a pack that share no ground."""

import warnings

import numpy as np
from rasterio import CRS
from rasterio.warp import transform

from .pack_index import PackIndex
from .splits import TOLERANCE, choose_places

__all__ = ('split_pack',)

#: Strips that are tried at every side.
_CUTS = 257


def split_pack(
    index: PackIndex,
    source: np.ndarray,
    window: np.ndarray,
    fraction: float,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Split the chips of a pack.

    Sources with the split ``'val'`` or ``'test'`` keep it. Where none is for
    validation, a share of the others is set aside, whole places of the ground if they
    add up to it, else a strip of the largest place, with a gap of one chip.

    Args:
        index: The index of the pack.
        source: Index of the source of every chip ``(N,)``.
        window: First row and column of every chip in its source ``(N, 2)``.
        fraction: Share of the chips to set aside, in [0, 1).
        seed: Seed of the choice.

    Returns:
        Numbers of the chips of ``'train'``, ``'val'`` and ``'test'``, in order.

    Raises:
        ValueError: If no chip is left to train on, or none can be set aside.

    Warns:
        UserWarning: If the share is not met within a tenth.
    """
    names = np.array([each.get('split', '') for each in index.sources])[source]
    test, val = np.flatnonzero(names == 'test'), np.flatnonzero(names == 'val')
    train = np.flatnonzero((names != 'test') & (names != 'val'))
    if not len(train):
        raise ValueError('root: all chips of the pack are for validation or test.')
    if fraction and not len(val):
        train, val = _set_aside(index, train, source, window, fraction, seed)
    return {'train': train, 'val': val, 'test': test}


def _set_aside(
    index: PackIndex,
    chips: np.ndarray,
    source: np.ndarray,
    window: np.ndarray,
    fraction: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation chips."""
    generator = np.random.default_rng(seed)
    places = _places(index, chips, source[chips])
    chosen, error = choose_places(np.bincount(places), fraction, generator)
    aside = np.isin(places, chosen)
    train, val = chips[~aside], chips[aside]
    if error > TOLERANCE:
        inside = places == np.bincount(places).argmax()
        low, high = _extents(index, chips[inside], source, window)
        others = len(chips) - int(inside.sum())
        cut = _cut(low, high, others, fraction, generator)
        if cut is not None and cut[2] < error:
            used, held = ~inside, np.zeros(len(chips), bool)
            used[inside], held[inside], error = cut
            train, val = chips[used], chips[held]
    if not len(val):
        raise ValueError(
            f'val_fraction: {fraction}, but the {len(chips)} chips show the same '
            'ground and cannot be split with a gap of one chip between. Pass '
            'val_fraction=0, or pack more data.'
        )
    if error > TOLERANCE:
        share = len(val) / (len(train) + len(val))
        warnings.warn(
            f'val_fraction: {fraction:.3g} was asked for, and {share:.3g} is set '
            f'aside. The chips show {len(np.unique(places))} places, which do not '
            'add up to that share.',
            stacklevel=2,
        )
    return train, val


def _places(index: PackIndex, chips: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Number of the place of every chip; dates of a sample show the same."""
    place = np.array([each.get('place', -1) for each in index.sources])[source]
    dates = np.array([each.get('dates', 1) for each in index.sources])[source]
    sample = len(index.sources) + chips // dates
    return np.unique(np.where(place < 0, sample, place), return_inverse=True)[1].ravel()


def _extents(
    index: PackIndex, chips: np.ndarray, source: np.ndarray, window: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest coordinates of chips of one place, ``(N, 2)``.

    In degrees, or in pixels without georeference.
    """
    low, high = np.empty((2, len(chips), 2))
    size = np.array(index.shape[1:])
    for number in np.unique(source[chips]):
        mine = source[chips] == number
        first = window[chips[mine]].astype(float)
        corners = [first + size * (i, j) for i in (0, 1) for j in (0, 1)]
        points = np.stack(corners)[..., ::-1]
        about = index.sources[number]
        if 'crs' in about:
            # Windows count from the file, the transform from the part that was packed.
            points -= about.get('origin', (0, 0))[::-1]
            a, b, c, d, e, f = about['transform']
            x, y = points @ (a, b) + c, points @ (d, e) + f
            crs = CRS.from_wkt(about['crs'])
            degrees = transform(crs, 'EPSG:4326', x.ravel(), y.ravel())
            points = np.stack(degrees, axis=-1).reshape(points.shape)
        low[mine], high[mine] = points.min(0), points.max(0)
    return low, high


def _cut(
    low: np.ndarray,
    high: np.ndarray,
    others: int,
    fraction: float,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Cut a strip off one of the four sides of a place.

    Args:
        low: Lowest coordinates of chips, ``(N, 2)``.
        high: Highest coordinates.
        others: Number of training chips elsewhere.
        fraction: Share of the validation chips.
        generator: Chooses among equal sides.

    Returns:
        Training and validation chips, boolean ``(N,)``, and the relative error of the
        share; None if a gap of one chip leaves nothing.
    """
    best = None
    for side in generator.permutation(4):
        axis, sign = side // 2, 1 - 2 * (side % 2)
        near, far = np.sort([sign * low[:, axis], sign * high[:, axis]], axis=0)
        gap = np.median(far - near)
        tolerance = 1e-3 * gap
        first = np.quantile(near, np.linspace(0, 1, _CUTS), method='nearest')
        held = len(near) - np.searchsorted(np.sort(near), first - tolerance)
        last = first - gap + tolerance
        used = others + np.searchsorted(np.sort(far), last, 'right')
        errors = np.where(used > 0, abs(held / (held + used) / fraction - 1), np.inf)
        choice = int(errors.argmin())
        error = float(errors[choice])
        if np.isfinite(error) and (best is None or error < best[2]):
            best = far <= last[choice], near >= first[choice] - tolerance, error
    return best

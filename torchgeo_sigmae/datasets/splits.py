# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Training and validation scenes that share no ground.

Scenes that overlap show one place, and a place is set aside as a whole. Where whole
places do not add up to the share asked for, a block is cut out of the largest place,
with a gap of one chip around it.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import shapely
from rasterio.errors import RasterioError
from rasterio.warp import transform_geom
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from shapely import STRtree
from shapely.geometry import mapping, shape

from .blocks import TOLERANCE, cut_largest, outline
from .scenes import RasterScene

__all__ = ('TOLERANCE', 'choose_places', 'label_places', 'split_scenes')

#: Random orders of places that are tried; fewer if there are many.
_TRIES, _MOST_STEPS = 1000, 100_000


def split_scenes(
    scenes: Sequence[RasterScene], fraction: float, size: int, seed: int = 0
) -> tuple[list[RasterScene], list[RasterScene]]:
    """Set a share of the area aside for validation.

    Args:
        scenes: The scenes. Those without georeference count as different places.
        fraction: Share of the pixels of the validation scenes, in (0, 1).
        size: Side of the chips in pixels: the gap between a validation block and the
            training pixels of the same place, and the smallest side of a part.
        seed: Seed of the choice.

    Returns:
        Training scenes, then validation scenes. They are whole or parts of one. A
        warning says if the share is not met within a tenth.

    Raises:
        ValueError: If there is one place, too small to be cut.
    """
    generator = np.random.default_rng(seed)
    places = label_places(scenes)
    pixels = np.array([scene.num_pixels for scene in scenes], float)
    chosen, error = choose_places(np.bincount(places, pixels), fraction, generator)
    aside = np.isin(places, chosen)
    train = [scene for scene, val in zip(scenes, aside, strict=True) if not val]
    val = [scene for scene, val in zip(scenes, aside, strict=True) if val]
    if error > TOLERANCE:
        cut = cut_largest(scenes, places, fraction, size, generator)
        if cut is not None and cut[2] < error:
            train, val, error = cut
    if not val:
        raise ValueError(
            f'val_fraction: {fraction}, but the {len(scenes)} scenes show the same '
            f'ground and cannot be split: a block and a gap of one chip, {size} px, do '
            'not fit in. Pass val_fraction=0, a smaller size=, or val_paths= to choose.'
        )
    if error > TOLERANCE:
        warnings.warn(
            f'val_fraction: {fraction:.3g} was asked for, and {_share(train, val):.3g} '
            f'is set aside. The {len(scenes)} scenes show {places.max() + 1} places, '
            f'which do not add up to that share, and a block with a gap of one chip, '
            f'{size} px, does not fit in. Pass val_paths= to choose, or a smaller '
            'size=.',
            stacklevel=2,
        )
    return train, val


def label_places(scenes: Sequence[RasterScene]) -> np.ndarray:
    """Label scenes by the ground they show.

    Scenes that overlap by a pixel or more, directly or through others, get the same
    number ``(N,)``. A scene without georeference is a place of its own.
    """
    outlines = np.array([outline(scene) for scene in scenes], dtype=object)
    systems = [scene.crs.wkt if scene.crs else '' for scene in scenes]
    group = np.unique(systems, return_inverse=True)[1]
    pairs = [np.empty((2, 0), int)]
    for number in range(group.max() + 1):
        members = np.flatnonzero(group == number)
        near = STRtree(outlines[members]).query(outlines[members], 'intersects')
        pairs.append(members[near])
    if len(pairs) > 2:
        pairs.append(_pairs_across_systems(scenes, outlines, group))
    first, second = np.concatenate(pairs, axis=1)
    shape = len(scenes), len(scenes)
    graph = coo_array((np.ones(len(first)), (first, second)), shape=shape)
    return connected_components(graph, directed=False)[1]


def _pairs_across_systems(
    scenes: Sequence[RasterScene], outlines: np.ndarray, group: np.ndarray
) -> np.ndarray:
    """Pairs ``(2, N)`` of scenes in different systems that overlap."""
    boxes = np.array([_degrees(scene) for scene in scenes], dtype=object)
    # Across the date line, longitudes go on to 181 degrees, which is -179 degrees.
    turned = shapely.transform(boxes, lambda xy: xy - (360, 0))
    tree = STRtree(boxes)
    pairs = np.concatenate([tree.query(b, 'intersects') for b in (boxes, turned)], 1)
    pairs = pairs[:, group[pairs[0]] != group[pairs[1]]]
    overlap = [
        _overlaps(outlines[i], outlines[j], scenes[i], scenes[j]) for i, j in pairs.T
    ]
    return pairs[:, np.array(overlap, bool)]


def _overlaps(
    one: shapely.Polygon,
    other: shapely.Polygon,
    first: RasterScene,
    second: RasterScene,
) -> bool:
    """Return whether two outlines in the systems of two scenes overlap."""
    try:
        dense = one.segmentize(max(one.length / 64, 1e-9))
        moved = shape(transform_geom(first.crs, second.crs, mapping(dense)))
    except RasterioError:
        return True
    return bool(moved.intersects(other))


def _degrees(scene: RasterScene) -> shapely.Polygon | None:
    """Box around a scene in degrees, or None."""
    if scene.footprint is None:
        return None
    west, south, east, north = scene.footprint
    return shapely.box(west, south, east + 360 * (east < west), north)


def _share(train: Sequence[RasterScene], val: Sequence[RasterScene]) -> float:
    """Share of the pixels that are set aside."""
    train_pixels = sum(scene.num_pixels for scene in train)
    val_pixels = sum(scene.num_pixels for scene in val)
    return val_pixels / max(train_pixels + val_pixels, 1)


def choose_places(
    areas: np.ndarray, fraction: float, generator: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Choose places whose areas add up to a share, and return its relative error.

    At least one place is left for training.
    """
    wanted = fraction * areas.sum()
    best, least = np.empty(0, int), np.inf
    if len(areas) < 2:
        return best, least
    for _ in range(min(_TRIES, max(_MOST_STEPS // len(areas), 1))):
        chosen: list[int] = []
        total = 0.0
        for place in generator.permutation(len(areas)):
            after = total + areas[place]
            if abs(after - wanted) < abs(total - wanted) or not chosen:
                chosen, total = [*chosen, place], after
            if total >= wanted * (1 - 1e-9) or len(chosen) > len(areas) - 2:
                break
        error = abs(total - wanted) / wanted
        if error < least:
            best, least = np.array(chosen), error
        if error <= TOLERANCE:
            break
    return best, least

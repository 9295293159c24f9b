# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Cut a validation block out of a place, with a gap of one chip around it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from affine import Affine
from rasterio.warp import transform_geom
from shapely.geometry import mapping, shape

from .scenes import RasterScene

__all__ = ('TOLERANCE', 'Place', 'cut_largest', 'outline')

#: Largest relative error of the share that is set aside.
TOLERANCE = 0.1

#: Sizes of blocks that are tried, as shares of a place.
_SIZES = np.geomspace(1e-4, 1, 200)

#: A validation block with a smaller share of valid pixels is not used.
_MIN_VALID = 0.25


def outline(scene: RasterScene) -> shapely.Polygon | None:
    """Outline of a scene without half a pixel or so, in its own system, or None."""
    if scene.crs is None or not np.isfinite(tuple(scene.transform)).all():
        return None
    # Of a single row, something remains. Coordinates are rounded.
    left, top = (min(0.475, 0.4 * side) for side in (scene.width, scene.height))
    right, bottom = scene.width - left, scene.height - top
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    return shapely.Polygon([scene.transform @ corner for corner in corners])


@dataclass(frozen=True)
class Place:
    """Scenes of one place on the pixel grid of the largest of them.

    Attributes:
        boxes: First column and row, and those after the last one, ``(N, 4)``.
        density: Pixels of a scene per pixel of the grid, ``(N,)``.
        chips: Width and height of a chip, or a smaller scene, on the grid, ``(N, 2)``.
        regular: Scenes with axes parallel to those of the grid, ``(N,)``. The others
            are not cut, and left out if they touch a block.
    """

    boxes: np.ndarray
    density: np.ndarray
    chips: np.ndarray
    regular: np.ndarray

    @classmethod
    def of(cls, scenes: Sequence[RasterScene], size: int) -> 'Place':
        """Put scenes on one grid."""
        largest = max(scenes, key=lambda scene: scene.num_pixels)
        # A scene alone may have no valid transform.
        to_grid = Affine.identity() if len(scenes) == 1 else ~largest.transform
        boxes, regular = [], []
        for scene in scenes:
            if scene.crs == largest.crs:
                change = to_grid @ (scene.transform if len(scenes) > 1 else to_grid)
                corners = [
                    change @ (x, y) for x in (0, scene.width) for y in (0, scene.height)
                ]
                skew = abs(change.b) * scene.height + abs(change.d) * scene.width
                regular.append(skew < 0.01 and change.a > 0 and change.e > 0)
            else:
                polygon = outline(scene)
                assert polygon is not None
                dense = mapping(polygon.segmentize(polygon.length / 64))
                moved = shape(transform_geom(scene.crs, largest.crs, dense))
                corners = [to_grid @ point for point in shapely.get_coordinates(moved)]
                regular.append(False)
            boxes.append((*np.min(corners, axis=0), *np.max(corners, axis=0)))
        grid = np.array(boxes).round(6)
        sides = np.array([(scene.width, scene.height) for scene in scenes])
        scale = (grid[:, 2:] - grid[:, :2]) / sides
        return cls(
            grid, 1 / scale.prod(1), np.minimum(sides, size) * scale, np.array(regular)
        )

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks at the corners and along the sides, each with its kind."""
        boxes = self.boxes[self.regular]
        low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
        extent, least = high - low, self.chips.max(0)
        for power, across in ((0.5, (1, 1)), (1, (1, 0)), (1, (0, 1))):
            sides = np.where(across, _SIZES[:, None] ** power, 1) * extent
            sides = np.unique(
                np.clip(sides.round(), np.minimum(least, extent), extent), axis=0
            )
            for corner in range(4):
                right, lower = corner % 2, corner // 2
                if (right and not across[0]) or (lower and not across[1]):
                    continue
                start = low + (right, lower) * (extent - sides)
                for block in np.concatenate([start, start + sides], axis=1):
                    yield 4 * (2 * across[0] + across[1]) + corner, block

    def inside(self, block: np.ndarray) -> np.ndarray:
        """Parts in a block, ``(1, N, 4)``; those smaller than a chip are empty."""
        part = _intersection(self.boxes, block)
        part[~(self.regular & self._kept(part, 1))] = 0
        return part[None]

    def outside(self, block: np.ndarray) -> np.ndarray:
        """Parts at a distance of one chip from a block, ``(5, N, 4)``.

        Those to the left, to the right, above, below, and whole scenes. Those smaller
        than a chip are empty.
        """
        gap = self.chips.max(0)
        outer = block + np.concatenate([-gap, gap])
        touched = self._kept(_intersection(self.boxes, outer), 0)
        # Left and right as high as the scene, above and below as wide as the block.
        low, high = np.full(2, -np.inf), np.full(2, np.inf)
        around = [
            [*low, outer[0], high[1]],
            [outer[2], low[1], *high],
            [outer[0], low[1], outer[2], outer[1]],
            [outer[0], outer[3], outer[2], high[1]],
        ]
        parts = [_intersection(self.boxes, np.array(box)) for box in around]
        cuttable = (touched & self.regular)[:, None]
        parts = [np.where(cuttable, part, 0) for part in parts]
        parts.append(np.where(touched[:, None], 0, self.boxes))
        for part in parts:
            part[~self._kept(part, 1)] = 0
        return np.stack(parts)

    def _kept(self, part: np.ndarray, chips: float) -> np.ndarray:
        """Return whether parts hold a chip, or, with 0, any pixel."""
        least = np.maximum(chips * self.chips - 1e-3, 1e-3)
        return (part[:, 2:] - part[:, :2] > least).all(1)

    def pixels(self, parts: np.ndarray) -> float:
        """Number of pixels of parts ``(K, N, 4)``."""
        areas = (parts[..., 2:] - parts[..., :2]).prod(-1)
        return float((areas * self.density).sum())

    def windows(
        self, scenes: Sequence[RasterScene], parts: np.ndarray
    ) -> list[RasterScene]:
        """Parts ``(K, N, 4)`` as scenes."""
        result = []
        for number, scene in enumerate(scenes):
            box = self.boxes[number]
            for part in parts[:, number]:
                if (part[2:] <= part[:2]).any():
                    continue
                if (part == box).all():
                    result.append(scene)
                    continue
                scale = (box[2:] - box[:2]) / (scene.width, scene.height)
                left, top = np.ceil((part[:2] - box[:2]) / scale - 1e-3).astype(int)
                right, bottom = np.floor((part[2:] - box[:2]) / scale + 1e-3).astype(
                    int
                )
                result.append(scene.part(top, left, bottom - top, right - left))
        return result


def _intersection(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Intersections of boxes ``(N, 4)`` with one, 0 where there is none."""
    result = np.concatenate(
        [np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])], axis=1
    )
    result[(result[:, 2:] <= result[:, :2]).any(1)] = 0
    return result


def cut_largest(
    scenes: Sequence[RasterScene],
    places: np.ndarray,
    fraction: float,
    size: int,
    generator: np.random.Generator,
) -> tuple[list[RasterScene], list[RasterScene], float] | None:
    """Set a block of the largest place aside, and others if that is not enough.

    Returns training and validation scenes and the relative error of the share, or None
    if no block fits in.
    """
    areas = np.bincount(places, [scene.num_pixels for scene in scenes])
    total, largest = areas.sum(), int(areas.argmax())
    # Whole places first, where more than half of the largest would be needed.
    whole, missing = [], fraction * total
    for other in generator.permutation(len(areas)):
        if missing <= areas[largest] / 2:
            break
        if other != largest and areas[other] <= missing:
            whole.append(other)
            missing -= areas[other]
    aside = np.isin(places, whole)
    before = areas[whole].sum()
    members = [scene for scene, n in zip(scenes, places, strict=True) if n == largest]
    place = Place.of(members, size)
    rest = total - before - areas[largest]
    # The best block of every kind: by its share of all pixels, and of those in use.
    best: dict[int, tuple[float, float, np.ndarray]] = {}
    for kind, block in place.blocks():
        val_pixels = place.pixels(place.inside(block))
        train_pixels = place.pixels(place.outside(block))
        if not val_pixels or not train_pixels:
            continue
        val_pixels, train_pixels = before + val_pixels, rest + train_pixels
        of_all = abs(val_pixels / total / fraction - 1)
        of_used = abs(val_pixels / (val_pixels + train_pixels) / fraction - 1)
        rank = max(of_all, of_used) + (of_used > 0.9 * TOLERANCE)
        if kind not in best or rank < best[kind][0]:
            best[kind] = rank, of_used, block
    kinds = list(generator.permutation(sorted(best)))
    # Equally good ones in random order.
    kinds.sort(key=lambda kind: round(best[kind][0] / 0.02))
    for kind in kinds:
        _, error, block = best[kind]
        val = place.windows(members, place.inside(block))
        train = place.windows(members, place.outside(block))
        if not _has_data(max(val, key=lambda scene: scene.num_pixels)):
            continue
        for scene, number, out in zip(scenes, places, aside, strict=True):
            if number != largest:
                (val if out else train).append(scene)
        return train, val, error
    return None


def _has_data(scene: RasterScene) -> bool:
    """Return whether enough pixels of a scene are valid; True if unreadable."""
    try:
        values = scene.preview(max(max(scene.height, scene.width) // 64, 1))
    except OSError:
        return True
    return bool(np.isfinite(values).any(0).mean() >= _MIN_VALID)

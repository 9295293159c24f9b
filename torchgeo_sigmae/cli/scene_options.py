# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The options that every command on scenes shares."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..bands import (
    EUROSAT_BANDS,
    OSCD_BANDS,
    SENTINEL2_BANDS,
    SENTINEL2_L2A_BANDS,
    BandSet,
    Sensor,
)

if TYPE_CHECKING:
    from ..datasets.scenes import RasterScene

__all__ = ('SceneOptions',)

#: Band orders that have a name, for files without band descriptions.
_ORDERS = {
    'eurosat': EUROSAT_BANDS,
    'l1c': SENTINEL2_BANDS,
    'l2a': SENTINEL2_L2A_BANDS,
    'oscd': OSCD_BANDS,
}


@dataclass(frozen=True)
class SceneOptions:
    """Options of the scenes to map, of reading them, and of the output.

    Attributes:
        scene: GeoTIFFs, folders with a file per band (.SAFE), or patterns of them.
        output: The GeoTIFF to write; or a folder, for a map of every scene.
        png: Draw a picture beside every map.
        aoi: File of polygons, in any coordinate reference system: pixels outside are
            missing.
        bands_in_file: Bands of a file without band descriptions: names in order, or one
            of eurosat, l1c, l2a, oscd.
        sensor: Sensor of the bands.
        nodata: Value of missing pixels; by default the file's own, or else 0.
        scale: Reflectance is value x scale + offset; by default as the file says, or
            else 1e-4.
        offset: Reflectance of the value 0; by default as the file says, or else 0.
        mask_band: SCL or QA_PIXEL: a band whose clouds are missing.
        window: Side of the windows that are read, in pixels; about 1024 by default.
    """

    scene: Sequence[str]
    _: KW_ONLY
    output: Path
    png: bool = False
    aoi: Path | None = None
    bands_in_file: Sequence[str] | None = None
    sensor: str | Sensor = 'sentinel2'
    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None
    mask_band: str | None = None
    window: int | None = None

    def targets(self, name: str, suffix: str = '.tif') -> Iterator[tuple[str, Path]]:
        """Pair every scene with the file to write, named after the scene and *name*."""
        from ..datasets.paths import clean_path

        paths = dict.fromkeys(
            clean_path(path)
            for pattern in self.scene
            for path in sorted(glob.glob(pattern, recursive=True)) or [pattern]
        )
        if self.output.is_dir() or not self.output.suffix:
            maps = {
                path: self.output / f'{Path(path).stem}_{name}{suffix}'
                for path in paths
            }
        elif len(paths) == 1:
            maps = dict.fromkeys(paths, self.output)
        else:
            raise ValueError(
                f'output: {str(self.output)!r} is one file, but there are {len(paths)} '
                'scenes. Pass a folder.'
            )
        twice = [str(path) for path, n in Counter(maps.values()).items() if n > 1]
        if twice:
            raise ValueError(f'output: several scenes would become {twice[0]}.')
        for path, target in maps.items():
            if target.exists() and os.path.exists(path) and target.samefile(path):
                raise ValueError(f'output: {target} is the scene itself.')
            yield path, target

    def open(self, path: str, bands: BandSet, patch_size: int) -> 'RasterScene':
        """Open a scene, and crop it to the patches of the area of interest.

        Says so if the scene has no georeference, or implausible values.
        """
        from lightning.pytorch.utilities import rank_zero_info

        from ..datasets.units import check_reflectance, sample_values

        scene = self._open(path, bands, patch_size)
        check_reflectance(sample_values(scene), scene.bands, scene.path, scene.unit)
        if scene.crs is None:
            rank_zero_info(f'{scene.path} has no georeference: its map is in pixels.')
        return scene

    def open_rgb(self, scene: 'RasterScene', patch_size: int) -> 'RasterScene':
        """Open a scene again in red, green and blue, if it has them."""
        try:
            rgb = BandSet(('red', 'green', 'blue'), scene.bands.sensor)
            return self._open(scene.path, rgb, patch_size)
        except (ValueError, FileNotFoundError):
            return scene

    def _open(self, path: str, bands: BandSet, patch_size: int) -> 'RasterScene':
        """Open and crop a scene."""
        from ..maps.read import crop, open_raster
        from ..maps.regions import read_aoi

        names = self.bands_in_file
        if names and len(names) == 1:
            names = _ORDERS.get(names[0].lower(), names)
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f'scale: {self.scale} is not positive. Pass 1e-4 or so.')
        scene = open_raster(
            path, bands, names, self.nodata, self.scale, self.offset, self.mask_band
        )
        if self.aoi:
            scene = crop(scene, read_aoi(self.aoi, scene.crs), patch_size)
        return scene

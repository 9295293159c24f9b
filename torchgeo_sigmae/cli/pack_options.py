# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Options of ``torchgeo-sigmae pack``."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

__all__ = ('PackOptions',)


@dataclass(frozen=True)
class PackOptions:
    """What is packed, and how it is read.

    Attributes:
        source: A folder of scenes; a configuration (.yaml) with a datamodule under
            data; or the class of a dataset or datamodule, for example EuroSAT. With
            --check, a pack.
        output: Folder of the pack.
        arguments: Arguments of the class, for example root=data/eurosat split=train.
        key: Key of the image in a sample of a stream, for example s2_toa.pth of
            CopernicusPretrain.
        splits: Splits of a dataset; by default those it has of train, val and test.
        bands: Bands to pack, in order; by default all that are known, of scenes the ten
            of Sentinel-2 at 10 and 20 m.
        sensor: Sensor of the bands; by default that of the data, or else Sentinel-2.
        size: Side of the chips of scenes in pixels, 128 by default. PackedDataModule
            crops smaller images from them at random.
        min_valid: Chips of scenes with a smaller share of pixels with data are left
            out.
        paths: Patterns of scenes in the folder; by default all GeoTIFFs.
        exclude: Patterns of scenes to leave out.
        bands_in_file: Bands of scenes without band descriptions, in order.
        nodata: Value of missing pixels; by default the file's own.
        scale: Reflectance is value x scale + offset; of scenes by default as the file
            tells, or else 1e-4.
        offset: Reflectance of the value 0.
        mask_band: SCL or QA_PIXEL: a band whose clouds are missing.
        allow_missing_bands: Scenes may lack some of the bands.
        skip_unreadable: Leave out scenes that cannot be read, with a warning.
        saliency: Measure the saliency of every chip, for saliency_power of
            PackedDataModule. Takes one to four milliseconds per chip of 128 px.
    """

    source: str
    _: KW_ONLY
    output: Path | None = None
    arguments: Sequence[str] = ()
    key: str = 'image'
    splits: Sequence[str] | None = None
    bands: Sequence[str] | None = None
    sensor: str | None = None
    size: int | None = None
    min_valid: float = 0.25
    paths: Sequence[str] | None = None
    exclude: Sequence[str] = ()
    bands_in_file: Sequence[str] | None = None
    nodata: float | None = None
    scale: float | None = None
    offset: float | None = None
    mask_band: str | None = None
    allow_missing_bands: bool = False
    skip_unreadable: bool = False
    saliency: bool = False

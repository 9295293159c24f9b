# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What ``torchgeo-sigmae pack`` is given: a folder, a configuration or a class."""

import inspect
import os
import pydoc
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torchgeo.datamodules
import torchgeo.datasets
import yaml  # type: ignore[import-untyped]
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from torch.utils.data import IterableDataset
from torchgeo.datamodules import GeoDataModule

from .. import _public
from ..bands import SENTINEL2_TEN_BANDS, BandSet, get_sensor
from ..datamodules import SceneDataModule
from ..datamodules.inspect import datamodule_bands, datamodule_dates
from ..datasets.band_files import UNIT
from ..datasets.find import GEOTIFFS
from ..datasets.pack_shards import ChipStream
from ..datasets.pack_sources import DatasetSource, SceneSource
from ..datasets.pack_streams import StreamSource
from ..tasks.settings import BatchSpec
from .pack_options import PackOptions
from .parser import OneLineErrors, suggestion

__all__ = ('open_source',)

#: Side of chips of scenes, in pixels: random crops of 96 px are still random.
_SIZE = 128


def open_source(options: PackOptions) -> ChipStream:
    """Open what is to be packed.

    Raises:
        ValueError: If it is nothing that can be packed, or an option does not fit it.
    """
    is_folder = os.path.isdir(options.source)
    is_config = options.source.endswith(('.yaml', '.yml'))
    kind = None if is_folder or is_config else _find_class(options.source)
    is_stream = kind is not None and issubclass(kind, IterableDataset)
    if options.key != PackOptions.key and not is_stream:
        raise ValueError(
            f'key: {options.key!r} is for streams, and {options.source} is none. Leave '
            'it out.'
        )
    if is_folder:
        return _open_folder(options)
    if kind is None:
        return _open_datamodule(_read_config(options.source), {}, options)
    arguments = _arguments(options)
    if is_stream:
        return _open_stream(kind, arguments, options)
    if issubclass(kind, LightningDataModule):
        return _open_datamodule(kind(**arguments), arguments, options)
    return _open_dataset(kind, arguments, options)


def _open_folder(options: PackOptions) -> ChipStream:
    """Scenes in a folder."""
    bands = options.bands
    if bands is None and options.sensor:
        bands = [band.name for band in get_sensor(options.sensor).bands]
    datamodule = SceneDataModule(
        options.source,
        bands or SENTINEL2_TEN_BANDS,
        val_fraction=0,
        sensor=options.sensor,
        paths=options.paths or GEOTIFFS,
        exclude=options.exclude,
        bands_in_file=options.bands_in_file,
        nodata=options.nodata,
        scale=options.scale,
        offset=options.offset,
        mask_band=options.mask_band,
        allow_missing_bands=options.allow_missing_bands,
        on_error='skip' if options.skip_unreadable else 'raise',
    )
    return _open_scenes(datamodule, options.size or _SIZE, options)


def _open_scenes(
    datamodule: SceneDataModule, size: int, options: PackOptions
) -> ChipStream:
    """The scenes of a datamodule; those of its patterns keep their split."""
    splits = datamodule.find_splits()
    if not splits['val'] and not splits['test']:
        splits = {'': splits['train']}
    settings = {
        name: value
        for name, value in datamodule.reading.items()
        if name != 'allow_missing_bands'
    }
    return SceneSource(splits, size, options.min_valid, datamodule.on_error, settings)


def _open_datamodule(
    datamodule: Any, arguments: dict[str, Any], options: PackOptions
) -> ChipStream:
    """The datasets of a datamodule by split."""
    name = type(datamodule).__name__
    if isinstance(datamodule, SceneDataModule):
        return _open_scenes(datamodule, options.size or datamodule.size, options)
    if isinstance(datamodule, GeoDataModule):
        raise ValueError(
            f'source: {name} samples windows in space and has no list of images. Pack '
            'the folder of its files.'
        )
    datamodule.prepare_data()
    datamodule.setup('fit')
    parts = {}
    for split in ('train', 'val'):
        parts[split] = getattr(datamodule, f'{split}_dataset', None)
    if parts['train'] is None:
        parts['train'] = getattr(datamodule, 'dataset', None)
    try:
        datamodule.setup('test')
        parts['test'] = getattr(datamodule, 'test_dataset', None)
    # A datamodule for pretraining has no test data.
    except (MisconfigurationException, NotImplementedError) as error:
        if not options.splits:
            print(f'{name} is packed without a test split: {error}')
    parts = {split: part for split, part in parts.items() if part is not None}
    if missing := set(options.splits or ()) - set(parts):
        raise ValueError(
            f'splits: {name} has no {", ".join(sorted(missing))}, only '
            f'{", ".join(parts)}. Choose among these.'
        )
    parts = {split: parts[split] for split in options.splits or parts}
    settings = {'source': name, 'arguments': arguments}
    return _datasets(parts, datamodule, datamodule_dates(datamodule), settings, options)


def _open_dataset(
    kind: type[Any], arguments: dict[str, Any], options: PackOptions
) -> ChipStream:
    """A dataset by its class, split by split."""
    split = inspect.signature(kind).parameters.get('split')
    if split is not None and 'split' not in arguments:
        known: Any = getattr(kind, 'splits', None)
        known = known or getattr(kind, 'splits_metadata', ())
        usual = [name for name in ('train', 'val', 'test') if name in known]
        splits = options.splits or usual or [split.default]
        parts = {name: kind(**arguments, split=name) for name in splits}
    else:
        parts = {str(arguments.get('split', 'train')): kind(**arguments)}
    about = SimpleNamespace(dataset_class=kind, kwargs=arguments)
    settings = {'source': kind.__name__, 'arguments': arguments}
    return _datasets(parts, about, datamodule_dates(about), settings, options)


def _open_stream(
    kind: type[Any], arguments: dict[str, Any], options: PackOptions
) -> ChipStream:
    """A dataset without length, in one pass."""
    if arguments.get('resampled'):
        raise ValueError('arguments: resampled=true never ends. Leave it out.')
    names, chosen = BatchSpec(key=options.key).bands, options.bands
    if names is None:
        names, chosen = chosen, None
    if names is None:
        raise ValueError(
            f'bands: not known for {options.key!r} of {kind.__name__}. Pass --key '
            's2_toa.pth or another modality, or --bands with a name for each channel.'
        )
    return StreamSource(
        kind(**arguments),
        BandSet.from_data(names, options.sensor),
        chosen,
        options.key,
        UNIT if options.scale is None else options.scale,
        options.offset or 0.0,
        {'source': kind.__name__, 'arguments': arguments, 'key': options.key},
    )


def _datasets(
    parts: Mapping[str, Any],
    datamodule: object,
    dates: int,
    settings: dict[str, Any],
    options: PackOptions,
) -> ChipStream:
    """Datasets whose bands a datamodule, or what looks like one, tells."""
    bands, chosen = datamodule_bands(datamodule), options.bands
    if bands is not None and options.sensor:
        bands = BandSet.from_data(list(bands), options.sensor)
    if bands is None and chosen is None:
        raise ValueError(
            f'bands: not known for {settings["source"]}. Pass --bands with a name for '
            'each channel of its images, in order.'
        )
    if bands is None:
        bands, chosen = BandSet.from_data(chosen or (), options.sensor), None
    return DatasetSource(
        parts,
        bands,
        chosen,
        dates,
        UNIT if options.scale is None else options.scale,
        options.offset or 0.0,
        settings,
    )


def _find_class(name: str) -> type:
    """A dataset or datamodule by its name."""
    if '.' in name:
        found = pydoc.locate(name)
        names = []
    else:
        modules = (
            torchgeo.datasets,
            torchgeo.datamodules,
            _public.datasets,
            _public.datamodules,
        )
        found = next((getattr(m, name) for m in modules if hasattr(m, name)), None)
        names = [each for module in modules for each in module.__all__]
    if not isinstance(found, type):
        raise ValueError(
            f'source: {name!r} is no folder, no .yaml file, and no class of '
            f'torchgeo.datasets or torchgeo.datamodules.{suggestion(name, names)} Give '
            'other classes by their full path, package.module.Class.'
        )
    return found


def _arguments(options: PackOptions) -> dict[str, Any]:
    """Arguments of a class, read as YAML."""
    arguments = {}
    for argument in options.arguments:
        name, equals, value = argument.partition('=')
        if not equals:
            raise ValueError(
                f'arguments: {argument!r} is no name=value. Pass for example '
                'root=data/eurosat.'
            )
        arguments[name] = yaml.safe_load(value)
    return arguments


def _read_config(path: str) -> object:
    """The datamodule under ``data`` of a configuration for ``fit``."""
    content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    if not isinstance(content, dict) or 'data' not in content:
        raise ValueError(
            f'source: {path} has no section data, which names a datamodule.'
        )
    parser = OneLineErrors(prog='torchgeo-sigmae pack')
    parser.add_subclass_arguments(LightningDataModule, 'data')
    parsed = parser.parse_object({'data': content['data']})
    # The name since jsonargparse 4.49, then the one before.
    instantiate = getattr(parser, 'instantiate', None) or parser.instantiate_classes
    return instantiate(parsed).data

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``torchgeo-sigmae pack``: chips of any data in files that are read at once."""

import inspect
import os
import pydoc
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..datamodules import SceneDataModule
    from ..datasets.pack_shards import ChipStream

__all__ = ('PackOptions', 'pack')

#: Side of chips of scenes, in pixels: random crops of 96 px are still random.
_SIZE = 128


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


def pack(
    options: PackOptions,
    *,
    shard_size: float = 512,
    num_workers: int = 0,
    check: bool = False,
) -> list[Path]:
    """Pack scenes or a dataset for PackedDataModule, which reads them at once.

    After an interruption, the same command goes on. Values stay as they are read: in 16
    bits where they are such integers, else in float32.

    Args:
        options: What is packed, and how it is read.
        shard_size: Largest size of a file in MiB; half of it is used where values fit
            into 16 bits.
        num_workers: Number of processes, each of which writes a file; 0 for one.
        check: Compare the files of the pack SOURCE with their checksums, and pack
            nothing.

    Returns:
        The index of the pack.

    Raises:
        OSError: If something cannot be read or written, or a file of the pack is
            damaged.
        ValueError: If an argument is wrong, or the folder holds something else.
    """
    from ..datasets.pack_index import INDEX
    from ..datasets.packing import check_pack, write_pack
    from ..datasets.paths import clean_path, is_remote

    if check:
        if wrong := check_pack(options.source):
            raise OSError(f'{len(wrong)} files are damaged: {" ".join(wrong)}')
        print(f'All files of {options.source} are as they were packed.')
        return []
    if options.output is None:
        raise ValueError('output: not given. Pass the folder of the pack.')
    if is_remote(url := clean_path(options.output)):
        raise ValueError(
            f'output: {url} is remote. Pass a local folder, and copy it when it is '
            'written.'
        )
    if not shard_size > 0:
        raise ValueError(f'shard_size: {shard_size} must be positive, in MiB.')
    index = write_pack(
        _open(options),
        options.output,
        int(shard_size * 2**20),
        num_workers,
        options.saliency,
    )
    size = sum(shard.bytes for shard in index.shards)
    print(
        f'{index.count} chips of {index.shape[1]} x {index.shape[2]} px and '
        f'{index.shape[0]} bands, {size / 2**30:.2f} GiB in {len(index.shards)} files.'
    )
    if index.skipped:
        print(f'Could not be read: {", ".join(index.skipped)}.')
    return [options.output / INDEX]


def _open(options: PackOptions) -> 'ChipStream':
    """Open what is packed."""
    from lightning.pytorch import LightningDataModule
    from torch.utils.data import IterableDataset

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


def _open_folder(options: PackOptions) -> 'ChipStream':
    """Scenes in a folder."""
    from ..bands import SENTINEL2_TEN_BANDS, get_sensor
    from ..datamodules import SceneDataModule
    from ..datasets.find import GEOTIFFS

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
    datamodule: 'SceneDataModule', size: int, options: PackOptions
) -> 'ChipStream':
    """The scenes of a datamodule; those of its patterns keep their split."""
    from ..datasets.pack_sources import SceneSource

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
) -> 'ChipStream':
    """The datasets of a datamodule by split."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from torchgeo.datamodules import GeoDataModule

    from ..datamodules import SceneDataModule
    from ..datamodules.inspect import datamodule_dates

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
) -> 'ChipStream':
    """A dataset by its class, split by split."""
    from ..datamodules.inspect import datamodule_dates

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
) -> 'ChipStream':
    """A dataset without length, in one pass."""
    from ..bands import BandSet
    from ..datasets.band_files import UNIT
    from ..datasets.pack_streams import StreamSource
    from ..tasks.settings import BatchSpec

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
) -> 'ChipStream':
    """Datasets whose bands a datamodule, or what looks like one, tells."""
    from ..bands import BandSet
    from ..datamodules.inspect import datamodule_bands
    from ..datasets.band_files import UNIT
    from ..datasets.pack_sources import DatasetSource

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
    import torchgeo.datamodules
    import torchgeo.datasets

    from .. import datamodules, datasets
    from .parser import suggestion

    if '.' in name:
        found = pydoc.locate(name)
        names = []
    else:
        modules = (torchgeo.datasets, torchgeo.datamodules, datasets, datamodules)
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
    import yaml  # type: ignore[import-untyped]

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
    import yaml
    from lightning.pytorch import LightningDataModule

    from .. import _public  # noqa: F401
    from .parser import OneLineErrors

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

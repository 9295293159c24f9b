# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""From the arguments of a task to its model, and to its record in a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info
from torchvision.models._api import WeightsEnum

from .._compat import TORCHGEO_VERSION
from ..bands import SENTINEL2, SENTINEL2_TEN_BANDS, BandSet, get_sensor
from ..datamodules.inspect import datamodule_bands
from ..masking import MaskSchedule
from ..models import MaskedAutoencoder
from ..transforms import PatchSaliency
from ..transforms.indices import DEFAULT_INDICES, get_index
from ..weights import load_weights
from .checks import check_arguments
from .encoder import encoder_settings, family, start_encoder
from .settings import Guidance
from .statistics import BatchStatistics

__all__ = (
    'Parts',
    'build',
    'default_bands',
    'default_indices',
    'describe_encoder',
    'other_bands',
)


class Parts(NamedTuple):
    """The parts of a task.

    Attributes:
        model: The model, with the weights it starts from.
        schedule: How it masks.
        saliency: The saliency of its bands; None without any index.
        history: What earlier stages were trained on, as the weights say.
    """

    model: MaskedAutoencoder
    schedule: MaskSchedule
    saliency: PatchSaliency | None
    history: list[dict[str, Any]]


def build(
    hparams: dict[str, Any],
    bands: BandSet,
    guidance: Guidance,
    source: WeightsEnum | str | Path | None,
) -> Parts:
    """Build the parts of a task.

    Args:
        hparams: The arguments of the task; choices that they leave to the bands or the
            weights are filled in.
        bands: The bands the model sees.
        guidance: How saliency steers the mask.
        source: The argument ``weights`` of the task.

    Raises:
        ValueError: If arguments do not fit each other or the weights.
        FileNotFoundError: If there is no such file.
    """
    choose_masking(hparams, bands)
    check_arguments(
        bands,
        hparams['in_channels'],
        hparams['target'],
        hparams['spectral_weight'],
        hparams['predict_ratio'],
        hparams['band_dropout'],
    )
    encoder, weights = start_encoder(
        hparams['model'],
        bands,
        hparams['size'],
        hparams['encoder_kwargs'] or {},
        source,
    )
    model = MaskedAutoencoder(
        encoder,
        hparams['decoder'],
        hparams['decoder_dim'],
        hparams['decoder_depth'],
        hparams['decoder_num_heads'],
        len(hparams['indices']) if hparams['spectral_weight'] else None,
    )
    if weights is not None:
        load_weights(model, weights)
    # Cubes and groups that came with weights, so that checkpoints need no weights.
    hparams['encoder_kwargs'] = encoder_settings(encoder, bands)
    schedule = MaskSchedule(
        hparams['masking'],
        hparams['mask_ratio'],
        guidance.strength,
        guidance.schedule,
        model.layout.num_groups,
    )
    saliency = None
    if hparams['indices'] or schedule.guided:
        saliency = PatchSaliency(
            bands,
            model.patch_size,
            hparams['indices'],
            guidance.richness_weight,
            guidance.combination,
            nodata=None,
        )
    history = weights.info.get('trained_on', []) if weights else []
    return Parts(model, schedule, saliency, history)


def default_bands(names: Sequence[str] | None, sensor: Any) -> BandSet:
    """The bands of a task: those named, or the usual ones of the sensor."""
    if names is None:
        described = get_sensor(sensor or 'sentinel2')
        every = tuple(band.name for band in described.bands)
        names = SENTINEL2_TEN_BANDS if described is SENTINEL2 else every
    return BandSet(names, sensor)


def other_bands(bands: BandSet, sensor: Any, datamodule: object) -> BandSet | None:
    """All bands of a datamodule, if it lacks one of these; else None."""
    available = datamodule_bands(datamodule)
    if available is None or (
        available.sensor.name == bands.sensor.name and set(bands) <= set(available)
    ):
        return None
    sensor = sensor or available.sensor
    # A band that the data hold twice is seen once.
    return BandSet(dict.fromkeys(BandSet.from_data(list(available), sensor)), sensor)


def choose_masking(hparams: dict[str, Any], bands: BandSet) -> None:
    """Set ``indices`` and ``masking`` to what the bands allow, where they are None.

    Raises:
        ValueError: If the spectral target has no index.
    """
    if hparams['indices'] is None:
        allowed = default_indices(bands)
        hparams['indices'] = allowed
        missing = [name for name in DEFAULT_INDICES if name not in allowed]
        if missing and hparams['masking'] != 'random':
            rank_zero_info(
                f'indices: {allowed or "none"}, since the bands {list(bands[:13])} do '
                f'not allow {", ".join(missing)}.'
            )
    if hparams['masking'] is None:
        hparams['masking'] = 'saliency' if hparams['indices'] else 'random'
        if not hparams['indices']:
            rank_zero_info("masking: 'random', since no index can guide it.")
    if hparams['spectral_weight'] and not hparams['indices']:
        raise ValueError(
            f'spectral_weight: {hparams["spectral_weight"]}, but the bands '
            f'{list(bands[:13])} allow no index. Pass indices=, or 0.'
        )


def default_indices(bands: BandSet) -> list[str]:
    """Those of NDVI, NDWI and NDBI that can be computed from bands."""
    return [name for name in DEFAULT_INDICES if _computable(name, bands)]


def _computable(name: str, bands: BandSet) -> bool:
    """Return whether an index can be computed from bands."""
    needed = [bands.sensor.find(band) for band in get_index(name).bands]
    return all(band is not None and band.name in bands for band in needed)


def describe_encoder(
    hparams: Mapping[str, Any],
    model: MaskedAutoencoder,
    bands: BandSet,
    statistics: BatchStatistics,
    schedule: MaskSchedule,
    trained_on: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Collect what a file has to say about an encoder, in plain values."""
    copied = (
        *('model', 'norm_pix_loss', 'spectral_weight', 'band_dropout'),
        *('target', 'masking', 'decoder_num_heads'),
    )
    return {
        **{name: hparams[name] for name in copied},
        'in_channels': len(bands),
        'bands': list(bands),
        'sensor': bands.sensor.plain(),
        'mean': statistics.model_mean,
        'std': statistics.model_std,
        'scale': statistics.scale,
        'offset': statistics.offset,
        'size': model.encoder.patch_embed.img_size[0],
        'patch_size': model.patch_size,
        'torchgeo_version': TORCHGEO_VERSION,
        'trained_on': list(trained_on),
        'ssl_method': family(hparams['model']),
        'positions': hparams['encoder_kwargs'].get('positions', 'learnable'),
        'mask_ratio': schedule.ratio_at(1.0),
        'groups': model.layout.names(bands),
    }

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Arguments of the task that come in groups; LightningCLI reads them as such."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..bands import SENTINEL2_BANDS

__all__ = ('BatchSpec', 'Guidance', 'groups_of_first_edition')


# Not frozen: Lightning's loggers refuse frozen dataclasses among hyperparameters.
@dataclass
class Guidance:
    """How saliency steers the mask.

    Attributes:
        strength: Strength at the start and at the end; 0 is random masking. At 1 and
            75 % masked, the least salient tenth is visible four times as often as the
            most salient tenth.
        schedule: ``'linear'``, ``'cosine'`` or ``'constant'`` (the end values
            throughout); also of a *mask_ratio* that changes.
        richness_weight: Weight of semantic richness against internal heterogeneity, in
            [0, 1].
        combination: How richness and heterogeneity are combined: ``'minmax'``,
            ``'rank'`` or ``'product'``.
    """

    strength: tuple[float, float] = (0.0, 1.0)
    schedule: str = 'linear'
    richness_weight: float = 0.5
    combination: str = 'minmax'

    def __post_init__(self) -> None:
        """Take lists, which files hold in place of tuples."""
        if isinstance(self.strength, int | float) or len(self.strength) != 2:
            raise ValueError(
                f'guidance.strength: {self.strength} is no pair (start, end). Use for '
                'example (0, 1).'
            )
        start, end = self.strength
        self.strength = start, end


#: Channels of the modalities of TorchGeo's CopernicusPretrain, by the start of the key.
_MODALITIES: dict[str, tuple[str, ...]] = {
    's1_grd': ('VV', 'VH'),
    's2_toa': SENTINEL2_BANDS,
    's3_olci': tuple(f'Oa{number:02}' for number in range(1, 22)),
    's5p_co': ('CO',),
    's5p_no2': ('NO2',),
    's5p_o3': ('O3',),
    's5p_so2': ('SO2',),
    'dem': ('DEM',),
}


@dataclass
class BatchSpec:
    """Contents of a batch. Nothing is needed with a datamodule of TorchGeo.

    A batch holds ``(raw - mean) / std``, and reflectance is ``raw * scale + offset``.

    Attributes:
        bands: Names of the channels of a batch, in order, those of one date. None for
            those of the modality that *key* names (``'s2_toa.pth'``), of the
            datamodule, or else of the model.
        mean: Subtracted from the raw values, one value or one per channel. None to ask
            the datamodule; never guessed.
        std: The raw values are divided by this; as *mean*.
        scale: Reflectance per raw unit.
        offset: Reflectance at raw 0.
        nodata: Raw pixels whose bands all equal this value are missing and take no
            part in saliency and loss; None if no value marks missing pixels. NaN and
            infinite pixels are always missing.
        normalize: Who normalizes if no TorchGeo datamodule does: True if batches come
            raw and the task has to, False if they come normalized. Never guessed.
        key: Key of the images in a batch. Where samples hold several images, such as
            those of ``CopernicusPretrain``, the others are dropped. Integers become
            float32, unless the key is ``'image'``.
    """

    bands: Sequence[str] | None = None
    mean: float | Sequence[float] | None = None
    std: float | Sequence[float] | None = None
    scale: float = 1e-4
    offset: float = 0.0
    nodata: float | None = 0.0
    normalize: bool | None = None
    key: str = 'image'

    def __post_init__(self) -> None:
        """Look up the bands of a modality of CopernicusPretrain."""
        if self.bands is None:
            self.bands = _MODALITIES.get(self.key.partition('.')[0])


#: Arguments of the first edition, by the group that holds them now.
_FIRST_EDITION = {
    'batch': {
        'data_bands': 'bands',
        **{name: name for name in ('mean', 'std', 'scale', 'offset')},
        **{name: name for name in ('nodata', 'normalize')},
    },
    'guidance': {
        'alpha': 'richness_weight',
        'combine': 'combination',
        'curriculum': 'schedule',
    },
    'encoder_kwargs': {name: name for name in ('cube_bands', 'groups', 'positions')},
}


def groups_of_first_edition(hparams: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group the flat arguments of a checkpoint of the first edition.

    Returns:
        ``'batch'``, ``'guidance'`` and ``'encoder_kwargs'``; empty for arguments of
        this edition.
    """
    if 'saliency_end' not in hparams:
        return {}
    groups: dict[str, dict[str, Any]] = {
        group: {new: hparams[old] for old, new in names.items() if old in hparams}
        for group, names in _FIRST_EDITION.items()
    }
    strength = (hparams.get('saliency_start', 0.0), hparams['saliency_end'])
    groups['guidance']['strength'] = strength
    # None stood for the default, which depends on the model.
    chosen = {k: v for k, v in groups['encoder_kwargs'].items() if v is not None}
    groups['encoder_kwargs'] = chosen
    if hparams['model'].startswith('sigmae_'):
        groups['encoder_kwargs'] = {'positions': 'learnable'}
    elif not hparams['model'].startswith(('s2mae', 'satmae')):
        del groups['encoder_kwargs']
    return groups

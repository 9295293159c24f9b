# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""A task that reconstructs, from weights that hold a decoder."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from torchvision.models._api import WeightsEnum

from ..weights import read_weights
from ..weights.schema import check_model, decoder_size
from .encoder import family
from .settings import BatchSpec
from .sigmae import SIGMAETask

__all__ = ('restore_task',)

#: Strategies without guidance, which needs indices that files do not name.
_UNGUIDED = {'saliency': 'random', 'saliency_spatial': 'spatial'}


def restore_task(
    source: WeightsEnum | str | Path, bands: Sequence[str] | None = None
) -> SIGMAETask:
    """Make a task that reconstructs scenes as in pretraining.

    Args:
        source: Weights with a decoder: a training checkpoint, a file made by
            ``SIGMAETask.export(decoder=True)``, or a packaged weight enum.
        bands: As in :func:`~torchgeo_sigmae.weights.read_weights`.

    Returns:
        The task, in evaluation mode. Its data are raw values of the bands of the
        weights. It masks as at the end of pretraining, but without guidance.

    Raises:
        ValueError: If the weights hold no decoder, or do not state all that it needs.
    """
    weights = read_weights(source, bands)
    info = weights.info
    if not weights.decoder:
        raise ValueError(
            f'weights: {weights.name!r} holds no decoder, which reconstructions need. '
            'Pass a training checkpoint, or a file made by '
            'SIGMAETask.export(path, decoder=True).'
        )
    names = ('mean', 'std', 'decoder_num_heads')
    absent = [name for name in names if None in _as_list(info.get(name))]
    if absent or weights.bands is None:
        raise ValueError(
            f'weights: {weights.name!r} does not state {(absent or ["bands"])[0]}, '
            'which reconstructions need. Pass a training checkpoint, or export it '
            'again.'
        )
    check_model(info['model'], weights.encoder, weights.name)
    depth, width = decoder_size(weights.decoder)
    masking = info.get('masking', 'random')
    kwargs = {}
    if family(info['model']) != 'sigmae' and 'positions' in info:
        kwargs['positions'] = info['positions']
    task = SIGMAETask(
        info['model'],
        weights=source,  # type: ignore[arg-type]
        bands=weights.bands,
        transform=nn.Identity(),
        size=info.get('size'),
        masking=_UNGUIDED.get(masking, masking),
        mask_ratio=info.get('mask_ratio', 0.9),
        encoder_kwargs=kwargs,
        decoder='cross' if 'mix' in weights.decoder else 'self',
        decoder_dim=width,
        decoder_depth=depth,
        decoder_num_heads=info['decoder_num_heads'],
        norm_pix_loss=info.get('norm_pix_loss', False),
        target=info.get('target', 'standardized'),
        batch=BatchSpec(
            bands=weights.bands,
            mean=info['mean'],
            std=info['std'],
            scale=info.get('scale', 1e-4),
            offset=info.get('offset', 0.0),
            nodata=None,
            normalize=True,
        ),
    )
    task.eval()
    return task


def _as_list(value: object) -> list[object]:
    """A list of values; of None if there is none."""
    return list(value) if isinstance(value, list | tuple) and value else [value]

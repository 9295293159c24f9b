# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Compare the data with what pretrained weights expect: bands and normalization."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from timm.layers import PatchEmbed
from torch import Tensor, nn

from ..bands import BandSet
from ..datamodules.inspect import datamodule_bands, datamodule_normalization
from ..models.embeddings import GroupEmbed
from ..weights import Weights, read_weights
from ..weights.packaged import PackagedWeights
from ..weights.read import find_weights
from .batch_values import as_vector

__all__ = (
    'check_bands',
    'encoder_record',
    'match_normalization',
    'read_own_weights',
)

#: The first layer of a timm ViT.
_KERNEL, _BIAS = 'patch_embed.proj.weight', 'patch_embed.proj.bias'

#: Normalizations that differ by less than the first are the same. Those whose standard
#: deviations differ by more than the second factor are in other units.
_CLOSE, _FAR = 1e-3, 100.0


def read_own_weights(source: object) -> Weights | None:
    """Read what a TorchGeo task takes as ``weights``; None for weights of others."""
    if not isinstance(source, str | Path | PackagedWeights):
        return None
    try:
        file = find_weights(source)
        ours = isinstance(file, Path | PackagedWeights)
        return read_weights(file) if ours else None
    # A file of another format, which TorchGeo may take.
    except (FileNotFoundError, ValueError):
        return None


def check_bands(weights: Weights | None, datamodule: object) -> None:
    """Refuse data of as many bands as the weights, but others or in another order.

    TorchGeo's tasks know the number of bands, not their names, so such weights load,
    and what they have learned about one band is applied to another. Another *number* of
    bands is TorchGeo's to refuse: something may select from them later.

    Raises:
        ValueError: If the bands are not those the weights were made for. Nothing is
            raised where the file or the datamodule does not name them, or the
            datamodule has bands of another sensor.
    """
    data_bands = datamodule_bands(datamodule)
    expected = weights.bands if weights else None
    if not weights or not data_bands or not expected or expected.sensor.any_name:
        return
    given = BandSet.from_data(list(data_bands), expected.sensor)
    if len(given) != len(expected) or expected == given:
        return
    if not all(map(expected.sensor.find, given)):
        return
    name = type(datamodule).__name__
    raise ValueError(
        f'weights: {weights.name!r} was made for the bands {list(expected)}, but '
        f'{name} gives {list(given)}. Pass bands={list(expected)} to {name}, or write '
        f'a file for its bands: torchgeo-sigmae adapt-bands {weights.name} --bands '
        f'{" ".join(given)} -o adapted.pth'
    )


def match_normalization(
    encoder: nn.Module, weights: Weights | None, datamodule: object
) -> tuple[Tensor, Tensor] | None:
    r"""Let pretrained weights see the data as they did in pretraining.

    A datamodule of TorchGeo subtracts its own mean and divides by its own standard
    deviation, :math:`x = (r - m) / s` of raw values :math:`r`, where the weights have
    learned from :math:`(r - \mu) / \sigma`. As

    .. math::

        \frac{r - \mu}{\sigma} = \frac{s}{\sigma} x + \frac{m - \mu}{\sigma},

    the difference goes into kernel and bias of the first layer, with SatMAE into its
    kernels and the positions of its groups. What the encoder computes is then, but for
    rounding, what it would compute from data normalized as in pretraining. This is done
    to weights as they were loaded, and once: those trained or changed since have seen
    the datamodule's values. Where it cannot be done, a warning says so.

    Args:
        encoder: The encoder of a task, *weights* loaded.
        weights: The pretrained weights, if they are ours.
        datamodule: The datamodule, or None.

    Returns:
        Factor and shift of every band, from the batches to what the encoder expects; 1
        and 0 where the first layer has nothing to make up for. None where a warning
        said that the normalizations differ.
    """
    applied = datamodule_normalization(datamodule)
    difference = _difference(weights.info, *applied) if weights and applied else None
    if weights is None or difference is None:
        return torch.ones(1), torch.zeros(1)
    factor, shift = difference
    times = float(factor.median())
    differs = (
        f'{type(datamodule).__name__} normalizes differently from the data that the '
        f'weights {weights.name!r} were pretrained on'
    )
    problem = ''
    if not 1 / _FAR < times < _FAR:
        problem = (
            f', in other units: by std, its raw values are {times:.3g} times theirs'
        )
    elif not _foldable(encoder):
        problem = (
            f', and the first layer of {type(encoder).__name__} cannot make up for it'
        )
    if problem:
        rank_zero_warn(
            f'weights: {differs}{problem}. Normalize as in pretraining, see mean and '
            'std in torchgeo_sigmae.weights.read_weights(weights).info.'
        )
        return None
    if _as_loaded(encoder.state_dict(), weights.encoder):
        _fold(encoder, factor, shift)
        rank_zero_info(
            f'FineTuning: {differs}. The first layer makes up for it, so that the '
            'encoder sees what it saw in pretraining.'
        )
    return factor, shift


def encoder_record(
    encoder: nn.Module, model: str, weights: Weights | None, datamodule: object
) -> dict[str, Any] | None:
    """Collect what must be known to use a fine-tuned encoder elsewhere.

    Args:
        encoder: The encoder.
        model: Its timm name.
        weights: The pretrained weights, if they were ours.
        datamodule: The datamodule, or None.

    Returns:
        The information in plain values, for :class:`.Weights`; None where neither the
        weights nor the datamodule name the bands.
    """
    info = weights.info if weights else {}
    bands = (weights.bands if weights else None) or datamodule_bands(datamodule)
    dates = info.get('dates') or 1
    embed: Any = getattr(encoder, 'patch_embed', None)
    layout = getattr(encoder, 'layout', None)
    channels = layout.channels if layout else getattr(embed.proj, 'in_channels', 0)
    if not bands or dates * len(bands) != channels:
        return None
    applied = datamodule_normalization(datamodule)
    mean, std = applied or (info.get('mean'), info.get('std'))
    kept = ('dates', 'scale', 'offset', 'positions', 'trained_on', 'ssl_method')
    return {
        **{key: info[key] for key in kept if key in info},
        'model': model,
        'in_channels': channels,
        'bands': list(bands),
        'sensor': bands.sensor.plain(),
        'mean': _one_each(mean, len(bands)),
        'std': _one_each(std, len(bands)),
        'size': embed.img_size[0],
    }


def _one_each(values: Any, count: int) -> list[float] | None:
    """One number for each band; None where they are unknown."""
    numbers = as_vector(values)
    if numbers is None or len(numbers) not in {1, count}:
        return None
    return numbers.expand(count).tolist()


def _difference(
    info: dict[str, Any], mean: Any, std: Any
) -> tuple[Tensor, Tensor] | None:
    """Factor and shift of every band between two normalizations that differ."""
    mu, sigma = as_vector(info.get('mean')), as_vector(info.get('std'))
    mean, std = as_vector(mean), as_vector(std)
    if mu is None or sigma is None or mean is None or std is None:
        return None
    if len(mean) not in {1, len(mu)}:
        return None
    factor, shift = std / sigma, (mean - mu) / sigma
    if (factor - 1).abs().max() < _CLOSE and shift.abs().max() < _CLOSE:
        return None
    return factor.expand_as(mu), shift.expand_as(mu)


def _foldable(encoder: Any) -> bool:
    """Return whether every band has a kernel of its own, and every token a bias."""
    embed = type(getattr(encoder, 'patch_embed', None))
    return embed is PatchEmbed or (embed is GroupEmbed and not encoder.joint)


@torch.no_grad()
def _fold(encoder: Any, factor: Tensor, shift: Tensor) -> None:
    """Change the first layer in place."""
    embed = encoder.patch_embed
    kernel = embed.proj.weight.double()
    # Several dates lie one after the other, all alike.
    dates = kernel.shape[1] // len(factor)
    factor, shift = (
        x.to(kernel.device).repeat(dates).view(1, -1, 1, 1) for x in (factor, shift)
    )
    bias = (kernel * shift).sum(dim=(2, 3))
    if isinstance(embed, GroupEmbed):
        # One bias for all groups; what differs between them is their position.
        for group, channels in enumerate(embed.layout.groups):
            encoder.spectral_embed[0, group] += bias[:, list(channels)].sum(dim=1)
    else:
        embed.proj.bias += bias.sum(dim=1)
    embed.proj.weight.copy_(kernel * factor)


def _as_loaded(state: dict[str, Tensor], loaded: dict[str, Tensor]) -> bool:
    """Return whether the first layer is that of the file."""
    return all(
        key in loaded
        and key in state
        and state[key].shape == loaded[key].shape
        and torch.equal(state[key].cpu(), loaded[key].to(state[key].dtype).cpu())
        for key in (_KERNEL, _BIAS)
    )

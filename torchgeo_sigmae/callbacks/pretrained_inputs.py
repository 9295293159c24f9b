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

__all__ = (
    'check_bands',
    'encoder_record',
    'match_normalization',
    'read_own_weights',
    'warn_of_values',
)

#: The first layer of a timm ViT.
_KERNEL, _BIAS = 'patch_embed.proj.weight', 'patch_embed.proj.bias'

#: Normalizations that differ by less than the first are the same. Those whose standard
#: deviations differ by more than the second factor are in other units.
_CLOSE, _FAR = 1e-3, 100.0

#: Standardized batches have medians of mean and standard deviation within these, even
#: if they show nothing but snow or water.
_LARGEST_MEAN, _LEAST_STD, _LARGEST_STD = 15.0, 0.01, 6.0

#: Share of values that is next to none; the mean of a batch of snow.
_FEW, _BRIGHT = 0.01, 3.0


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


def warn_of_values(
    image: Tensor, weights: Weights, factor: Tensor, shift: Tensor
) -> bool:
    """Warn where the values of a batch are not normalized as the weights expect.

    Standardized values lie on both sides of 0, about a third of them beyond 1. Raw
    digital numbers are far larger; reflectance, and bytes scaled to [0, 1] or [-1, 1],
    are positive or within 1. Pixels that are 0 or not finite do not count.

    Args:
        image: A batch as the model gets it, ``(B, C, H, W)`` or ``(B, T, C, H, W)``.
        weights: The pretrained weights.
        factor: What the first layer makes up for, see :func:`match_normalization`.
        shift: Likewise.

    Returns:
        Whether the values are as expected.
    """
    values = image.detach().float().movedim(-3, 0).flatten(1)
    values = torch.where(values.isfinite() & (values != 0), values, torch.nan)
    if len(values) % len(factor) == 0:
        factor, shift = (
            x.to(values).repeat(len(values) // len(x))[:, None] for x in (factor, shift)
        )
        values = values * factor + shift
    mean = values.nanmean(dim=1)
    std = (values - mean[:, None]).square().nanmean(dim=1).sqrt()
    if _standardized(values, mean, std):
        return True
    stored, units = _numbers(weights.info.get('mean')), ''
    if stored is not None:
        middle, theirs = float(mean.nanmedian()), float(stored.median())
        units = f' The mean of the weights is about {theirs:.4g}'
        if not theirs / 3 < middle < theirs * 3:
            units += (
                f', that of your values {middle:.3g}: convert mean and std to the unit '
                'of your values'
            )
        units += '.'
    name = weights.name
    rank_zero_warn(
        f'weights: {name!r} expects bands with mean 0 and standard deviation 1, but '
        'those of the first training batch have means of '
        f'{_range(mean)} and standard deviations of {_range(std)}. Normalize the '
        'images in the dataset or datamodule, (value - mean) / std for each band, '
        'with mean and std of the weights: '
        f'torchgeo_sigmae.weights.read_weights({name!r}).info.'
        f'{units}'
    )
    return False


def _standardized(values: Tensor, mean: Tensor, std: Tensor) -> bool:
    """Whether values ``(C, N)`` can be standardized ones."""
    valid = values[values.isfinite()]
    if not len(valid):
        return True
    middle, spread = float(mean.nanmedian()), float(std.nanmedian())
    if abs(middle) > _LARGEST_MEAN or not _LEAST_STD < spread < _LARGEST_STD:
        return False
    small = float((valid.abs() > 1).float().mean()) < _FEW
    # Snow is brighter than the mean in all bands, but by far.
    positive = float((valid < 0).float().mean()) < _FEW and middle < _BRIGHT
    return not (small or positive)


def _range(values: Tensor) -> str:
    """Least and greatest value, in words."""
    values = values[values.isfinite()]
    return f'{float(values.min()):.3g} to {float(values.max()):.3g}'


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
    numbers = _numbers(values)
    if numbers is None or len(numbers) not in {1, count}:
        return None
    each: list[float] = numbers.expand(count).tolist()
    return each


def _numbers(values: Any) -> Tensor | None:
    """Numbers as a vector; None if one of them is missing."""
    if values is None or (isinstance(values, list | tuple) and None in values):
        return None
    return torch.as_tensor(values, dtype=torch.float64).flatten()


def _difference(
    info: dict[str, Any], mean: Any, std: Any
) -> tuple[Tensor, Tensor] | None:
    """Factor and shift of every band between two normalizations that differ."""
    expected_mean, expected_std = _numbers(info.get('mean')), _numbers(info.get('std'))
    mean, std = _numbers(mean), _numbers(std)
    if expected_mean is None or expected_std is None or mean is None or std is None:
        return None
    if len(mean) not in {1, len(expected_mean)}:
        return None
    factor, shift = std / expected_std, (mean - expected_mean) / expected_std
    if (factor - 1).abs().max() < _CLOSE and shift.abs().max() < _CLOSE:
        return None
    return factor.expand_as(expected_mean), shift.expand_as(expected_mean)


def _foldable(encoder: Any) -> bool:
    """Whether every band has a kernel of its own, and every token a bias."""
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
    """Whether the first layer is that of the file."""
    return all(
        key in loaded
        and key in state
        and state[key].shape == loaded[key].shape
        and torch.equal(state[key].cpu(), loaded[key].to(state[key].dtype).cpu())
        for key in (_KERNEL, _BIAS)
    )

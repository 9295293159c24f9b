# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Whether pretrained weights and the data they meet agree on bands and units."""

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

__all__ = ('check_bands', 'match_normalization', 'read_known')

#: The first layer of a timm ViT.
_KERNEL, _BIAS = 'patch_embed.proj.weight', 'patch_embed.proj.bias'

#: Normalisations nearer than this are the same; whose standard deviations are further
#: apart than the other are in other units.
_CLOSE, _FAR = 1e-3, 100.0


def check_bands(
    weights: object, datamodule: object, checkpoint: Weights | None = None
) -> None:
    """Refuse data of as many bands as the weights, but others or in another order.

    TorchGeo's tasks know the number of bands, not their names, so such weights load,
    and what they have learned about one band is applied to another. Another *number* of
    bands is TorchGeo's to refuse: it may be that something selects from them later.

    Args:
        weights: What a task of TorchGeo takes as ``weights``.
        datamodule: The datamodule, or None.
        checkpoint: What :func:`read_known` says of the weights, if it was asked.

    Raises:
        ValueError: If the bands are not those the weights were made for. Nothing is
            raised where the file or the datamodule tells no bands, or the datamodule
            others than the sensor of the weights has.
    """
    told = datamodule_bands(datamodule)
    if not told:
        return
    checkpoint = checkpoint or read_known(weights)
    expected = checkpoint.bands if checkpoint else None
    if expected is None or len(told) != len(expected) or expected.sensor.any_name:
        return
    found = BandSet.from_data(list(told), expected.sensor)
    if expected == found or not all(map(expected.sensor.find, found)):
        return
    name, bands = type(datamodule).__name__, ' '.join(found)
    raise ValueError(
        f'weights: {str(weights)!r} was made for the bands {list(expected)}, but '
        f'{name} gives {list(found)}. Pass bands={list(expected)} to {name}, or write '
        f'a file for its bands: torchgeo-sigmae adapt-bands {weights} --bands {bands} '
        '-o adapted.pth'
    )


def match_normalization(
    encoder: nn.Module,
    weights: object,
    datamodule: object,
    checkpoint: Weights | None = None,
) -> None:
    r"""Let pretrained weights see the data as they did in pretraining.

    A datamodule of TorchGeo subtracts its own mean and divides by its own standard
    deviation, :math:`x = (r - m) / s` of raw values :math:`r`, where the weights have
    learned from :math:`(r - \mu) / \sigma`. As

    .. math::

        \frac{r - \mu}{\sigma} = \frac{s}{\sigma} x + \frac{m - \mu}{\sigma},

    the difference goes into kernel and bias of the first layer, with SatMAE into its
    kernels and the positions of its groups. What the encoder computes is then, but for
    rounding, what it would compute from data normalised as in pretraining. This is done
    to weights as they were loaded, and once: those trained or changed since have seen
    the datamodule's values. Where it cannot be done, a warning says so.

    Args:
        encoder: The encoder of a task, its weights loaded.
        weights: What the task takes as ``weights``.
        datamodule: The datamodule, or None.
        checkpoint: What :func:`read_known` says of the weights, if it was asked.
    """
    told = datamodule_normalization(datamodule)
    checkpoint = checkpoint or read_known(weights)
    if told is None or checkpoint is None:
        return
    difference = _difference(checkpoint.info, *told)
    if difference is None:
        return
    factor, shift = difference
    name = type(datamodule).__name__
    differs = (
        f'{name} normalises otherwise than the data the weights {str(weights)!r} were '
        'pretrained on'
    )
    remedy = (
        'Normalise as in pretraining, see mean and std in '
        'torchgeo_sigmae.weights.read_weights(weights).info.'
    )
    if not 1 / _FAR < float(factor.median()) < _FAR:
        rank_zero_warn(
            f'weights: {differs}, in other units: by std, its raw values are '
            f'{float(factor.median()):.3g} times theirs. {remedy}'
        )
    elif not _foldable(encoder):
        rank_zero_warn(
            f'weights: {differs}, and the first layer of {type(encoder).__name__} '
            f'cannot make up for it. {remedy}'
        )
    elif _as_loaded(encoder.state_dict(), checkpoint.encoder):
        _fold(encoder, factor, shift)
        rank_zero_info(
            f'FineTuning: {differs}. The first layer makes up for it, so that the '
            'encoder sees what it saw in pretraining.'
        )


def _difference(
    known: dict[str, Any], mean: Any, std: Any
) -> tuple[Tensor, Tensor] | None:
    """Factor and shift of every band between two normalisations, if there are any."""
    if None in (known.get('mean') or [None]):
        return None
    own_mean, own_std, mean, std = (
        torch.as_tensor(values, dtype=torch.float64).flatten()
        for values in (known['mean'], known['std'], mean, std)
    )
    if len(mean) not in {1, len(own_mean)}:
        return None
    factor, shift = std / own_std, (mean - own_mean) / own_std
    same = (factor - 1).abs().max() < _CLOSE and shift.abs().max() < _CLOSE
    return None if same else (factor.expand_as(own_mean), shift.expand_as(own_mean))


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


def read_known(weights: object) -> Weights | None:
    """Read weights of ours.

    Args:
        weights: What a task of TorchGeo takes as ``weights``.

    Returns:
        The tensors and what is known about them; None for weights of others.
    """
    if not isinstance(weights, str | Path | PackagedWeights):
        return None
    try:
        source = find_weights(weights)
        ours = isinstance(source, Path | PackagedWeights)
        return read_weights(source) if ours else None
    except FileNotFoundError:
        return None
    except ValueError:  # a file of another format, which TorchGeo may take
        return None

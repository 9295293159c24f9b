# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Other bands for encoders whose tokens have a place in the spectrum."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..bands import Sensor
from .matching import AdaptedBand, BandReport

__all__ = (
    'BandsOf',
    'adapt_cubes',
    'adapt_groups',
    'interpolate_spectrum',
    'is_cubes',
    'within_groups',
)

#: Names of bands, and the sensor they belong to.
BandsOf = tuple[tuple[str, ...], Sensor]

_KERNEL = 'patch_embed.proj.weight'


def is_cubes(state_dict: Mapping[str, Tensor], bands: int) -> bool:
    """Whether tensors are those of an S2MAE encoder.

    Args:
        state_dict: Tensors under plain timm keys.
        bands: Number of bands they were made for.

    Returns:
        Whether there is a kernel for cubes, and a position for each cube.
    """
    kernel, spectrum = state_dict.get(_KERNEL), state_dict.get('spectral_embed')
    if kernel is None or spectrum is None or kernel.ndim != 5:
        return False
    return kernel.shape[2] * spectrum.shape[1] == bands


def adapt_cubes(
    state_dict: Mapping[str, Tensor],
    source: BandsOf,
    target: BandsOf,
    method: str,
    dates: int,
) -> tuple[dict[str, Tensor], BandReport]:
    """Bring S2MAE's positions in the spectrum to other bands.

    Args:
        state_dict: Tensors under plain timm keys.
        source: Canonical names of their bands, and the sensor.
        target: Those wanted.
        method: ``'name'`` to take no band that is not among those of the weights.
        dates: How many times the channels follow each other.

    Returns:
        The tensors, and what was done.

    Raises:
        ValueError: If the bands of a cube do not divide the number of target bands, or
            one of those is no band of its sensor.
    """
    depth = state_dict[_KERNEL].shape[2]
    names, sensor = target
    if len(names) % depth:
        near = [n for n in range(1, len(names) + depth) if n % depth == 0][-2:]
        raise ValueError(
            f'bands: {len(names)} bands cannot be cut into the cubes of {depth} that '
            f'these weights are made of. Pass {" or ".join(map(str, near))} bands.'
        )
    share = interpolate_spectrum(source, target, depth)
    spectrum = state_dict['spectral_embed']
    positions = (share.to(spectrum) @ spectrum).repeat(1, dates, 1)
    same = source[1].name == sensor.name
    cubes = [
        ' and '.join(source[0][i : i + depth]) for i in range(0, len(source[0]), depth)
    ]
    bands = []
    for place, name in enumerate(names):
        named = same and name in source[0]
        weights = share[place // depth].tolist()
        sources = {
            f'the cube of {cube}': weight
            for cube, weight in zip(cubes, weights, strict=True)
            if weight and (named or method != 'name')
        }
        bands.append(AdaptedBand(name, sources, named))
    left_out = tuple(name for name in source[0] if not same or name not in names)
    return (
        {**state_dict, 'spectral_embed': positions},
        BandReport(tuple(bands), left_out, dates, halved=False),
    )


def interpolate_spectrum(source: BandsOf, target: BandsOf, depth: int) -> Tensor:
    """Weights that bring positions of source cubes to target cubes.

    Linear in the mean wavelength of a cube, constant beyond the first and the last. A
    cube of the same bands keeps its position as it is.

    Args:
        source: Canonical names of the source bands, and the sensor.
        target: Those of the target bands.
        depth: Bands of a cube.

    Returns:
        Weights ``(target cubes, source cubes)``, every row summing to one.

    Raises:
        ValueError: If a name is no band of its sensor, so has no wavelength.
    """
    old, new = _cubes(source, depth), _cubes(target, depth)
    centres = torch.tensor([centre for _, centre in old], dtype=torch.float64)
    order = centres.argsort()
    share = torch.zeros(len(new), len(old), dtype=torch.float64)
    for row, (names, centre) in enumerate(new):
        equal = [i for i, (known, _) in enumerate(old) if known == names]
        if equal and source[1].name == target[1].name:
            share[row, equal[0]] = 1
            continue
        above = int((centres < centre).sum())
        low = order[max(above - 1, 0)]
        high = order[min(above, len(old) - 1)]
        gap = float(centres[high] - centres[low])
        part = (centre - float(centres[low])) / gap if gap else 0.0
        share[row, low] += 1 - part
        share[row, high] += part
    return share


def adapt_groups(
    state_dict: Mapping[str, Tensor],
    source: BandsOf,
    target: BandsOf,
    report: BandReport,
) -> dict[str, Tensor]:
    """Share target bands out to SatMAE's groups.

    Args:
        state_dict: Tensors under plain timm keys.
        source: Canonical names of their bands, and the sensor.
        target: Those wanted.
        report: Which target band stands in for which.

    Returns:
        The tensors that say so; groups left without a band are dropped.
    """
    membership = _membership(state_dict, source)
    wavelengths = {n: b.wavelength for n in source[0] if (b := source[1].find(n))}
    groups = []
    for band in report.bands:
        # What has no wavelength, a radar band say, goes with the last group.
        origin, known = source[0][-1], target[1].find(band.band)
        if band.sources:
            origin = _origin(band)
        elif known is not None and wavelengths:
            distance = {n: abs(w - known.wavelength) for n, w in wavelengths.items()}
            origin = min(distance, key=lambda n: distance[n])
        groups.append(membership[origin])
    kept = sorted(set(groups))
    numbers = torch.tensor([kept.index(group) for group in groups])
    shifted = [numbers + date * len(kept) for date in range(report.dates)]
    return {
        'patch_embed.band_group': torch.cat(shifted),
        'spectral_embed': state_dict['spectral_embed'][:, kept].repeat(
            1, report.dates, 1
        ),
    }


def within_groups(
    state_dict: Mapping[str, Tensor], source: BandsOf, report: BandReport
) -> BandReport:
    """Let target bands of SatMAE stand in for source bands of one group only.

    Args:
        state_dict: Tensors under plain timm keys.
        source: Canonical names of their bands, and the sensor.
        report: Which target band stands in for which.

    Returns:
        The same, without bands whose kernel belongs to another token.
    """
    membership = _membership(state_dict, source)
    bands = []
    for band in report.bands:
        own = membership[_origin(band)] if band.sources else None
        sources = {n: s for n, s in band.sources.items() if membership[n] == own}
        bands.append(replace(band, sources=sources))
    taken = {name for band in bands for name in band.sources}
    left_out = tuple(name for name in source[0] if name not in taken)
    return BandReport(tuple(bands), left_out, report.dates, halved=False)


def _membership(state_dict: Mapping[str, Tensor], source: BandsOf) -> dict[str, int]:
    """The number of the group of every source band."""
    groups = state_dict['patch_embed.band_group'].tolist()
    return dict(zip(source[0], groups, strict=True))


def _origin(band: AdaptedBand) -> str:
    """The source band a target band mostly is."""
    if band.named:
        return band.band
    return max(band.sources, key=lambda name: band.sources[name])


def _cubes(bands: BandsOf, depth: int) -> list[tuple[tuple[str, ...], float]]:
    """Cut bands into cubes, each with its mean wavelength in nm."""
    names, sensor = bands
    cut = [names[i : i + depth] for i in range(0, len(names), depth)]
    return [
        (cube, sum(sensor.band(name).wavelength for name in cube) / depth)
        for cube in cut
    ]

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

r"""Tensors of an encoder and its decoder for other bands.

The first layer is linear, so every target channel may stand in for source bands: with
:math:`\hat x_c = \sum_t a_{tc} x_t` for source band c and target channels t,
:math:`W'_t = \sum_c a_{tc} W_c` makes the encoder compute on the target channels what
it computed on :math:`\hat x`. Every column of :math:`a` sums to one, so activations
keep their scale, or to zero: the band is then seen at its mean, which is 0 after
normalization.

S2MAE's cubes share one kernel, so only their positions in the spectrum change. SatMAE's
target bands join the groups of the bands they stand in for.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..bands import BandSet
from ..models.layout import layout_of_state
from .matching import AdaptedBand, BandReport, match_bands

__all__ = (
    'SPECTRAL_HEAD',
    'adapt_decoder',
    'adapt_encoder',
    'interpolate_spectrum',
)

_KERNEL, _GROUPS = 'patch_embed.proj.weight', 'patch_embed.band_group'
_SPECTRUM = 'spectral_embed'

#: Prefix of the decoder's head for the spectral target.
SPECTRAL_HEAD = 'spectral_head.'


def adapt_encoder(
    encoder: Mapping[str, Tensor],
    source: BandSet,
    target: BandSet,
    method: str = 'auto',
    dates: int = 1,
) -> tuple[dict[str, Tensor], BandReport]:
    """Adapt an encoder; see :func:`~torchgeo_sigmae.weights.adapt_bands`."""
    if encoder[_KERNEL].ndim == 5:
        return _adapt_cubes(encoder, source, target, method, dates)
    report = match_bands(source, target, method, dates)
    grouped = _GROUPS in encoder
    if grouped:
        report = _within_groups(encoder, source, report)
    # SatMAE's dates are tokens of their own, so nothing adds up.
    divisor = 1 if grouped else dates
    kernel = torch.stack(
        [
            _combined(encoder[_KERNEL].unbind(dim=1), source, band.sources, divisor)
            for band in report.bands
        ],
        dim=1,
    )
    adapted = {**encoder, _KERNEL: kernel.repeat(1, dates, 1, 1)}
    if grouped:
        adapted |= _adapt_groups(encoder, source, target, report)
    return adapted, report


def adapt_decoder(
    encoder: Mapping[str, Tensor],
    decoder: Mapping[str, Tensor],
    source: BandSet,
    target: BandSet,
    method: str = 'auto',
) -> dict[str, Tensor]:
    """Adapt a decoder to other bands; *encoder* is its encoder before adaptation.

    Its last layer is linear, so a band that is the mean of others is predicted by the
    mean of their rows. The rows of a band without counterpart are zero: it is predicted
    at its mean. The head of the spectral target is left out: it starts anew.
    """
    adapted = {k: v for k, v in decoder.items() if not k.startswith(SPECTRAL_HEAD)}
    new, report = adapt_encoder(encoder, source, target, method)
    if _SPECTRUM in decoder:
        spectrum = {**encoder, _SPECTRUM: decoder[_SPECTRUM]}
        adapted[_SPECTRUM] = adapt_encoder(spectrum, source, target, method)[0][
            _SPECTRUM
        ]
    if encoder[_KERNEL].ndim == 5:
        return adapted  # one head for all cubes
    before, after = layout_of_state(encoder), layout_of_state(new)
    for key in ('head.weight', 'head.bias'):
        rows = decoder[key].unflatten(0, (before.num_groups, before.group_size, -1))
        channels = [rows[slot] for slot in before.locate_channels()]
        head = rows.new_zeros(after.num_groups, after.group_size, *rows.shape[2:])
        for slot, band in zip(after.locate_channels(), report.bands, strict=True):
            total = sum(band.sources.values())
            head[slot] = _combined(channels, source, band.sources, total)
        adapted[key] = head.flatten(0, 2)
    return adapted


def interpolate_spectrum(source: BandSet, target: BandSet, depth: int) -> Tensor:
    """Compute weights ``(target cubes, source cubes)`` that map positions of cubes.

    Linear in the mean wavelength of a cube, constant beyond the first and the last. A
    cube of the same bands keeps its position. Every row sums to one.
    """
    old, new = _cubes(source, depth), _cubes(target, depth)
    centers = torch.tensor([center for _, center in old], dtype=torch.float64)
    order = centers.argsort()
    share = torch.zeros(len(new), len(old), dtype=torch.float64)
    for row, (names, center) in enumerate(new):
        equal = [i for i, (others, _) in enumerate(old) if others == names]
        if equal and source.sensor.name == target.sensor.name:
            share[row, equal[0]] = 1
            continue
        above = int((centers < center).sum())
        low = order[max(above - 1, 0)]
        high = order[min(above, len(old) - 1)]
        gap = float(centers[high] - centers[low])
        part = (center - float(centers[low])) / gap if gap else 0.0
        share[row, low] += 1 - part
        share[row, high] += part
    return share


def _adapt_cubes(
    encoder: Mapping[str, Tensor],
    source: BandSet,
    target: BandSet,
    method: str,
    dates: int,
) -> tuple[dict[str, Tensor], BandReport]:
    """Interpolate S2MAE's positions in the spectrum; its kernel stays."""
    depth, names = encoder[_KERNEL].shape[2], target
    if len(names) % depth:
        near = [n for n in range(1, len(names) + depth) if n % depth == 0][-2:]
        raise ValueError(
            f'bands: {len(names)} bands cannot be cut into the cubes of {depth} that '
            f'these weights are made of. Pass {" or ".join(map(str, near))} bands.'
        )
    share = interpolate_spectrum(source, target, depth)
    spectrum = encoder[_SPECTRUM]
    positions = (share.to(spectrum) @ spectrum).repeat(1, dates, 1)
    same = source.sensor.name == target.sensor.name
    cubes = [f'the cube of {" and ".join(cube)}' for cube, _ in _cubes(source, depth)]
    bands = []
    for channel, name in enumerate(names):
        named = same and name in source
        weights = dict(zip(cubes, share[channel // depth].tolist(), strict=True))
        sources = {cube: weight for cube, weight in weights.items() if weight}
        used = sources if named or method != 'name' else {}
        bands.append(AdaptedBand(name, used, named))
    left_out = tuple(name for name in source if not same or name not in names)
    report = BandReport(tuple(bands), left_out, dates, divided=False)
    return {**encoder, _SPECTRUM: positions}, report


def _adapt_groups(
    encoder: Mapping[str, Tensor], source: BandSet, target: BandSet, report: BandReport
) -> dict[str, Tensor]:
    """Assign target bands to SatMAE's groups; groups without a band are dropped."""
    membership = _membership(encoder, source)
    wavelengths = {
        band.name: band.wavelength for band in source.bands if band.wavelength
    }
    groups = []
    for band in report.bands:
        # A channel without wavelength, for example radar, joins the last group.
        origin, described = source[-1], target.sensor.find(band.band)
        wavelength = described.wavelength if described else None
        if band.sources:
            origin = _origin(band)
        elif wavelength is not None and wavelengths:
            origin = min(wavelengths, key=lambda n: abs(wavelengths[n] - wavelength))
        groups.append(membership[origin])
    kept = sorted(set(groups))
    numbers = torch.tensor([kept.index(group) for group in groups])
    shifted = [numbers + date * len(kept) for date in range(report.dates)]
    return {
        _GROUPS: torch.cat(shifted),
        _SPECTRUM: encoder[_SPECTRUM][:, kept].repeat(1, report.dates, 1),
    }


def _within_groups(
    encoder: Mapping[str, Tensor], source: BandSet, report: BandReport
) -> BandReport:
    """Let a target band of SatMAE stand in for source bands of one group only."""
    membership = _membership(encoder, source)
    bands = []
    for band in report.bands:
        group = membership[_origin(band)] if band.sources else None
        sources = {n: s for n, s in band.sources.items() if membership[n] == group}
        bands.append(replace(band, sources=sources))
    taken = {name for band in bands for name in band.sources}
    left_out = tuple(name for name in source if name not in taken)
    return BandReport(tuple(bands), left_out, report.dates, divided=False)


def _combined(
    channels: tuple[Tensor, ...] | list[Tensor],
    source: BandSet,
    sources: dict[str, float],
    divisor: float,
) -> Tensor:
    """Sum what belongs to source bands by their shares; exact where one is picked."""
    total = torch.zeros_like(channels[0])
    for name, share in sources.items():
        total = total + channels[source.index(name)] * (share / divisor)
    return total


def _membership(encoder: Mapping[str, Tensor], source: BandSet) -> dict[str, int]:
    """The number of the group of every source band."""
    return dict(zip(source, encoder[_GROUPS].tolist(), strict=True))


def _origin(band: AdaptedBand) -> str:
    """The source band that a target band stands in for most."""
    if band.named:
        return band.band
    return max(band.sources, key=lambda name: band.sources[name])


def _cubes(bands: BandSet, depth: int) -> list[tuple[tuple[str, ...], float]]:
    """Cut bands into cubes, each with its mean wavelength in nm."""
    cubes = []
    for start in range(0, len(bands), depth):
        cube = bands[start : start + depth]
        total = 0.0
        for name in cube:
            wavelength = bands.sensor.band(name).wavelength
            if wavelength is None:
                raise ValueError(
                    f'bands: {name!r} has no wavelength, so its cube has no position '
                    'in the spectrum. Pass a sensor with wavelengths.'
                )
            total += wavelength
        cubes.append((cube, total / depth))
    return cubes

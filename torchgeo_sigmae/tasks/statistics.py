# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Contents of a batch: its bands, and how to get from its values to reflectance.

Datamodules normalize batches, but indices need reflectance. This module finds out what
the datamodule did, to undo it. It never guesses.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchgeo.datamodules import BaseDataModule

from ..bands import BandSet
from ..datamodules.inspect import (
    datamodule_bands,
    datamodule_dates,
    datamodule_normalization,
    datamodule_sensor,
)
from ..datasets.units import describe_implausible
from .settings import BatchSpec

__all__ = ('BatchStatistics', 'resolve_statistics')

#: Largest number of dates that a checkpoint may claim.
_MOST_DATES = 1000


@dataclass(frozen=True)
class BatchStatistics:
    """Layout and normalization of batches.

    A batch holds ``(raw - mean) / std`` and reflectance is ``raw * scale + offset``.
    (BigEarthNet's datamodule calls its minimum ``mean`` and its range ``std``; the
    formula is the same.)

    Attributes:
        data_bands: Names of the channels of a batch, in order; those of one date.
        channels: Which of them the model sees, in the order of its ``bands``.
        mean: Subtracted from each channel of ``data_bands``.
        std: Each channel of ``data_bands`` was divided by this.
        scale: Reflectance per raw unit; 1e-4 for Sentinel-2 digital numbers.
        offset: Reflectance at raw 0.
        dates: Number of dates whose channels a batch ``(B, dates * C, H, W)`` holds one
            after the other. A time axis, ``(B, T, C, H, W)``, is not counted.
    """

    data_bands: tuple[str, ...]
    channels: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    offset: float
    dates: int = 1

    @property
    def model_mean(self) -> list[float]:
        """Mean of the bands the model sees."""
        return [self.mean[i] for i in self.channels]

    @property
    def model_std(self) -> list[float]:
        """Standard deviation of the bands the model sees."""
        return [self.std[i] for i in self.channels]

    def check(self, image: Tensor) -> None:
        """Refuse a batch of another layout.

        Args:
            image: ``(B, dates * C, H, W)``, or ``(B, T, C, H, W)`` with a time axis.

        Raises:
            ValueError: If C is not the number of ``data_bands``.
        """
        dates = 1 if image.ndim == 5 else self.dates
        if image.shape[-3] != dates * len(self.data_bands):
            expected = f' on each of {dates} dates' if dates > 1 else ''
            raise ValueError(
                f'batch.bands: the batch has {image.shape[-3]} channels, but '
                f'{len(self.data_bands)} names are given for them{expected}: '
                f'{list(self.data_bands)}. Pass batch=BatchSpec(bands=...) with one '
                'name per channel, in the order of the batch; give several dates a '
                'time axis, (B, T, C, H, W), or attach the TorchGeo datamodule that '
                'counts them.'
            )

    def by_date(self, image: Tensor) -> Tensor:
        """View channels ``(n * C, H, W)`` as those of n dates, ``(n, C, H, W)``."""
        return image.unflatten(-3, (-1, len(self.data_bands)))

    def check_scale(self, image: Tensor, normalized: bool = True) -> None:
        """Warn where digital numbers and reflectance seem mixed up.

        Args:
            image: A batch ``(..., n * len(data_bands), H, W)``, of n dates.
            normalized: Whether it is ``(raw - mean) / std``, or still raw.
        """
        chosen = self.by_date(image)[..., list(self.channels), :, :]
        if normalized:
            values = self.reflectance(chosen, dim=-3)
        else:
            values = chosen.float() * self.scale + self.offset
        problem = describe_implausible(
            values.cpu().numpy(),
            f'batch: with scale {self.scale} and offset {self.offset}, the reflectance '
            'of the first batch',
            'Pass batch=BatchSpec(scale=1e-4) for digital numbers of Sentinel-2, '
            'scale=1 for reflectance. Indices such as EVI and SAVI, pictures and '
            'metrics depend on it.',
        )
        if problem:
            # The caller of the task, not the task.
            rank_zero_warn(problem, stacklevel=6)

    def select(self, image: Tensor) -> Tensor:
        """Pick the bands the model sees from a batch ``(B, len(data_bands), H, W)``."""
        if self.channels == tuple(range(image.shape[1])):
            return image
        return image[:, list(self.channels)]

    def normalize(
        self, image: Tensor, channels: tuple[int, ...] | None = None
    ) -> Tensor:
        """Normalize a raw batch as the datamodule does.

        Args:
            image: Raw values ``(..., n * C, H, W)``, of n dates.
            channels: Which channels the image has; None for all ``data_bands``.

        Returns:
            ``(raw - mean) / std`` in float32, same shape.
        """
        chosen = range(len(self.data_bands)) if channels is None else channels
        mean = torch.tensor([self.mean[i] for i in chosen], device=image.device)
        std = torch.tensor([self.std[i] for i in chosen], device=image.device)
        dates = image.float().unflatten(-3, (-1, len(chosen)))
        out: Tensor = (dates - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
        return out.flatten(-4, -3)

    def reflectance(self, image: Tensor, dim: int = 1) -> Tensor:
        """Turn normalized values of the model's bands into reflectance, float32.

        Args:
            image: Normalized values.
            dim: The dimension of the bands.
        """
        shape = [1] * image.ndim
        shape[dim] = -1
        mean = torch.tensor(self.model_mean, device=image.device).view(shape)
        std = torch.tensor(self.model_std, device=image.device).view(shape)
        out = image.float() * std
        return out.add_(mean).mul_(self.scale).add_(self.offset)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints; :meth:`from_dict` takes them."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> 'BatchStatistics':
        """Restore from :meth:`as_dict`.

        Raises:
            ValueError: If the values make no sense, as in a file of somebody else.
        """
        try:
            arguments: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in values.items()
            }
            statistics = cls(**arguments)
            numbers = (statistics.scale, statistics.offset)
            plausible = (
                len(statistics.mean)
                == len(statistics.std)
                == len(statistics.data_bands)
                and all(map(math.isfinite, statistics.mean + statistics.std + numbers))
                and all(statistics.model_std)
                and all(isinstance(name, str) for name in statistics.data_bands)
                and min(statistics.channels) >= 0
                and 1 <= statistics.dates <= _MOST_DATES
            )
        except (ArithmeticError, IndexError, TypeError, ValueError):
            plausible = False
        if not plausible:
            raise ValueError(
                'statistics: the checkpoint holds no finite mean and std, above 0, for '
                'each band of its data. Pass a training checkpoint of SIGMAETask.'
            )
        return statistics


def resolve_statistics(
    spec: BatchSpec,
    bands: BandSet,
    datamodule: object = None,
    earlier: BatchStatistics | None = None,
) -> BatchStatistics:
    """Find out what batches hold: from arguments, the datamodule, or an earlier run.

    Args:
        spec: The argument ``batch`` of the task.
        bands: Bands the model sees.
        datamodule: The datamodule in use, if any.
        earlier: The statistics of an earlier run or a checkpoint, if any.

    Raises:
        ValueError: If mean or std is unknown, or does not match the bands, or a band of
            *bands* is not in the batch.
    """
    names = _data_bands(spec, bands, datamodule)
    channels = tuple(names.channels(bands))
    mean, std = spec.mean, spec.std
    if mean is None or std is None:
        if isinstance(datamodule, BaseDataModule):
            applied = datamodule_normalization(datamodule) or (None, None)
        else:
            applied = (
                getattr(datamodule, 'mean', None),
                getattr(datamodule, 'std', None),
            )
        mean = applied[0] if mean is None else mean
        std = applied[1] if std is None else std
    if mean is None and std is None and earlier is not None:
        return earlier
    return BatchStatistics(
        data_bands=tuple(names),
        channels=channels,
        mean=_per_band(mean, 'mean', names, channels, datamodule),
        std=_per_band(std, 'std', names, channels, datamodule),
        scale=spec.scale,
        offset=spec.offset,
        dates=datamodule_dates(datamodule),
    )


def _data_bands(spec: BatchSpec, bands: BandSet, datamodule: object) -> BandSet:
    """Name the channels of one date of a batch."""
    if spec.bands is not None:
        names = BandSet.from_data(spec.bands, bands.sensor)
        if spec.key != 'image' and not set(bands) & set(names):
            raise ValueError(
                f'batch.key: {spec.key!r} holds the bands {list(names)}, but the model '
                f'sees {list(bands)}. Pass another key, or bands= of these and their '
                "sensor= ('any' where there is none)."
            )
        return names
    sensor = datamodule_sensor(datamodule)
    if sensor is not None and sensor.name != bands.sensor.name:
        raise ValueError(
            f'sensor: {type(datamodule).__name__} has bands of {sensor.name}, but the '
            f'model those of {bands.sensor.name}. Leave bands out, pass '
            f'sensor={sensor.name!r} and its bands, or name the channels with '
            'batch=BatchSpec(bands=...).'
        )
    return BandSet.from_data(list(datamodule_bands(datamodule) or bands), bands.sensor)


def _per_band(
    value: Any,
    argument: str,
    names: tuple[str, ...],
    channels: tuple[int, ...],
    datamodule: object,
) -> tuple[float, ...]:
    """Bring a mean or std to one value per channel, or say why that cannot be done."""
    if value is None:
        source = f'{type(datamodule).__name__} has none'
        if datamodule is None:
            source = 'no datamodule is attached'
        raise ValueError(
            f'batch.{argument}: not known ({source}). Spectral indices need '
            'the values before normalization: pass batch=BatchSpec(mean=..., std=...) '
            'as they were applied to the batch, (raw - mean) / std, or mean=0, std=1 '
            'if it was not normalized.'
        )
    flat = torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
    if len(flat) == 1:
        flat = flat * len(names)
    if len(flat) != len(names):
        raise ValueError(
            f'batch.{argument}: {len(flat)} values for the {len(names)} channels '
            f'{list(names)} of a batch. Pass one value, or one per channel.'
        )
    used = [flat[i] for i in channels]
    if not all(map(math.isfinite, used)) or (argument == 'std' and 0 in used):
        raise ValueError(f'batch.{argument}: {used} must be finite, and std not 0.')
    return tuple(flat)

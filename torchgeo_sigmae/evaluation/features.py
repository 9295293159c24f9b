# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Features of TorchGeo's classification datasets, computed once."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchgeo.datasets
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from tqdm import tqdm

from ..bands import BandSet
from .frozen import Frozen, FrozenEncoder

__all__ = ('Features', 'extract_features', 'first_images', 'open_split')

#: Training images whose statistics stand in for those an encoder does not tell.
SAMPLE = 512


@dataclass(frozen=True)
class Features:
    """Features of the samples of a dataset.

    Attributes:
        values: ``(N, D)``, float32.
        labels: Class of every sample, ``(N,)``.
        sizes: Samples of every split, in order.
        tokens: Features of all places, ``(N, h * w, D)``, where asked for.
    """

    values: np.ndarray
    labels: np.ndarray
    sizes: tuple[int, ...]
    tokens: np.ndarray | None = None


def extract_features(
    encoder: Frozen,
    dataset: str,
    root: str | Path,
    splits: Sequence[str] = ('train', 'test'),
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | torch.device = 'cpu',
    progress: bool = True,
    tokens: bool = False,
    remove_position_bias: bool = False,
) -> Features:
    """Compute the features of a classification dataset of TorchGeo, once.

    Args:
        encoder: The encoder. One that does not say how its input is normalised is given
            the statistics of the first 512 samples.
        dataset: Name of the class in :mod:`torchgeo.datasets`, for example 'EuroSAT'.
        root: Where the dataset is.
        splits: Its splits, in order.
        batch_size: Images at a time.
        num_workers: Processes that read.
        device: Where to compute.
        progress: Whether to show a progress bar.
        tokens: Whether to keep the features of all places as well, which an attentive
            probe takes.
        remove_position_bias: Whether to subtract the part of features that depends on
            the position in the image alone, learned from the first 512 samples, see
            :meth:`.FrozenEncoder.remove_position_bias`.

    Returns:
        The features.

    Raises:
        ValueError: If there is no such dataset, it lacks a band of the encoder, or its
            samples have no single label.
    """
    parts = [open_split(dataset, root, split, encoder.bands) for split in splits]
    data: Dataset[dict[str, Any]] = ConcatDataset(parts)
    loader = DataLoader(data, batch_size, num_workers=num_workers, collate_fn=_collate)
    sample = torch.empty(0)
    if remove_position_bias or not encoder.ready:
        sample = first_images(parts[0])
    if not encoder.ready:
        encoder.standardize(sample)
    encoder = encoder.to(device)
    if remove_position_bias and isinstance(encoder, FrozenEncoder):
        encoder.remove_position_bias(sample, SAMPLE, batch_size)
    values, labels, places = [], [], []
    for images, classes in tqdm(
        loader, f'Features of {encoder.name}', disable=None if progress else True
    ):
        images = images.to(device)
        if tokens:
            maps = encoder.maps(images)
            places.append(maps.flatten(2).movedim(1, -1).float().cpu())
            features = encoder.pooled(images, maps)
        else:
            features = encoder(images)
        values.append(features.float().cpu())
        labels.append(classes)
    return Features(
        torch.cat(values).numpy(),
        torch.cat(labels).numpy(),
        tuple(len(part) for part in parts),  # type: ignore[arg-type]
        torch.cat(places).numpy() if tokens else None,
    )


def open_split(
    name: str, root: str | Path, split: str, bands: Sequence[str]
) -> Dataset[dict[str, Any]]:
    """Open a split of a dataset of TorchGeo with the bands of an encoder.

    Args:
        name: Name of the class in :mod:`torchgeo.datasets`.
        root: Where the dataset is.
        split: Its split.
        bands: Bands to read.

    Returns:
        The split.

    Raises:
        ValueError: If there is no such dataset, or it lacks a band.
    """
    if not inspect.isclass(getattr(torchgeo.datasets, name, None)):
        raise ValueError(
            f'dataset: {name!r} is not in torchgeo.datasets. Use the name of a class '
            "there whose samples have an 'image' and a 'label', for example 'EuroSAT'."
        )
    kind: Any = getattr(torchgeo.datasets, name)
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {}
    known = parameters['bands'].default if 'bands' in parameters else ''
    if not isinstance(known, str):
        # As the dataset spells them.
        options['bands'] = [known[i] for i in BandSet.from_data(known).channels(bands)]
    if 'split' in parameters:
        options['split'] = split
    made: Dataset[dict[str, Any]] = kind(root, **options)
    return made


def first_images(dataset: Dataset[dict[str, Any]]) -> Tensor:
    """Stack the first :data:`SAMPLE` images of a dataset.

    Args:
        dataset: A dataset with images of one size.

    Returns:
        Raw values ``(B, C, H, W)``.
    """
    count = min(SAMPLE, len(dataset))  # type: ignore[arg-type]
    return torch.stack([dataset[i]['image'].float() for i in range(count)])


def _collate(samples: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Batch images and labels, and nothing else."""
    labels = [torch.as_tensor(sample.get('label', torch.nan)) for sample in samples]
    if labels[0].ndim or labels[0].is_floating_point():
        raise ValueError(
            "dataset: its samples have no single 'label' of whole numbers, which is "
            'what a probe classifies. Use a dataset with one class an image.'
        )
    images = torch.stack([sample['image'].float() for sample in samples])
    return images, torch.stack(labels)

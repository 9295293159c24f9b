# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Features of classification datasets, computed once."""

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
from .baseline import BandStatistics
from .encoders import FrozenEncoder

__all__ = ('Features', 'extract_features', 'first_images', 'open_split')

#: Training images whose statistics normalize the input of an encoder without any.
SAMPLE = 512


@dataclass(frozen=True)
class Features:
    """Features of the samples of a dataset.

    Attributes:
        values: ``(N, D)``, float32.
        labels: Class of every sample, ``(N,)``.
        split: Number of every sample's split, ``(N,)``, counted from 0.
        tokens: Features of all patches, ``(N, h * w, D)``, if asked for.
    """

    values: np.ndarray
    labels: np.ndarray
    split: np.ndarray
    tokens: np.ndarray | None = None


def extract_features(
    encoder: FrozenEncoder | BandStatistics,
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
    """Compute the features of a classification dataset of TorchGeo.

    Args:
        encoder: The encoder. If its weights come without a normalization of its input,
            the statistics of the first 512 samples are used.
        dataset: Name of the class in :mod:`torchgeo.datasets`, for example 'EuroSAT'.
        root: Folder of the dataset.
        splits: Its splits, in order.
        batch_size: Images at a time.
        num_workers: Processes that read.
        device: Where to compute.
        progress: Whether to show a progress bar.
        tokens: Whether to keep the features of all patches as well, for an attentive
            probe.
        remove_position_bias: Whether to subtract the part of the features that depends
            on the position alone, estimated from the first 512 samples, see
            :meth:`.FrozenEncoder.remove_position_bias`.

    Raises:
        ValueError: If there is no such dataset, it lacks a band of the encoder, or its
            samples have no single label.
    """
    parts = [open_split(dataset, root, split, encoder.bands) for split in splits]
    data: Dataset[dict[str, Any]] = ConcatDataset(parts)
    loader = DataLoader(data, batch_size, num_workers=num_workers, collate_fn=_collate)
    if isinstance(encoder, FrozenEncoder) and encoder.transform is None:
        encoder.fit_normalization(first_images(parts[0]))
    encoder = encoder.to(device)
    if isinstance(encoder, FrozenEncoder) and remove_position_bias:
        encoder.remove_position_bias(first_images(parts[0]), SAMPLE, batch_size)
    values, labels, patches = [], [], []
    for images, classes in tqdm(
        loader, f'Features of {encoder.name}', disable=None if progress else True
    ):
        images = images.to(device)
        described = encoder.patch_features(images) if tokens else None
        if described is not None:
            patches.append(described.flatten(2).movedim(1, -1).float().cpu())
        values.append(encoder(images, described).float().cpu())
        labels.append(classes)
    sizes = [len(part) for part in parts]  # type: ignore[arg-type]
    return Features(
        torch.cat(values).numpy(),
        torch.cat(labels).numpy(),
        np.repeat(np.arange(len(sizes)), sizes),
        torch.cat(patches).numpy() if tokens else None,
    )


def open_split(
    name: str, root: str | Path, split: str, bands: Sequence[str]
) -> Dataset[dict[str, Any]]:
    """Open a split of a dataset of TorchGeo with the bands of an encoder."""
    if not inspect.isclass(getattr(torchgeo.datasets, name, None)):
        raise ValueError(
            f'dataset: {name!r} is not in torchgeo.datasets. Use the name of a class '
            "there whose samples have an 'image' and a 'label', for example 'EuroSAT'."
        )
    kind: Any = getattr(torchgeo.datasets, name)
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {}
    offered = parameters['bands'].default if 'bands' in parameters else ''
    if not isinstance(offered, str):
        # As the dataset spells them.
        channels = BandSet.from_data(offered).channels(bands)
        options['bands'] = [offered[i] for i in channels]
    if 'split' in parameters:
        options['split'] = split
    return kind(root, **options)


def first_images(dataset: Dataset[dict[str, Any]]) -> Tensor:
    """Stack the first :data:`SAMPLE` images of a dataset, raw ``(B, C, H, W)``."""
    count = min(SAMPLE, len(dataset))  # type: ignore[arg-type]
    return torch.stack([dataset[i]['image'].float() for i in range(count)])


def _collate(samples: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Batch images and labels, and nothing else."""
    labels = [torch.as_tensor(sample.get('label', torch.nan)) for sample in samples]
    if labels[0].ndim or labels[0].is_floating_point():
        raise ValueError(
            "dataset: its samples have no single 'label' of whole numbers, which a "
            'probe needs. Use a dataset with one class for each image.'
        )
    images = torch.stack([sample['image'].float() for sample in samples])
    return images, torch.stack(labels)

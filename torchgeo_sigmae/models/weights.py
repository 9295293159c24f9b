# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Pretrained weights by name: ``weights=SIGMAE_Weights.<member>`` or its string.

The files ship inside the package. They are read from there, never from a cache or the
network, and their hash is verified on every load.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchgeo.models import get_weight
from torchvision.models._api import Weights, WeightsEnum
from torchvision.transforms import v2 as T

from ..bands import SENTINEL2_TEN_BANDS
from .checkpoint import EncoderCheckpoint, encoder_of, read_content

__all__ = (
    'PackagedFile',
    'PackagedWeights',
    'SIGMAE_Weights',
    'find_weights',
    'normalization',
    'resolve_weights',
)


@dataclass(eq=False)
class PackagedFile(Weights):
    """The value of a :class:`PackagedWeights` member.

    Attributes:
        url: Name of the file in *package*; in the one file format.
        transforms: Maps raw values of the named bands to the model's input, see
            :func:`normalization`.
        meta: ``dataset``, ``in_chans``, ``model``, ``bands``, ``img_size``,
            ``ssl_method``, ``publication``, ``repo`` and ``license``.
        sha256: SHA-256 of the file, 64 hexadecimal digits.
        package: The importable package that holds the file.
    """

    url: str
    transforms: nn.Module
    meta: dict[str, Any]
    sha256: str
    package: str = 'torchgeo_sigmae.models'


class PackagedWeights(WeightsEnum):
    """Base class of enums whose files ship inside a Python package.

    Members are values of :class:`PackagedFile`. TorchGeo's own loaders take them like
    any of TorchGeo's enums.

    .. versionadded:: 0.1
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by name: a transform that was copied would equal no member's.

        Args:
            protocol: Of no importance here.

        Returns:
            How to find this member.
        """
        return getattr, (type(self), self.name)

    @property
    def url(self) -> str:
        """Where the file is, as a URL."""
        return Path(str(self._resource())).as_uri()

    def read(self, map_location: Any = 'cpu') -> EncoderCheckpoint:
        """Read the file, after verifying its hash.

        Args:
            map_location: Where to put the tensors, as in :func:`torch.load`.

        Returns:
            The tensors under plain timm keys, and what is known about them.

        Raises:
            FileNotFoundError: If the file is missing from the installed package.
            RuntimeError: If the file is not the one that was released.
        """
        return encoder_of(self.read_content(map_location), repr(self))

    def read_content(self, map_location: Any = 'cpu') -> Any:
        """Read all that is in the file, the decoder included, likewise.

        Args:
            map_location: Where to put the tensors, as in :func:`torch.load`.

        Returns:
            ``{'hyper_parameters': ..., 'state_dict': ...}``.

        Raises:
            FileNotFoundError: If the file is missing from the installed package.
            RuntimeError: If the file is not the one that was released.
        """
        resource, file = self._resource(), self.value
        remedy = (
            f'Reinstall it: pip install --force-reinstall --no-deps '
            f'{file.package.partition(".")[0].replace("_", "-")}.'
        )
        try:
            content = resource.read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'weights: the file of {self!r} is missing from the installed package: '
                f'{resource}. {remedy}'
            ) from error
        # What was hashed is what is loaded: the file is read once.
        found = hashlib.sha256(content).hexdigest()
        if found != file.sha256:
            raise RuntimeError(
                f'weights: the file of {self!r} is damaged or was altered: {resource} '
                f'has the SHA-256 {found} instead of {file.sha256}. It is not loaded. '
                f'{remedy}'
            )
        return read_content(io.BytesIO(content), str(resource), map_location)

    def get_state_dict(
        self,
        model_dir: str | None = None,
        map_location: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Read the tensors; their hash is verified whatever the arguments.

        Args:
            model_dir: Ignored: nothing is copied to a cache.
            map_location: Where to put the tensors; None for the CPU.
            *args: What else TorchGeo and torchvision pass (``progress``,
                ``check_hash``, ``file_name``, ``weights_only``). Ignored: the hash is
                always verified, and nothing but tensors and plain values is read.
            **kwargs: Likewise.

        Returns:
            The tensors under plain timm keys, a new dictionary every time.

        Raises:
            FileNotFoundError: If the file is missing from the installed package.
            RuntimeError: If the file is not the one that was released.
        """
        return self.read(map_location or 'cpu').state_dict

    def _resource(self) -> Traversable:
        """The file inside its package."""
        file: PackagedFile = self.value
        return files(file.package) / file.url


def normalization(mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Make the ``transforms`` of weights: raw values to the model's input.

    Args:
        mean: Mean of every band in raw units, digital numbers for Sentinel-2.
        std: Standard deviation of every band, positive.

    Returns:
        A module that takes images ``(..., C, H, W)``, integer or floating point, or
        samples that hold one, to ``(raw - mean) / std`` in float32. It writes to a
        copy.
    """
    return nn.Sequential(
        T.ToDtype(torch.float32, scale=False), T.Normalize(list(mean), list(std))
    )


class SIGMAE_Weights(PackagedWeights):
    """SIGMAE weights.

    For the encoders ``sigmae_vit_{tiny,small,base,large}_patch{8,16}``; the ``meta`` of
    a member says which one it is. What they were trained on, and what they are worth,
    is in the model card, ``docs/weights.md``.

    Files hold the decoder, too: ``SIGMAETask(previous=SIGMAE_Weights.SENTINEL2)``
    pretrains further.

    .. versionadded:: 0.1
    """

    SENTINEL2 = PackagedFile(
        url='sigmae_vit_tiny_patch8_sentinel2-2fe5e33b.pth',
        transforms=normalization(
            [
                974.627, 1051.12, 959.144, 1328.4, 2189.42, 2553.16, 2567.12, 2771.26,
                1960.25, 1266.41,
            ],
            [
                751.311, 658.305, 658.439, 641.394, 707.99, 858.815, 845.283, 893.211,
                928.942, 769.523,
            ],
        ),
        meta={
            'dataset': 'Sentinel-2 scenes, bark-beetle training sites',
            'in_chans': 10,
            'model': 'sigmae_vit_tiny_patch8',
            'bands': list(SENTINEL2_TEN_BANDS),
            'img_size': 64,
            'ssl_method': 'sigmae',
            'publication': 'https://arxiv.org/abs/2603.07463',
            'repo': 'torchgeo-sigmae',
            'license': 'MIT; contains modified Copernicus Sentinel data 2015-2023',
        },
        sha256='2fe5e33ba7d705090df4b4a4872242235ca0625e8ff8169c85b6dae34c4f271c',
    )  # fmt: skip


def resolve_weights(weights: WeightsEnum | str | Path) -> WeightsEnum | Path:
    """Tell a file from a weight enum.

    Args:
        weights: A weight enum, its string, or the path of a file.

    Returns:
        The member, or the path of what exists under that name.

    Raises:
        FileNotFoundError: If it is neither.
    """
    if isinstance(weights, WeightsEnum):
        return weights
    path = Path(weights)
    if isinstance(weights, Path) or path.exists():
        return path
    return find_weights(weights)


def find_weights(name: str) -> WeightsEnum:
    """Find a weight enum by its string, with or without TorchGeo's registry.

    Args:
        name: For example ``'SIGMAE_Weights.<member>'``, or one of TorchGeo's.

    Returns:
        The member.

    Raises:
        FileNotFoundError: If there is none; the string may as well be a misspelled
            path.
    """
    members: Iterable[WeightsEnum] = SIGMAE_Weights  # type: ignore[assignment]
    for member in members:
        if name == str(member):
            return member
    try:
        return get_weight(name)
    except ValueError:
        raise FileNotFoundError(
            f'weights: {name!r} is neither a file nor the name of a weight enum that '
            'TorchGeo knows. Check the path.'
        ) from None

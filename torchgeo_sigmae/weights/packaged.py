# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Pretrained weights by name: ``weights=SIGMAE_Weights.<member>`` or its string.

The files ship inside the package. They are read from there, never from a cache or the
network, and their hash is verified on every load.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.models._api as torchvision_weights
from torch import Tensor, nn
from torchvision.transforms import v2 as T

from ..bands import SENTINEL2_TEN_BANDS
from .files import Weights, read_file

__all__ = ('PackagedFile', 'PackagedWeights', 'SIGMAE_Weights', 'normalization')


@dataclass(eq=False)
class PackagedFile(torchvision_weights.Weights):
    """The value of a :class:`PackagedWeights` member.

    Attributes:
        url: Name of the file, which lies beside this module.
        transforms: Raw values of the bands to the input of the model.
        meta: ``dataset``, ``in_chans``, ``model``, ``bands``, ``img_size``,
            ``ssl_method``, ``publication``, ``repo`` and ``license``.
        sha256: SHA-256 of the file, 64 hexadecimal digits.
    """

    url: str
    transforms: nn.Module
    meta: dict[str, Any]
    sha256: str


class PackagedWeights(torchvision_weights.WeightsEnum):
    """Base class of enums whose files ship inside the package."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by name: a copied transform would not equal the member's."""
        return getattr, (type(self), self.name)

    @property
    def path(self) -> Path:
        """The file."""
        url: str = self.value.url
        return Path(__file__).parent / url

    @property
    def url(self) -> str:
        """The file, as a URL."""
        return self.path.as_uri()

    def read(self) -> Weights:
        """Read the file after verifying its hash.

        Raises:
            FileNotFoundError: If the file is missing from the installed package.
            RuntimeError: If the file is not the one that was released.
        """
        remedy = (
            'Reinstall it: pip install --force-reinstall --no-deps torchgeo-sigmae.'
        )
        try:
            content = self.path.read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'weights: the file of {self!r} is missing from the installed package: '
                f'{self.path}. {remedy}'
            ) from error
        # The bytes that were hashed are loaded: the file is read once.
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.value.sha256:
            raise RuntimeError(
                f'weights: the file of {self!r} is damaged or was altered: {self.path} '
                f'has the SHA-256 {digest} instead of {self.value.sha256}. It is not '
                f'loaded. {remedy}'
            )
        weights = read_file(io.BytesIO(content), str(self))
        if 'decoder_num_heads' in self.meta:
            # Files of the first edition do not state it.
            weights.info.setdefault('decoder_num_heads', self.meta['decoder_num_heads'])
        return weights

    def get_state_dict(
        self,
        model_dir: str | None = None,
        map_location: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Read the encoder under plain timm keys; other arguments are ignored.

        The hash is always verified, only tensors and plain values are read, and nothing
        is copied to a cache.
        """
        encoder = self.read().encoder
        return {key: value.to(map_location or 'cpu') for key, value in encoder.items()}


def normalization(mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """Build the ``transforms`` of weights: ``(raw - mean) / std`` in float32.

    They map images ``(..., C, H, W)`` of any type, or samples that hold one. *mean* and
    *std* are in raw units, digital numbers for Sentinel-2.
    """
    return nn.Sequential(
        T.ToDtype(torch.float32, scale=False), T.Normalize(list(mean), list(std))
    )


class SIGMAE_Weights(PackagedWeights):
    """SIGMAE weights.

    For the encoders ``sigmae_vit_{tiny,small,base,large}_patch{8,16}``; the ``meta`` of
    a member names its encoder. The model card, ``docs/weights.md``, reports the
    training data and results.

    Files hold the decoder as well: ``SIGMAETask(weights=SIGMAE_Weights.SENTINEL2)``
    pretrains further.

    .. versionadded:: 0.1
    """

    SENTINEL2 = PackagedFile(
        url='sigmae_vit_tiny_patch8_sentinel2-753e9ef2.pth',
        transforms=normalization(
            [
                788.495, 904.131, 879.157, 1143.78, 2071.41, 2413.03, 2099.69, 2606.81,
                1750.02, 1189.83,
            ],
            [
                583.59, 572.579, 701.276, 600.469, 1029.99, 1253.29, 1329.74, 1360.88,
                1096.29, 868.435,
            ],
        ),
        meta={
            'dataset': 'Sentinel-2 scenes, bark-beetle training sites',
            'in_chans': 10,
            'model': 'sigmae_vit_tiny_patch8',
            'bands': list(SENTINEL2_TEN_BANDS),
            'img_size': 128,
            'ssl_method': 'sigmae',
            'publication': 'https://arxiv.org/abs/2603.07463',
            'repo': 'torchgeo-sigmae',
            'decoder_num_heads': 4,
            'license': 'MIT; contains modified Copernicus Sentinel data 2015-2023',
        },
        sha256='753e9ef2411c93514027bcca4381f2d573cbb8b75be66c476282df3df3bb1dc3',
    )  # fmt: skip

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The one way to read weights."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import snapshot_download
from torchgeo.models import get_weight
from torchvision.models._api import WeightsEnum

from ..bands import BandSet
from ..models.layout import layout_of_state
from .files import Weights, read_file
from .folder import FILES, is_export
from .packaged import PackagedWeights, SIGMAE_Weights

__all__ = ('find_weights', 'read_weights')

#: What timm calls the Hugging Face Hub, in front of a repository.
_HUB = 'hf-hub:'


def read_weights(
    source: WeightsEnum | str | Path, bands: Sequence[str] | None = None
) -> Weights:
    """Read pretrained weights and the information about them.

    Args:
        source: A weight enum or its string; the path of a file or folder made by
            ``SIGMAETask.export`` or :func:`~torchgeo_sigmae.weights.adapt_bands`; such
            a folder on the Hugging Face Hub, ``hf-hub:OWNER/NAME[@REVISION]``; a
            training checkpoint of ``SIGMAETask``, or of a TorchGeo task that fine-tuned
            one of our encoders, whose head is dropped; or the ``default_root_dir`` of a
            run with ``resume: true``, for its newest checkpoint.
        bands: Bands of the encoder in order, where the file does not name them: a
            checkpoint that was fine-tuned without :class:`.FineTuning`. A
            :class:`~torchgeo_sigmae.bands.BandSet` for another sensor than Sentinel-2.

    Returns:
        The tensors of encoder and decoder, and the information. For one of TorchGeo's
        own enums, the information is its ``meta``.

    Raises:
        FileNotFoundError: If *source* is neither a known enum nor a file, the folder
            holds no weights, or the Hub or the repository cannot be reached.
        ValueError: If the file is not in the format, or *bands* are not its bands.
        RuntimeError: If the file of an enum was altered or damaged.
    """
    origin = find_weights(source)
    if isinstance(origin, Path):
        return _with_bands(read_file(origin, str(origin)), bands)
    if isinstance(origin, PackagedWeights):
        return _with_bands(origin.read(), bands)
    state_dict = origin.get_state_dict(
        progress=True, check_hash=True, weights_only=True
    )
    return Weights(state_dict, info=dict(origin.meta), name=str(origin))


def _with_bands(weights: Weights, bands: Sequence[str] | None) -> Weights:
    """Add the names of the bands to weights without them."""
    if bands is None:
        return weights
    named = BandSet(bands)
    if weights.bands is not None:
        if not weights.bands.matches(named):
            raise ValueError(
                f'bands: {list(bands)}, but {weights.name!r} is for '
                f'{list(weights.bands)} of {weights.bands.sensor.name}. Leave bands '
                'out, or adapt the weights: torchgeo-sigmae adapt-bands --help.'
            )
        return weights
    channels = layout_of_state(weights.encoder).channels
    if len(named) != channels:
        raise ValueError(
            f'bands: {len(named)} names {list(named)}, but {weights.name!r} takes '
            f'{channels} channels. Name every channel, in order.'
        )
    added = {'bands': list(named), 'sensor': named.sensor.plain()}
    return replace(weights, info={**weights.info, **added})


def find_weights(source: WeightsEnum | str | Path) -> WeightsEnum | Path:
    """Find the member, or the path of the file or folder, for :func:`.read_weights`."""
    if isinstance(source, WeightsEnum):
        return source
    if str(source).startswith(_HUB):
        return _downloaded(str(source).removeprefix(_HUB))
    path = Path(source)
    if is_export(path):
        return path
    if path.is_dir():
        # The names hold the step, with leading zeros.
        checkpoints = sorted((path / 'resume').glob('*.ckpt'))
        if not checkpoints:
            raise FileNotFoundError(
                f'weights: {str(source)!r} holds no resume/*.ckpt and no config.json. '
                'Pass the default_root_dir of a run with resume: true, a folder made '
                'by SIGMAETask.export, or the path of a file.'
            )
        return checkpoints[-1]
    if path.is_file():
        return path
    # Also without TorchGeo's registry.
    members: Iterable[WeightsEnum] = SIGMAE_Weights  # type: ignore[assignment]
    for member in members:
        if str(source) == str(member):
            return member
    try:
        return get_weight(str(source))
    except ValueError:
        raise FileNotFoundError(
            f'weights: {str(source)!r} is neither a file nor the name of a weight enum '
            'that TorchGeo knows. Check the path.'
        ) from None


def _downloaded(repository: str) -> Path:
    """Download an exported folder from the Hub, or find it in the cache."""
    name, _, revision = repository.partition('@')
    files = list(FILES)
    try:
        folder = snapshot_download(
            name, revision=revision or None, allow_patterns=files
        )
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f'weights: {_HUB + repository!r} cannot be downloaded: {error} Check the '
            'name and the network; private repositories need hf auth login.'
        ) from error
    return Path(folder)

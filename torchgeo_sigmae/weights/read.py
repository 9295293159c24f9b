# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The one way to read weights."""

from collections.abc import Iterable
from pathlib import Path

from torchgeo.models import get_weight
from torchvision.models._api import WeightsEnum

from .files import Weights, read_file
from .packaged import PackagedWeights, SIGMAE_Weights

__all__ = ('find_weights', 'read_weights')


def read_weights(source: WeightsEnum | str | Path) -> Weights:
    """Read pretrained weights and the information about them.

    Args:
        source: A weight enum or its string; the path of a file made by
            ``SIGMAETask.export`` or :func:`~torchgeo_sigmae.weights.adapt_bands`; a
            training checkpoint of ``SIGMAETask``, or of a TorchGeo task that fine-tuned
            one of our encoders, whose head is dropped; or the ``default_root_dir`` of a
            run with ``resume: true``, for its newest checkpoint.

    Returns:
        The tensors of encoder and decoder, and the information. For one of TorchGeo's
        own enums, the information is its ``meta``.

    Raises:
        FileNotFoundError: If *source* is neither a known enum nor a file, or the folder
            holds no checkpoint.
        ValueError: If the file is not in the format.
        RuntimeError: If the file of an enum was altered or damaged.
    """
    found = find_weights(source)
    if isinstance(found, Path):
        return read_file(found, str(found))
    if isinstance(found, PackagedWeights):
        return found.read()
    state_dict = found.get_state_dict(progress=True, check_hash=True, weights_only=True)
    return Weights(state_dict, info=dict(found.meta), name=str(found))


def find_weights(source: WeightsEnum | str | Path) -> WeightsEnum | Path:
    """Find the file or the weight enum.

    Args:
        source: As in :func:`.read_weights`.

    Returns:
        The member, or the path of an existing file.

    Raises:
        FileNotFoundError: If it is neither.
    """
    if isinstance(source, WeightsEnum):
        return source
    path = Path(source)
    if path.is_dir():
        # The names hold the step, with leading zeros.
        checkpoints = sorted((path / 'resume').glob('*.ckpt'))
        if not checkpoints:
            raise FileNotFoundError(
                f'weights: {str(source)!r} holds no resume/*.ckpt. Pass the '
                'default_root_dir of a run with resume: true, or the path of a file.'
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

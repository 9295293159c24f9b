# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Where the randomness of masks comes from: a generator, or the sample itself."""

import torch
from torch import Generator, Tensor

__all__ = ('SampleNoise', 'gumbel_noise', 'hashed_noise', 'uniform_noise')


class SampleNoise:
    """Noise that hangs on a key and on a sample's number alone.

    A generator deals its numbers out by position in the batch, so a mask would change
    with the batch size, the number of processes and the device. Here every sample draws
    numbers of its own, as counter-based generators do. Nothing is looped over.

    Every draw gives new numbers; two objects of the same key and samples draw the same.
    """

    def __init__(self, key: int, index: Tensor) -> None:
        """Initialize a new SampleNoise instance.

        Args:
            key: A well-spread seed, 0 or more and below ``2 ** 63``.
            index: Numbers of the samples, integers ``(B,)``; equal numbers draw equal
                noise.
        """
        index = index.long()
        # As bits of a key that is hashed first, else samples and keys would add up.
        self._rows = _splitmix64(_splitmix64(torch.full_like(index, key)) ^ index)
        self._drawn = 0

    def draw(self, like: Tensor) -> Tensor:
        """Draw uniform noise.

        Args:
            like: ``(B, N)``, of which the shape and the device are taken.

        Returns:
            Noise in (0, 1), float32.
        """
        rows = _splitmix64(self._rows + self._drawn).unsqueeze(-1)
        self._drawn += 1
        counter = torch.arange(like.shape[-1], device=rows.device)
        return _uniform(_splitmix64(rows + counter)).to(like.device)


def hashed_noise(index: Tensor, count: int) -> Tensor:
    """Make uniform noise from numbers of samples alone.

    Args:
        index: Numbers of the samples, integers ``(B,)`` in [0, 2 ** 43).
        count: Values per sample, under ``2 ** 20``.

    Returns:
        Noise in [0, 1), float32 ``(B, count)``.
    """
    counter = torch.arange(count, device=index.device)
    bits = _splitmix64((index.long().unsqueeze(-1) << 20) + counter)
    # 24 bits are what float32 tells apart.
    return _shift(bits, 40).float() / 2**24


def uniform_noise(like: Tensor, source: Generator | SampleNoise | None) -> Tensor:
    """Draw uniform noise on the source's device, so that seeds travel with it.

    Args:
        like: ``(B, N)``, of which the shape and the device are taken.
        source: Source of randomness; None for torch's global one.

    Returns:
        Noise in [0, 1), float32.
    """
    if isinstance(source, SampleNoise):
        return source.draw(like)
    device = like.device if source is None else source.device
    return torch.rand(like.shape, generator=source, device=device).to(like.device)


def gumbel_noise(like: Tensor, source: Generator | SampleNoise | None) -> Tensor:
    """Draw standard Gumbel noise, likewise.

    Args:
        like: ``(B, N)``, of which the shape and the device are taken.
        source: Source of randomness; None for torch's global one.

    Returns:
        Noise, float32.
    """
    if isinstance(source, SampleNoise):
        return -(-source.draw(like).log()).log()
    device = like.device if source is None else source.device
    noise = torch.empty(like.shape, device=device).exponential_(generator=source)
    return -noise.log().to(like.device)


def _uniform(bits: Tensor) -> Tensor:
    """Random bits as float32 in (0, 1); neither end, whose logarithms are infinite."""
    # 23 bits and a half are the 24 that float32 has.
    return (_shift(bits, 41).float() + 0.5) / 2**23


def _splitmix64(x: Tensor) -> Tensor:
    """Turn counters into random bits.

    SplitMix64 (Steele, Lea and Flood, 2014, doi:10.1145/2660193.2660195). int64
    arithmetic wraps as the algorithm wants; its constants are written signed.
    """
    x = (x + 1) * -7046029254386353131
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift int64 to the right as if it were unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)

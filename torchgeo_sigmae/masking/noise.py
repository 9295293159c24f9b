# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The source of randomness of masks: a pure function of a key and a sample index."""

import torch
from torch import Tensor

__all__ = ('gumbel', 'sample_noise')


def sample_noise(key: int, index: Tensor, count: int) -> Tensor:
    """Make uniform noise that depends on a key and the sample index alone.

    A :class:`torch.Generator` hands out numbers by position in the batch, so the mask
    of a sample would depend on batch size, number of processes and device. Here every
    number is a hash of (*key*, sample index, counter 0 ... *count* - 1), as in
    counter-based generators. Nothing is stored between calls: equal arguments give
    equal noise, on every device. For independent draws, use different keys.

    Args:
        key: An integer in [0, 2 ** 63).
        index: Sample indices, integers ``(B,)``. Equal indices get equal noise.
        count: Numbers per sample.

    Returns:
        Noise in (0, 1), float32 ``(B, count)``, on the device of *index*.
    """
    index = index.long()
    # The key is hashed before it meets the index: else key + 1 and index + 1 could be
    # the same.
    row = _splitmix64(_splitmix64(torch.full_like(index, key)) ^ index)
    counter = torch.arange(count, device=index.device)
    bits = _splitmix64(row.unsqueeze(-1) + counter)
    # 23 bits and a half are the 24 that float32 has. Neither end of the interval is
    # reached, since their logarithms are infinite.
    return (_shift(bits, 41).float() + 0.5) / 2**23


def gumbel(noise: Tensor) -> Tensor:
    """Turn uniform noise in (0, 1) into standard Gumbel noise, in the same order."""
    return -(-noise.log()).log()


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

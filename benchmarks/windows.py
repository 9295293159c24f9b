# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Training windows without copies from the host."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ('Windows',)


class Windows:
    """A loader of random windows, drawn and turned on the device that holds all tiles.

    As with :class:`torchgeo_sigmae.SceneDataModule`, a tile is drawn in proportion to
    its area, and smaller tiles are padded with missing pixels.
    """

    def __init__(
        self, tiles: Sequence[np.ndarray], size: int, batch_size: int, device: str
    ) -> None:
        """Initialize a new Windows instance.

        Args:
            tiles: Raw values in int16, ``(C, H, W)`` each, 0 where missing.
            size: Side of the windows in pixels.
            batch_size: Windows in a batch.
            device: Where the tiles are held.
        """
        self.size, self.batch_size, self.steps = size, batch_size, 0
        self.area = torch.tensor([float(tile[0].size) for tile in tiles], device=device)
        padding = [[(0, max(size - n, 0)) for n in tile.shape[1:]] for tile in tiles]
        padded = [
            np.pad(tile, ((0, 0), *pads))
            for tile, pads in zip(tiles, padding, strict=True)
        ]
        shapes = torch.tensor([tile.shape[1:] for tile in padded], device=device)
        self.height, self.width = shapes.unbind(1)
        self.start = shapes.prod(1).cumsum(0) - shapes.prod(1)
        # One row for each pixel of all tiles.
        rows = [torch.from_numpy(tile).flatten(1).T for tile in padded]
        self.pixels = torch.cat(rows).to(device)

    def __len__(self) -> int:
        """Number of batches."""
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield batches of raw values ``(B, C, size, size)`` in float32."""
        device = self.pixels.device
        generator = torch.Generator(device).manual_seed(0)
        side = torch.arange(self.size, device=device)
        for _ in range(self.steps):
            count = self.batch_size
            tile = torch.multinomial(self.area, count, True, generator=generator)
            draws = torch.rand(3, count, 1, 1, generator=generator, device=device)
            height, width = self.height[tile, None, None], self.width[tile, None, None]
            row = (draws[0] * (height - self.size + 1)).long()
            column = (draws[1] * (width - self.size + 1)).long()
            # Half of the windows are transposed. The task flips them.
            down, right = (
                torch.where(draws[2] < 0.5, *strides)
                for strides in ((width, 1), (1, width))
            )
            offset = side[:, None] * down + side * right
            index = self.start[tile, None, None] + row * width + column + offset
            yield {'image': self.pixels[index].permute(0, 3, 1, 2).float().contiguous()}

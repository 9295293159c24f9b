# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Results of windows on disk: an interrupted map goes on where it was."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rasterio.windows import Window
from torch import nn
from tqdm import tqdm

from .._files import atomic_path
from ..datasets.scenes import opened
from .raster import Raster

__all__ = ('Parts', 'fingerprint')

#: Side of a window in pixels, about: ten bands of it take 42 MB.
_SIDE = 1024


class Parts:
    """What every window of an image gives, in files beside the map to be.

    A window is a number of whole patches. A file is written whole or not at all, so a
    killed run loses the window it was in. Parts of another image, or made by other
    settings, are thrown away.

    Attributes:
        key: Stands for the image, as it is now, and the settings.
    """

    def __init__(
        self,
        target: Path,
        raster: Raster,
        patch_size: int,
        window: int | None,
        settings: dict[str, Any],
    ) -> None:
        """Initialize a new Parts instance.

        Args:
            target: The map to be.
            raster: The image.
            patch_size: Side of a patch in pixels.
            window: Side of the windows in pixels; None for about 1024.
            settings: What else the map depends on, as for JSON.

        Raises:
            ValueError: If *patch_size* does not divide *window*.
        """
        usual = max(_SIDE // patch_size, 1) * patch_size
        side = usual if window is None else window
        if side < patch_size or side % patch_size:
            raise ValueError(
                f'window: {window} is not a multiple of the {patch_size} pixels of a '
                f'patch. Use, for example, {usual}.'
            )
        self.target, self.raster = target, raster
        self.folder = target.with_name(f'.{target.name}.parts')
        self.patch_size = patch_size
        self.windows = list(raster.windows(side, patch_size))
        settings = {**settings, 'patch_size': patch_size, 'side': side}
        asked = json.dumps({**raster.identity, **settings}, default=str)
        self.key = hashlib.sha256(asked.encode()).hexdigest()

    @property
    def finished(self) -> bool:
        """Whether the map is there, of this very image and by these settings."""
        try:
            with opened(str(self.target)) as file:
                return bool(file.tags().get('made_from') == self.key)
        except OSError:
            return False

    def compute(self, work: Callable[[Window], np.ndarray], title: str) -> None:
        """Do what is not done yet, with a progress bar.

        Args:
            work: From a window to its result.
            title: What to write beside the bar.

        Raises:
            OSError: If a window cannot be read, or its result not be written.
            ValueError: If no window has a result that is not NaN.
        """
        self._begin()
        missing = [i for i in range(len(self.windows)) if not self._path(i).exists()]
        done = len(self.windows) - len(missing)
        with tqdm(
            total=len(self.windows), initial=done, desc=title, disable=None, delay=2
        ) as bar:
            for i in missing:
                result = work(self.windows[i])
                remedy = (
                    f'What is done is kept in {self.folder}; the same command goes on '
                    'from there.'
                )
                with atomic_path(self._path(i), remedy=remedy) as part:
                    np.save(part, result, allow_pickle=False)
                bar.update()
        if not any(np.isfinite(found).any() for _, found in self):
            self.remove()
            raise ValueError(
                f'scene: {self.raster.name} has no valid pixel'
                + (' in the area.' if self.raster.area is not None else '.')
            )

    def __iter__(self) -> Iterator[tuple[Window, np.ndarray]]:
        """Iterate over windows, in patches, and their results, one at a time."""
        for i, window in enumerate(self.windows):
            cells = Window(*(int(n) // self.patch_size for n in window.flatten()))
            yield cells, np.load(self._path(i), allow_pickle=False)

    def remove(self) -> None:
        """Remove the files, once the map is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self) -> None:
        """Make the folder, or throw away what does not belong to this map."""
        key = self.folder / 'key'
        try:
            if not (key.exists() and key.read_text() == self.key):
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
                key.write_text(self.key)
        except OSError as error:
            raise OSError(
                f'output: {self.target.parent} cannot be written to: {error}.'
            ) from error

    def _path(self, i: int) -> Path:
        """File of a result."""
        return self.folder / f'{i:06d}.npy'


@torch.no_grad()
def fingerprint(model: nn.Module) -> float:
    """Tell weights from others that go by the same name.

    Args:
        model: A model.

    Returns:
        The sum of its weights.
    """
    return sum(float(weight.double().sum()) for weight in model.parameters())

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Base of our datasets of chips."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from torchgeo.datasets import NonGeoDataset

from ..plotting import plot_image

__all__ = ('ChipDataset',)


class ChipDataset(NonGeoDataset):
    """A dataset of images in named bands.

    Attributes:
        bands: Names of the bands, in the order of the channels.
    """

    bands: Sequence[str]

    def plot(
        self,
        sample: dict[str, Any],
        show_titles: bool = True,
        suptitle: str | None = None,
    ) -> Figure:
        """Plot a sample in natural colors, see :func:`.plot_image`."""
        title = 'Image' if show_titles else None
        return plot_image(sample['image'], self.bands, title, suptitle)

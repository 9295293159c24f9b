# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Base of our datamodules: a share of the data for validation, or none."""

from typing import Any

from torch.utils.data import DataLoader
from torchgeo.datamodules import NonGeoDataModule

__all__ = ('ChipDataModule',)


class ChipDataModule(NonGeoDataModule):
    """A datamodule that sets *val_fraction* of its chips aside."""

    def __init__(
        self,
        dataset_class: type,
        batch_size: int,
        num_workers: int,
        val_fraction: float,
    ) -> None:
        """Initialize a new ChipDataModule instance.

        Args:
            dataset_class: Class of the datasets.
            batch_size: Size of each mini-batch.
            num_workers: Number of workers for parallel data loading.
            val_fraction: Share to set aside for validation, in [0, 1).

        Raises:
            ValueError: If *val_fraction* is out of range.
        """
        if not 0 <= val_fraction < 1:
            raise ValueError(
                f'val_fraction: {val_fraction} must be in [0, 1): 0 for no validation.'
            )
        super().__init__(dataset_class, batch_size, num_workers)
        self.val_fraction = val_fraction

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the validation loader, or an empty list if nothing was set aside."""
        if self.val_dataset is None:
            return []
        return super().val_dataloader()

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Lightning tasks."""

from .sigmae import SIGMAETask

__all__ = ('SIGMAETask',)

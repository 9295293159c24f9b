# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Lightning tasks."""

from .restore import restore_task
from .settings import BatchSpec, Guidance
from .sigmae import SIGMAETask

__all__ = ('BatchSpec', 'Guidance', 'SIGMAETask', 'restore_task')

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Lightning tasks."""

from .finetuning import FineTuning
from .sigmae import SIGMAETask

__all__ = ('FineTuning', 'SIGMAETask')

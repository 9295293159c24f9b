# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The version, in the one place that setup.cfg, the package and the docs read."""

__version__ = '0.1.0.dev0'

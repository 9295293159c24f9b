# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``python -m torchgeo_sigmae``: the command line."""

from .cli import main

__all__ = ('main',)

if __name__ == '__main__':
    main()

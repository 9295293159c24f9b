# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Command line: TorchGeo's own, with our classes known, plus our subcommands.

``torchgeo-sigmae fit --config x.yaml`` is ``torchgeo fit`` where ``SIGMAETask`` and our
encoders can be named; ``torchgeo-sigmae demo`` is ours.
"""

import argparse
import sys
from collections.abc import Sequence

from ._compat import TORCHGEO_VERSION
from ._version import __version__
from .cli import run_cli
from .demo import add_arguments as add_demo_arguments
from .demo import run_demo

__all__ = ('main',)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments; None for those of the process.
    """
    argv = list(sys.argv[1:] if args is None else args)
    if argv == ['--version']:
        print(f'torchgeo-sigmae {__version__}, TorchGeo {TORCHGEO_VERSION}')
        return
    if argv[:1] != ['demo']:
        run_cli(args)
        return
    parser = argparse.ArgumentParser(
        'torchgeo-sigmae demo',
        description='Pretrain a small encoder on synthetic Sentinel-2 chips, or on a '
        'folder of GeoTIFF scenes.',
    )
    add_demo_arguments(parser)
    run_demo(**vars(parser.parse_args(argv[1:])))


if __name__ == '__main__':
    main()

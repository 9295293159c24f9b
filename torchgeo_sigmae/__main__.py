# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Command line: TorchGeo's own, with our classes known, plus our subcommands.

``torchgeo-sigmae fit --config x.yaml`` is ``torchgeo fit`` where ``SIGMAETask`` and our
encoders can be named; its subcommands ``demo``, ``examples``, ``adapt-bands``,
``probe``, ``report``, ``saliency``, ``embed``, ``similar`` and ``reconstruct`` are
ours.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torchgeo.datasets import DatasetNotFoundError

from ._compat import TORCHGEO_VERSION
from ._version import __version__
from .cli import run_cli
from .demo import add_arguments as add_demo_arguments
from .demo import run_demo
from .evaluation.probe import add_arguments as add_probe_arguments
from .evaluation.probe import run_probe
from .example_files import copy_examples, list_examples
from .maps.arguments import (
    add_embed_arguments,
    add_reconstruct_arguments,
    add_saliency_arguments,
    add_similar_arguments,
    run_with_options,
)
from .maps.command import (
    map_embedding,
    map_reconstruction,
    map_saliency,
    map_similarity,
)
from .report import add_arguments as add_report_arguments
from .report import run_report
from .weights import adapt_bands
from .weights.matching import METHODS

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
    ours = {
        'adapt-bands': _adapt_bands,
        'demo': _demo,
        'embed': _maps(
            'embed',
            'Map the embeddings of patches of scenes of any size.',
            add_embed_arguments,
            map_embedding,
        ),
        'examples': _examples,
        'probe': _probe,
        'reconstruct': _maps(
            'reconstruct',
            'Mask scenes of any size and map the reconstruction of a model.',
            add_reconstruct_arguments,
            map_reconstruction,
        ),
        'report': _report,
        'saliency': _maps(
            'saliency',
            'Map spectral indices and the saliency of patches of scenes of any size, '
            'and outline salient regions.',
            add_saliency_arguments,
            map_saliency,
        ),
        'similar': _maps(
            'similar',
            'Map the similarity of the embeddings of patches to that at a coordinate.',
            add_similar_arguments,
            map_similarity,
        ),
    }
    if argv and argv[0] in ours:
        ours[argv[0]](argv[1:])
    else:
        run_cli(args)


def _demo(argv: Sequence[str]) -> None:
    """Run the subcommand of that name."""
    parser = argparse.ArgumentParser(
        'torchgeo-sigmae demo',
        description='Pretrain a small encoder on synthetic Sentinel-2 chips, or on a '
        'folder of GeoTIFF scenes.',
    )
    add_demo_arguments(parser)
    run_demo(**vars(parser.parse_args(argv)))


def _examples(argv: Sequence[str]) -> None:
    """Run the subcommand of that name."""
    parser = argparse.ArgumentParser(
        'torchgeo-sigmae examples',
        description='List the configurations and scripts that come with the package, '
        'or copy some to start from.',
    )
    parser.add_argument('names', nargs='*', help='what to copy; none lists them')
    parser.add_argument('-o', '--output', default='.', help='folder of the copies')
    arguments = parser.parse_args(argv)
    if arguments.names:
        written = _checked(parser, copy_examples, arguments.names, arguments.output)
        print(f'Wrote {", ".join(map(str, written))}.')
    else:
        for name, what in list_examples().items():
            print(f'{name}\n    {what}')


def _adapt_bands(argv: Sequence[str]) -> None:
    """Run the subcommand of that name."""
    parser = argparse.ArgumentParser(
        'torchgeo-sigmae adapt-bands',
        description='Write an encoder file for other bands, another sensor or several '
        'dates, for weights= of any task; says what becomes of every band.',
    )
    parser.add_argument('weights', help='an encoder file, or the name of a weight enum')
    parser.add_argument('--bands', nargs='+', required=True, help='for example B04 B03')
    parser.add_argument('-o', '--output', dest='path', required=True)
    parser.add_argument('--dates', type=int, default=1, help='2 for early fusion')
    parser.add_argument('--sensor', default='sentinel2', help='sensor of the bands')
    parser.add_argument('--method', choices=METHODS, default='auto')
    arguments = parser.parse_args(argv)
    _checked(parser, adapt_bands, **vars(arguments))
    print(f'Wrote {arguments.path}.')


def _probe(argv: Sequence[str]) -> None:
    """Run the subcommand of that name."""
    parser = argparse.ArgumentParser(
        'torchgeo-sigmae probe',
        description='Classify images by the features of encoders that are not trained, '
        'beside band statistics and the same encoder with random weights.',
    )
    add_probe_arguments(parser)
    arguments = parser.parse_args(argv)
    table = _checked(parser, run_probe, arguments)
    print(f'\nAccuracy in percent, mean and standard deviation over splits.\n\n{table}')
    print(f'\nWrote {arguments.output}.')


def _report(argv: Sequence[str]) -> None:
    """Run the subcommand of that name."""
    parser = argparse.ArgumentParser(
        'torchgeo-sigmae report',
        description='Measure and draw how well a pretrained model reconstructs scenes '
        'at several mask ratios.',
    )
    add_report_arguments(parser)
    arguments = parser.parse_args(argv)
    table = _checked(parser, run_report, arguments)
    print(f'\n{table}\n\nWrote report.md, report.json and report.png in '
          f'{arguments.output}.')  # fmt: skip


def _maps(
    name: str,
    description: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[..., list[Path]],
) -> Callable[[Sequence[str]], None]:
    """Make a subcommand that writes maps."""

    def command(argv: Sequence[str]) -> None:
        parser = argparse.ArgumentParser(
            f'torchgeo-sigmae {name}', description=description
        )
        add_arguments(parser)
        arguments = parser.parse_args(argv)
        written = _checked(parser, run_with_options, run, arguments)
        print(f'Wrote {", ".join(map(str, written))}.')

    return command


def _checked(
    parser: argparse.ArgumentParser, run: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Run a subcommand; say what is wrong with its arguments without a traceback."""
    try:
        return run(*args, **kwargs)
    except (ImportError, ValueError, OSError, DatasetNotFoundError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main()

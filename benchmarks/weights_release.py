# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Make the file of a member of SIGMAE_Weights of a training checkpoint.

    python -m benchmarks.weights_release CHECKPOINT sentinel2

Writes ``torchgeo_sigmae/weights/<model>_<name>-<first 8 of its SHA-256>.pth`` in half
precision, encoder and decoder, without optimizer and without the paths of the machine
it was trained on. Prints the entry for ``torchgeo_sigmae/weights/packaged.py``.
"""

import argparse
import hashlib
from pathlib import Path

from torchgeo_sigmae import SIGMAETask
from torchgeo_sigmae.weights import Weights, write_weights

FOLDER = Path(__file__).parents[1] / 'torchgeo_sigmae' / 'weights'


def main(arguments: argparse.Namespace) -> None:
    """Write the file."""
    task = SIGMAETask.load_from_checkpoint(
        arguments.checkpoint, map_location='cpu', weights_only=True
    )
    record = task.encoder_record
    for stage in record['trained_on']:
        if stage.get('root'):
            stage['root'] = Path(stage['root']).name
    part = arguments.folder / f'{arguments.name}.part'
    model = task.model
    weights = Weights(model.encoder.state_dict(), model.decoder.state_dict(), record)
    write_weights(weights, part, half=True)
    digest = hashlib.sha256(part.read_bytes()).hexdigest()
    file = part.with_name(f'{record["model"]}_{arguments.name}-{digest[:8]}.pth')
    part.rename(file)
    print(f'Wrote {file}, {file.stat().st_size / 1e6:.1f} MB.')
    print(f'url={file.name!r}\nsha256={digest!r}')
    for name in ('mean', 'std'):
        print(f'{name}: {[float(f"{value:.6g}") for value in record[name]]}')
    print(f'trained_on: {record["trained_on"]}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('name')
    parser.add_argument('--folder', type=Path, default=FOLDER)
    main(parser.parse_args())

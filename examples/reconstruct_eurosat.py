# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Draw reconstructions of unseen EuroSAT chips by a pretrained SIGMAETask.

Needs: a training checkpoint (examples/pretrain_eurosat.yaml writes one) and EuroSAT-MS
in TorchGeo's layout. Takes: seconds.

    python examples/reconstruct_eurosat.py CHECKPOINT EUROSAT_ROOT OUTPUT.png
"""

import argparse
from pathlib import Path

import torch
from torchgeo.datasets import EuroSAT

from torchgeo_sigmae import SIGMAETask


def main(checkpoint: Path, root: Path, output: Path) -> None:
    """Draw four validation chips, evenly spread over the classes.

    Args:
        checkpoint: Training checkpoint of a SIGMAETask.
        root: Folder of EuroSAT.
        output: The picture.
    """
    task = SIGMAETask.load_from_checkpoint(checkpoint, weights_only=True)
    chips = EuroSAT(root, split='val', bands=task.statistics.data_bands)
    places = torch.linspace(0, len(chips) - 1, 6).long()[1:-1].tolist()
    images = torch.stack([chips[i]['image'] for i in places])
    output.parent.mkdir(parents=True, exist_ok=True)
    task.plot(task.reconstruct(images)).savefig(output, dpi=60)
    print(f'Wrote {output}.')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', type=Path)
    parser.add_argument('root', type=Path)
    parser.add_argument('output', type=Path)
    main(**vars(parser.parse_args()))

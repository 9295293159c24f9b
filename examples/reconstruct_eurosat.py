# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Draw reconstructions of unseen EuroSAT chips.

Needs: EuroSAT-MS in TorchGeo's layout. Takes: seconds. WEIGHTS is
SIGMAE_Weights.SENTINEL2 or a training checkpoint, for example of
examples/pretrain_eurosat.yaml.

    python examples/reconstruct_eurosat.py WEIGHTS EUROSAT_ROOT OUTPUT.png
"""

import argparse
from pathlib import Path

import torch
from torchgeo.datasets import EuroSAT

from torchgeo_sigmae.tasks import restore_task


def main(weights: str, root: Path, output: Path) -> None:
    """Draw four validation chips, evenly spread over the classes.

    Args:
        weights: Weights with a decoder.
        root: Folder of EuroSAT.
        output: The picture.
    """
    task = restore_task(weights)
    chips = EuroSAT(root, split='val', bands=list(task.bands))
    places = torch.linspace(0, len(chips) - 1, 6).long()[1:-1].tolist()
    images = torch.stack([chips[i]['image'] for i in places])
    output.parent.mkdir(parents=True, exist_ok=True)
    task.plot(task.reconstruct(images)).savefig(output, dpi=60)
    print(f'Wrote {output}.')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('weights')
    parser.add_argument('root', type=Path)
    parser.add_argument('output', type=Path)
    main(**vars(parser.parse_args()))

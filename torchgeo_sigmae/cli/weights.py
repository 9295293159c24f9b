# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""``torchgeo-sigmae adapt-bands`` and ``publish``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

__all__ = ('adapt_bands', 'publish')


def adapt_bands(
    weights: str,
    *,
    bands: Sequence[str],
    output: Path,
    dates: int = 1,
    sensor: str = 'sentinel2',
    method: Literal['auto', 'name', 'zero'] = 'auto',
    source_bands: Sequence[str] | None = None,
) -> list[Path]:
    """Write an encoder file for other bands, another sensor or several dates.

    The file is for weights= of any task. A report says what becomes of every band.

    Args:
        weights: An encoder file, or the name of a weight enum.
        bands: Bands of one date, in order and any spelling, for example B04 B03 B02.
        output: The file to write.
        dates: Number of dates whose channels follow each other; 2 for early fusion.
        sensor: Sensor of the bands.
        method: auto matches bands by name and wavelength; name by name alone; zero is
            auto for known bands, and unknown ones (VV, DEM) start at zero.
        source_bands: Bands of the weights in order, where the file does not name them.
    """
    from ..weights import adapt_bands

    adapt_bands(weights, bands, output, dates, sensor, method, source_bands)
    return [output]


def publish(
    folder: Path, repo: str, *, private: bool = False, dry_run: bool = False
) -> list[Path]:
    """Upload an exported folder to the Hugging Face Hub.

    Log in before with hf auth login. Files of the same names are replaced there; other
    files of the folder are not uploaded.

    Args:
        folder: A folder made by SIGMAETask.export.
        repo: The repository, OWNER/NAME; created if it does not exist.
        private: Create the repository so that only its owner sees it.
        dry_run: Check the folder and list the files, without uploading.

    Returns:
        An empty list, since no file is written here.
    """
    from huggingface_hub import HfApi

    from ..weights import read_weights
    from ..weights.folder import FILES, is_export

    if not is_export(folder):
        raise FileNotFoundError(
            f'folder: {str(folder)!r} holds no config.json. Pass a folder made by '
            "SIGMAETask.export('folder')."
        )
    read_weights(folder)
    files = [folder / name for name in FILES if (folder / name).exists()]
    for file in files:
        print(f'{file}  {file.stat().st_size / 1e6:.3f} MB')
    if dry_run:
        print(f'Not uploaded to {repo}: --dry-run.')
        return []
    api = HfApi(library_name='torchgeo-sigmae')
    try:
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=repo, folder_path=folder, allow_patterns=list(FILES))
    # requests or httpx fail, by the version of huggingface_hub.
    except Exception as error:
        raise OSError(
            f'repo: {repo!r} cannot be written: {error} Log in with hf auth login, and '
            'check the name and the network.'
        ) from error
    print(f'Uploaded. Load it with timm.create_model({"hf-hub:" + repo!r}).')
    return []

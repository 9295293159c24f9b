# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The examples that come with the package: configurations and scripts to start from.

``torchgeo_sigmae/examples`` is a link to the folder ``examples`` of the repository, so
that the installed package has them, too.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ._files import atomic_path

__all__ = ('copy_examples', 'list_examples')

_FOLDER = Path(__file__).parent / 'examples'


def list_examples() -> dict[str, str]:
    """List the examples.

    Returns:
        The first sentence of every one, by its path within the examples.
    """
    found = _FOLDER.rglob('*')
    files = sorted(path for path in found if path.suffix in {'.py', '.yaml'})
    return {
        path.relative_to(_FOLDER).as_posix(): _first_sentence(path) for path in files
    }


def copy_examples(names: Sequence[str], folder: str | Path = '.') -> list[Path]:
    """Copy examples, to be changed.

    Args:
        names: Paths within the examples; ``.yaml`` may be left out.
        folder: Where to, made if missing.

    Returns:
        The copies.

    Raises:
        FileExistsError: If one is there already. Then none is copied.
        OSError: If one cannot be written; the message names it.
        ValueError: If there is no example of a name.
    """
    known, sources = list_examples(), {}
    for name in names:
        found = next((n for n in (name, f'{name}.yaml') if n in known), None)
        if found is None:
            raise ValueError(f'No example {name!r}. Known are: {", ".join(known)}.')
        sources[Path(folder) / Path(found).name] = _FOLDER / found
    for target in sources:
        if target.exists():
            raise FileExistsError(f'{target} exists already. Remove it, or choose '
                                  'another folder.')  # fmt: skip
    for target, source in sources.items():
        with atomic_path(target) as part:
            shutil.copyfile(source, part)
    return list(sources)


def _first_sentence(path: Path) -> str:
    """What an example does, from the comment or docstring it opens with."""
    words: list[str] = []
    for line in path.read_text(encoding='utf-8').splitlines():
        text = line.strip().lstrip('#').strip().strip('"')
        if not text or text.startswith(('Copyright', 'Licensed', '!')):
            if words:
                break
            continue
        words += text.split()
        if '. ' in f'{text} ':
            break
    return ' '.join(words).split('. ')[0].removeprefix('What: ').rstrip('.') + '.'

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What to do with files that cannot be read: stop, or go on and tell."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ('Skipped', 'check_on_error')

_CHOICES = ('raise', 'skip')


class Skipped:
    """Files that could not be read: how often each, told when it happens first.

    Attributes:
        on_error: ``'raise'`` to stop at the first, ``'skip'`` to go on.
        counts: How often each file was left out.
    """

    def __init__(self, on_error: str = 'raise') -> None:
        """Initialize a new Skipped instance.

        Args:
            on_error: ``'raise'`` or ``'skip'``.

        Raises:
            ValueError: If *on_error* is another word.
        """
        check_on_error(on_error)
        self.on_error = on_error
        self.counts: Counter[str] = Counter()

    @contextmanager
    def trying(self, path: str) -> Iterator[None]:
        """Try something with a file, whose errors are counted or passed on.

        Args:
            path: The file.

        Yields:
            Nothing.

        Raises:
            OSError: If the file cannot be read and *on_error* is ``'raise'``.
            ValueError: If it cannot be used and *on_error* is ``'raise'``.
        """
        try:
            yield
        except (OSError, ValueError) as error:
            if self.on_error == 'raise':
                raise
            self.add(path, str(error))

    def add(self, path: str, why: str) -> None:
        """Count a file, and warn if it is the first time.

        Args:
            path: The file.
            why: What happened, in a sentence that names it.

        Warns:
            UserWarning: If the file failed for the first time.
        """
        self.counts[path] += 1
        if self.counts[path] == 1:
            warnings.warn(f'Skipped: {why}', stacklevel=2)

    def report(self) -> str:
        """Tell what was left out.

        Returns:
            A sentence; empty if nothing was.
        """
        if not self.counts:
            return ''
        files = ', '.join(f'{path} ({n})' for path, n in self.counts.most_common())
        return (
            f'Skipped {self.counts.total()} scenes or chips of {len(self.counts)} '
            f'files that could not be read: {files}.'
        )


def check_on_error(on_error: str) -> None:
    """Refuse what is neither of the two.

    Args:
        on_error: What was passed.

    Raises:
        ValueError: If it is another word.
    """
    if on_error not in _CHOICES:
        raise ValueError(
            f"on_error: {on_error!r} is unknown. Use 'raise' to stop at a file that "
            "cannot be read, or 'skip' to leave it out and be told."
        )

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""What runs in the processes that tests kill."""

import multiprocessing
import os

from torchgeo_sigmae.__main__ import main


def fit(arguments: list[str]) -> None:
    """Run the command line as a shell would, in a process group of its own.

    Workers are forked, as they are by default on Linux up to Python 3.13: those of a
    fork server, which this process came from, would outlive a kill.
    """
    os.setpgrp()
    multiprocessing.set_start_method('fork', force=True)
    main(arguments)

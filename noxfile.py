# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""The tests on every supported combination of Python, TorchGeo and kornia.

    nox                                       all: hours, and the network
    nox -s 'tests(3.13-newest-newest)'        one: python-torchgeo-kornia
    nox -s 'tests(...)' -- tests/transforms   some tests only

Each combination gets a virtual environment of about 6 GB in ``.nox``. Interpreters of
pyenv are found where they are active: ``PYENV_VERSION=3.11.7:3.12.1:3.13.0 nox``.
"""

import nox

nox.options.default_venv_backend = 'uv|virtualenv'

TORCHGEO = {'0.8.1': 'torchgeo==0.8.1', '0.9': 'torchgeo==0.9.*', 'newest': 'torchgeo'}
KORNIA = {'0.8.3': 'kornia==0.8.3', 'newest': 'kornia'}

#: TorchGeo 0.9 needs Python 3.12: on 3.11, 0.8.1 is the newest.
VERSIONS = [
    (python, torchgeo, kornia)
    for python in ('3.11', '3.12', '3.13')
    for torchgeo in (TORCHGEO if python != '3.11' else ['0.8.1'])
    for kornia in KORNIA
]


@nox.session
@nox.parametrize(
    ['python', 'torchgeo', 'kornia'], VERSIONS, ids=['-'.join(v) for v in VERSIONS]
)
def tests(session: nox.Session, torchgeo: str, kornia: str) -> None:
    """Run the fast tests, or what is given after ``--``."""
    # torch 2.13.0: some indexes have a build for CPUs only, which fits no torchvision.
    session.install(
        *(
            '-e',
            '.[loggers,onnx,tests]',
            'torch!=2.13.0',
            TORCHGEO[torchgeo],
            KORNIA[kornia],
        )
    )
    session.run(
        *('pytest', '-n', 'auto', '--dist', 'worksteal', *session.posargs),
        env={'OMP_NUM_THREADS': '1'},
    )


@nox.session(python='3.13')
def terratorch(session: nox.Session) -> None:
    """Build our encoders by terratorch's factory, which needs TorchGeo below 0.10."""
    session.install('-e', '.[tests]', 'torch!=2.13.0', 'terratorch')
    session.run('pytest', 'tests/models/test_terratorch.py')

# Copyright (c) torchgeo-sigmae contributors. All rights reserved.
# Licensed under the MIT License.

"""Long trials of what must not fail: ``make soak``, or one by ``python -m soak.NAME``.

What they found stands in docs/reliability. Every trial prints its figures, keeps them
in OUTPUT/NAME.json and ends with status 1 if something does not hold; its fast part is
in the test suite.
"""

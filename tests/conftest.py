"""What all tests share: one thread for the numerical libraries, and one profile for the property-based tests."""

import os

# Before torch or numpy is imported: with two test processes on two cores, more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# CI draws the same examples every time, so that a red build is a change in the code; at home each run draws anew.
settings.register_profile("mnemosyne", deadline=None, max_examples=20, derandomize=bool(os.environ.get("CI")))
settings.load_profile("mnemosyne")

"""Fixtures of the op tests."""

import shutil

import pytest

from c2v_engine.kernels.dual_token_pool import extension_status


@pytest.fixture(scope="session")
def compiled():
    """Where a C++ compiler is, the op under test is the compiled one, or the test fails."""
    status = extension_status()
    if status.available:
        return
    if any(shutil.which(name) for name in ("c++", "g++", "clang++", "cl")):
        pytest.fail(f"the compiled ops are missing: {status.reason}")
    pytest.skip("no C++ compiler on the PATH to build the compiled ops with")

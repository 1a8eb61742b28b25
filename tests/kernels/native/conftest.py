"""Without a C++ compiler there is nothing to test here."""

from __future__ import annotations

import pytest

from weft_kernels.native.build import NativeBuildError, build


@pytest.fixture(scope="session", autouse=True)
def _is_built() -> None:
    try:
        build()
    except NativeBuildError as error:
        pytest.skip(f"the native kernels are not tested: {error}")

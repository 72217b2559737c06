"""One cache of compiled kernels for all tests of a run, empty at its start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from convtvm.library.cache import VARIABLE


@pytest.fixture(scope="session", autouse=True)
def cache_of_this_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield

"""Fewer resamples than a result has: what is tested does not depend on their number."""

import pytest

from args_fast.eval import intervals


@pytest.fixture(scope="session", autouse=True)
def _few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "RESAMPLES", 99)
        yield

"""The made-up leaderboard of the reports' tests."""

import pytest

from tests.report.made import made_in


@pytest.fixture
def root(tmp_path):
    return made_in(tmp_path)

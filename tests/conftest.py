"""What several test files share."""

from pathlib import Path

import pytest

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real public images beside the checkout; tests that use it run where it exists."""
    if not REAL_DATA.is_dir():
        pytest.skip("the folder of real images is not beside this checkout")
    return REAL_DATA

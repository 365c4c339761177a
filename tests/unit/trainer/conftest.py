"""Models that several test files read and none writes."""

import pytest

from rows import save_light_model


@pytest.fixture(scope="session")
def light_model(tmp_path_factory):
    return save_light_model(tmp_path_factory.mktemp("light") / "model")

"""No test touches the ledger of whoever runs it."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def state_of_the_session(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield

"""Files of an object store: what is done once for all calls on it."""

import pytest
from botocore import loaders

from data import files


def test_calls_on_a_store_after_the_first_read_no_descriptions_of_services(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not files.exists(files.join(bucket, "a"))
    monkeypatch.setattr(loaders.JSONFileLoader, "_load_file", lambda *_: pytest.fail("a description is read again"))
    files.write(files.join(bucket, "a"), b"a")
    assert files.names(bucket) == ["a"]
    assert files.read(files.join(bucket, "a")) == b"a"

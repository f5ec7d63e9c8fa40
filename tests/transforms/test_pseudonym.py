import os
import stat

import pyarrow as pa
import pytest
from cryptography.hazmat.primitives import cmac
from cryptography.hazmat.primitives.ciphers import algorithms

from data import errors
from transforms.ingest import pseudonym

KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch):
    monkeypatch.delenv(pseudonym.KEY_VARIABLE, raising=False)


def hashes(ids: list[str], key: bytes = KEY) -> list[bytes]:
    return pseudonym.pseudonymise(pa.array(ids, pa.string()), key).to_pylist()


def aes_cmac(text: str) -> bytes:
    mac = cmac.CMAC(algorithms.AES(KEY))
    mac.update(text.encode())
    return mac.finalize()


def test_hashes_are_aes_cmac():
    texts = ["alice", "böb", "alice", "", *("x" * length for length in (15, 16, 17, 31, 32, 33, 1000))]
    assert hashes(texts) == [aes_cmac(text) for text in texts]


def test_another_key_gives_other_hashes():
    assert set(hashes(["alice", "bob"])).isdisjoint(hashes(["alice", "bob"], bytes(32)))


def test_no_ids_give_no_hashes():
    assert hashes([]) == []


def test_the_raw_id_is_nowhere_in_the_output():
    array = pseudonym.pseudonymise(pa.array(["alice-the-user", "bob"]).slice(1), KEY)
    assert array.to_pylist() == [aes_cmac("bob")]
    assert all(b"alice" not in buffer.to_pybytes() for buffer in array.buffers() if buffer)


def test_a_written_key_reads_back_and_only_the_owner_may_read_it(tmp_path):
    path = tmp_path / "new" / "directory" / "user.key"
    old = os.umask(0)
    try:
        pseudonym.write_key(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert pseudonym.read_key(path) == bytes.fromhex(path.read_text())
    assert len(pseudonym.read_key(path)) == 32


def test_two_written_keys_differ(tmp_path):
    pseudonym.write_key(tmp_path / "a")
    pseudonym.write_key(tmp_path / "b")
    assert pseudonym.read_key(tmp_path / "a") != pseudonym.read_key(tmp_path / "b")


def test_a_key_is_never_overwritten(tmp_path):
    path = tmp_path / "user.key"
    path.write_text("precious")
    with pytest.raises(pseudonym.PseudonymKeyError, match=r"user\.key is there already: a new key would make every user"):
        pseudonym.write_key(path)
    assert path.read_text() == "precious"


def test_the_environment_wins_over_the_file(tmp_path, monkeypatch):
    pseudonym.write_key(tmp_path / "user.key")
    monkeypatch.setenv(pseudonym.KEY_VARIABLE, KEY.hex())
    assert pseudonym.read_key(tmp_path / "user.key") == KEY
    assert pseudonym.read_key(None) == KEY


def test_without_file_and_variable_both_are_named():
    with pytest.raises(pseudonym.PseudonymKeyError, match=r"set privacy\.key_file or the variable SOTTOVOCE_PSEUDONYM_KEY"):
        pseudonym.read_key(None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"ab" * 31, "must be 64 hex digits", id="too short"),
        pytest.param(b"ab" * 33, "must be 64 hex digits", id="too long"),
        pytest.param(b"xy" * 32, "must be 64 hex digits", id="not hex"),
        pytest.param(b"", "must be 64 hex digits", id="empty"),
        pytest.param(b"ab\xff" * 32, r"can't be read \(not text\)\.", id="not text"),
    ],
)
def test_an_unusable_key_file_is_named_and_never_shown(tmp_path, content, message):
    path = tmp_path / "user.key"
    path.write_bytes(content)
    with pytest.raises(pseudonym.PseudonymKeyError, match=rf"privacy\.key_file = .*user\.key: {message}") as caught:
        pseudonym.read_key(path)
    assert all(shown not in str(caught.value) for shown in ("abab", "xyxy"))
    assert caught.value.exit_code == errors.BadInputError.exit_code == 3


def test_a_missing_key_file_is_named(tmp_path):
    with pytest.raises(pseudonym.PseudonymKeyError, match=r"user\.key: can't be read \(No such file or directory\)"):
        pseudonym.read_key(tmp_path / "user.key")


@pytest.mark.parametrize("text", ["", "abab" * 5, "xy" * 32], ids=["empty", "too short", "not hex"])
def test_an_unusable_variable_is_named_and_never_shown(tmp_path, monkeypatch, text):
    pseudonym.write_key(tmp_path / "user.key")
    monkeypatch.setenv(pseudonym.KEY_VARIABLE, text)
    with pytest.raises(pseudonym.PseudonymKeyError, match=r"^SOTTOVOCE_PSEUDONYM_KEY: must be 64 hex digits") as caught:
        pseudonym.read_key(tmp_path / "user.key")
    assert not text or text not in str(caught.value)

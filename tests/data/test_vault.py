"""Encryption at rest: only the keys open it, whatever was done to it shows, and no key is ever shown."""

import pickle
import stat

import pytest

from data import files, letters, vault
from transforms.ingest import pseudonym

OLD, NEW = vault.Vault((bytes(32),)), vault.Vault((b"n" * 32, bytes(32)))
STRANGER = vault.Vault((b"s" * 32,))


@pytest.mark.parametrize("content", [b"", b"ARROW1", bytes(100_000)])
def test_what_is_encrypted_comes_back_and_shows_nothing(content):
    sealed = OLD.seal(content)
    assert OLD.unseal(sealed, "file") == content
    assert NEW.unseal(sealed, "file") == content
    assert not content or content not in sealed
    assert sealed != OLD.seal(content)


@pytest.mark.parametrize("line", ["", '{"raw": "ann, Zo\u00eb"}', "x" * 5000])
def test_a_line_stays_a_line(line):
    sealed = OLD.seal_line(line)
    assert NEW.unseal_line(sealed, "file") == line
    assert "\n" not in sealed
    assert "ann," not in sealed


def test_without_keys_all_stays_as_it_is_and_what_was_plain_is_read_with_keys():
    plain = vault.read(None)
    assert (plain.seal(b"content"), plain.seal_line("line")) == (b"content", "line")
    assert (NEW.unseal(b"content", "file"), NEW.unseal_line("line", "file")) == (b"content", "line")


@pytest.mark.parametrize(
    ("keys", "why"), [(STRANGER, "under a key that is not in privacy"), (vault.Vault(), "and there is no privacy")]
)
def test_another_key_or_none_is_refused_by_name(keys, why):
    for unseal in (lambda: keys.unseal(OLD.seal(b"x"), "a.arrow"), lambda: keys.unseal_line(OLD.seal_line("x"), "a.arrow")):
        with pytest.raises(vault.VaultError, match=f"a.arrow is encrypted, {why}"):
            unseal()


def test_any_change_shows():
    sealed = OLD.seal(b"content")
    for at in range(len(vault.MAGIC) + 8, len(sealed)):
        with pytest.raises(vault.DamagedError, match="damaged"):
            OLD.unseal(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], "file")
    for cut in (sealed[:-1], sealed[: len(vault.MAGIC) + 12]):
        with pytest.raises(vault.DamagedError):
            OLD.unseal(cut, "file")
    with pytest.raises(vault.DamagedError):
        OLD.unseal_line(OLD.seal_line("x") + "%", "file")


@pytest.mark.parametrize(("keys", "is_current"), [(OLD, True), (NEW, False), (STRANGER, False), (vault.Vault(), False)])
def test_what_is_under_the_first_key_is_known(keys, is_current):
    # Lines of all lengths, so that base64 ends in each way.
    assert [keys.is_current_line(OLD.seal_line("x" * length)) for length in range(20)] == [is_current] * 20
    assert keys.is_current(OLD.seal(b"x")) == is_current
    assert keys.is_current(b"x") == keys.is_current_line("x") == (not keys.keys)


def test_a_new_key_comes_first_and_the_old_ones_stay(tmp_path):
    path = tmp_path / "secrets" / "encryption.key"
    vault.add_key(path)
    sealed = vault.read(path).seal(b"x")
    vault.add_key(path)
    both = vault.read(path)
    assert (len(both.keys), both.unseal(sealed, "file"), both.is_current(sealed)) == (2, b"x", False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "aes256:abc", "ab" * 32, "aes256:" + "g" * 64, "\xff"])
def test_a_file_that_is_not_of_keys_is_refused_and_stays(tmp_path, text):
    path = tmp_path / "key"
    path.write_bytes(text.encode("latin-1"))
    for use in (vault.read, vault.add_key):
        with pytest.raises(vault.VaultError, match=r"encryption_key_file = .*key") as refused:
            use(path)
        assert not text.isascii() or not text or text not in str(refused.value)
    assert path.read_bytes() == text.encode("latin-1")


def test_neither_kind_of_key_is_taken_for_the_other(tmp_path):
    pseudonym.write_key(tmp_path / "pseudonym")
    vault.add_key(tmp_path / "encryption")
    with pytest.raises(vault.VaultError):
        vault.read(tmp_path / "pseudonym")
    with pytest.raises(pseudonym.PseudonymKeyError):
        pseudonym.read_key(tmp_path / "encryption")


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(vault.VaultError, match=r"can't be read \(No such file.*`sottovoce key .*none --encryption` makes one"):
        vault.read(tmp_path / "none")


def test_its_text_shows_no_key_and_workers_get_it_whole():
    keys = vault.Vault((b"secret-" * 4,))
    assert "secret" not in f"{keys} {keys!r}"
    assert pickle.loads(pickle.dumps(keys)) == keys


# Files of letters


def write(path, keys: vault.Vault, *lines: str) -> None:
    path.write_text("".join(f"{keys.seal_line(line)}\n" for line in lines))


def test_letters_are_encrypted_anew_once_and_those_to_drop_are_dropped(tmp_path):
    path = tmp_path / "letters"
    write(path, OLD, "ann", "bob")
    with path.open("a") as file:
        file.write("plain\n")
    assert letters.rewrite(path, NEW) == (3, 0)
    assert letters.rewrite(path, NEW) == (0, 0)
    assert letters.rewrite(path, NEW, lambda letter: letter != "bob") == (0, 1)
    assert list(letters.read(path, NEW)) == ["ann", "plain"]
    with pytest.raises(vault.VaultError, match="under a key that is not in"):
        list(letters.read(path, OLD))


def test_letters_that_are_as_they_should_be_are_not_written(tmp_path):
    path = tmp_path / "letters"
    write(path, NEW, "ann")
    before = path.stat().st_mtime_ns
    assert letters.rewrite(path, NEW) == (0, 0)
    assert path.stat().st_mtime_ns == before


def test_a_key_that_is_missing_leaves_letters_as_they_are(tmp_path):
    path = tmp_path / "letters"
    write(path, OLD, "ann")
    before = path.read_bytes()
    with pytest.raises(vault.VaultError):
        letters.rewrite(path, STRANGER)
    assert path.read_bytes() == before


def test_letters_in_an_object_store_are_rewritten_too(bucket):
    name = files.join(bucket, "letters")
    files.write(name, f"{OLD.seal_line('ann')}\nbob\n".encode())
    assert letters.rewrite(name, NEW, lambda letter: letter != "bob") == (1, 1)
    assert list(letters.read(name, NEW)) == ["ann"]

"""The budget command: what may be spent is written down, raised for all to see, and checked."""

import pathlib

import pytest

from data import ledger
from pipelines import cli, config, contract, release
from tests.pipelines.example import load, view, write_job

EVENTS = [view("ann", "a", "1"), view("bob", "b", "2")]


@pytest.fixture
def path(tmp_path) -> pathlib.Path:
    return write_job(tmp_path, EVENTS, epsilon=1.0)


def test_the_same_contract_again_changes_nothing_and_another_is_refused(path):
    for _ in range(2):
        assert cli.main(["budget", "init", str(path)]) == 0
    assert cli.main(["budget", "init", str(path), "--privacy.total_epsilon=2"]) == 7
    assert cli.main(["budget", "grant", str(path), "--epsilon=2", "--why=a test"]) == 0
    assert cli.main(["budget", "init", str(path)]) == 0
    assert contract.open_ledger(load(path)).contract("test").total_epsilon == 2


def test_one_source_has_one_name_however_it_is_spelt(path):
    load(path)
    other = ["--job.data_set=other", "--source.paths", f'["{path.parent}/./events.csv"]']
    assert cli.main(["budget", "init", str(path), *other]) == 7


def test_what_is_left_is_shown(path, capsys):
    load(path)
    assert list(contract.show(load(path)))[-1] == "nothing is spent yet"
    release.run(load(path, "--privacy.total_epsilon=0.5"))
    capsys.readouterr()
    assert cli.main(["budget", "show", str(path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("test: epsilon 1, delta 1e-06 for each user and period (lifetime)")
    assert second == "lifetime: 1 release(s) spent epsilon 0.5 of 1; room for 2 more like the last one"


def test_a_grant_has_room_for_private_selection_too(tmp_path):
    path = write_job(tmp_path, EVENTS, epsilon=1.0, catalogue=False)
    release.run(load(path))
    with pytest.raises(ledger.BudgetRefusedError):
        release.run(load(path), allow_another=True)
    contract.grant(load(path), 2.0, 2e-6, "a test")
    assert "room for 1 more" in list(contract.show(load(path)))[-1]
    release.run(load(path), allow_another=True)


def test_history_tells_every_change_and_its_reason(path, capsys):
    release.run(load(path))
    contract.grant(load(path), 2.0, None, "the board, 12 May")
    contract.close(load(path), "lifetime")
    capsys.readouterr()
    assert cli.main(["budget", "history", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["init", "reserved", "published", "grant", "close"]
    assert "the board, 12 May" in lines[3]


def test_verify_prints_the_head_and_checks_a_noted_one(path, capsys):
    release.run(load(path))
    capsys.readouterr()
    assert cli.main(["budget", "verify", str(path)]) == 0
    head = capsys.readouterr().out.strip()
    assert cli.main(["budget", "verify", str(path), "--head", head]) == 0
    assert cli.main(["budget", "verify", str(path), "--head", "f" * 64]) == 3


@pytest.mark.parametrize(("said", "was"), [("noise_multiplier", 0.1), ("delta", 0.5)])
def test_verify_finds_a_store_that_says_other_noise_than_was_charged(path, said, was):
    job, release_id = load(path), release.run(load(path))
    manifest = job.job.store / "releases" / release_id / "manifest.json"
    text = manifest.read_text().replace(f'"{said}": ', f'"{said}": {was}, "was": ', 1)
    manifest.write_text(text)
    with pytest.raises(ledger.LedgerError, match="says other noise than was charged"):
        contract.verify(job, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["close", "--period=lifetme"],
        ["grant", "--epsilon=-1", "--why=x"],
        ["grant", "--epsilon=2", "--delta=1", "--why=x"],
        ["show", "--privacy.ledger=sqlite:///{store}/ledger.sqlite"],
        ["show", "--runner=X"],
    ],
    ids=["no such period", "epsilon", "delta", "ledger in the store", "Beam's flag"],
)
def test_what_makes_no_sense_exits_with_2(path, arguments):
    store = load(path).job.store
    action, *flags = [word.format(store=store) for word in arguments]
    assert cli.main(["budget", action, str(path), *flags]) == 2


def test_a_closed_period_is_closed(path):
    job = load(path)
    contract.close(job, "lifetime")
    with pytest.raises(ledger.BudgetRefusedError, match="lifetime is closed"):
        release.run(job)
    assert list(contract.show(job))[-2:] == [
        "lifetime: 0 release(s) spent epsilon 0 of 1; closed",
        "nothing is spent yet",
    ]


def test_without_a_contract_there_is_nothing_to_show(path):
    assert cli.main(["budget", "show", str(path)]) == 7
    assert isinstance(config.load(path)[0], config.Job)

"""`sottovoce audit`: canaries in a whole job, on data that are nobody's secret; and that noise left out is seen."""

import json
import pathlib
import re

import numpy as np
import pyarrow as pa
import pytest

from data import errors
from pipelines import attack, audit, cli, evaluate, plan, source
from tests.pipelines import example
from tests.pipelines.example import view
from transforms.privacy import noise

PLAIN = ["--model.kind=hybrid", "--model.signal=low-rank", "--cooccurrence.max_items=70"]
PEOPLE = [view(f"user{user}", item, f"{user}{item}") for user in range(60) for item in ("abcdefgh"[user % 8], "a", "b")]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> pathlib.Path:
    """The job file of a synthetic world, nothing of which was released."""
    return example.synthetic_world(tmp_path_factory.mktemp("world") / "world", users=200, items=100)


def command(world: pathlib.Path, *flags: str) -> list[str]:
    return ["audit", str(world), "--canaries", "40", "--epsilon", "2", *PLAIN, *flags]


def test_no_output_shows_more_than_its_claim_and_all_do_without_noise(capsys, world):
    """Of 40 guesses 39 would have to be right where 58 % of them are: a kept promise fails with probability below 1e-6.

    For scores and counts alone, whose claims are small, 32 are enough, which happens once in a few thousand times: then the
    command ends with 9, as it should. Without noise all are right: 40 canaries' scores of 70 items have one solution.
    """
    code = cli.main(command(world, "--format", "json"))
    found = json.loads(capsys.readouterr().out)
    assert (found["data"], found["total_epsilon"], found["canaries"], found["runs"]) == ("synthetic", 2, 40, 1)
    kept, broken = (found["bounds"][case] for case in (audit.AS_PROMISED, audit.WITHOUT_NOISE))
    assert list(kept) == list(broken) == ["selection", "counts", "cooccurrence", "model", "all outputs"]
    unlucky = {name for name, bound in kept.items() if bound["lower"] > bound["claimed"]}
    assert unlucky <= {"selection", "counts"}
    assert code == (9 if unlucky else 0)
    assert {name: bound["lower"] > bound["claimed"] for name, bound in broken.items()} == dict.fromkeys(broken, True)
    assert kept["all outputs"]["claimed"] == pytest.approx(2, abs=1e-6)
    # The model rests on scores and pairs alone.
    assert kept["selection"]["claimed"] < kept["cooccurrence"]["claimed"] == kept["model"]["claimed"] < 2


def test_noise_that_is_left_out_ends_with_9(capsys, world, monkeypatch):
    """Of scores and pairs; counts have theirs still."""
    monkeypatch.setattr(noise, "draw", lambda drawn_by, size, noise_sd, grid_bits: np.zeros(size, np.int64))
    assert cli.main(command(world)) == audit.BrokenPromiseError.exit_code == 9
    shown = capsys.readouterr()
    assert re.search(r"audit: .*cooccurrence.*: epsilon is above what is claimed, with 95 %", shown.err)
    # What was found is shown before.
    assert shown.out.splitlines()[3].startswith("output")


def test_shows_a_table_and_what_few_canaries_can_not_show_and_keeps_nothing(capsys, world):
    assert cli.main(["audit", str(world), "--canaries", "20", "--runs", "2", *PLAIN]) == 0
    head, note, _, names, *rows = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"synthetic-7 \(synthetic data\): claimed epsilon 8, delta 1e-06; 2 x 20 canaries of \d+ items each", head
    )
    assert re.search(r"right guesses alone would show 2\.\d\d \(12\d{3} canaries show the claim\)", note)
    assert re.split(r"\s{2,}", names) == [
        "output", "claimed", "typical", "as promised", "guesses right", "without noise", "guesses right",
    ]  # fmt: skip
    assert len(rows) == 5
    assert all(re.search(r"  \d\.\d\d  .*\d+ of \d+", row) for row in rows)
    example.assert_nothing_is_kept(world)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--evaluation.data", "private"], 'audit: evaluation.data = "private" .*must know every event'),
        (["--window.size", "1w"], "audit: window.size = '1w': .* say --window.size all"),
        (["--canaries", "4001"], r"audit: --canaries 4001: at most 4000 in a run\. Take more runs"),
        (["--epsilon", "20"], r"audit: --epsilon 20: 1048576 right guesses don't exceed .* smaller one"),
    ],
    ids=["private", "windows", "too many canaries", "an epsilon that nobody can show"],
)
def test_refuses_with_2_and_reads_nothing(capsys, world, monkeypatch, flags, message):
    monkeypatch.setattr(source, "find", lambda *_: pytest.fail("must not be read"))
    assert cli.main(["audit", str(world), *flags]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(message, shown.err)


def test_too_few_items_make_no_canaries(capsys, tmp_path):
    path = example.write_job(tmp_path, [view("ann", "a"), view("bob", "b")])
    assert cli.main(["audit", str(path), "--evaluation.data", "public"]) == 3
    assert "audit: 4 items are kept, and canaries need at least 8" in capsys.readouterr().err


@pytest.mark.parametrize("catalogue", [True, False], ids=["with a catalogue", "without"])
def test_terms_add_up_to_the_exact_sums(tmp_path, catalogue):
    """What the attacker takes a user to add is what the job's own steps add, bounds and all."""
    lines = [*PEOPLE, *(view("much", item, kind=kind) for item in "abcd" for kind in ("view", "view", "view", "buy"))]
    job = example.load(example.write_job(tmp_path, lines, catalogue=catalogue), "--evaluation.data=public")
    public = source.load_catalogue(job)
    public_ids = source.ids_of(public)
    planned = evaluate.without_noise(plan.plan(job, public_ids))
    batches = evaluate.read(job, public_ids)
    rows = evaluate.contributions(job, batches)
    released = attack.release(job, planned, rows, public)
    ids = pa.array(rows["privacy_id"].combine_chunks().dictionary.to_pylist()[::-1], pa.binary(16))
    own = attack.terms(planned, released.tables.items, rows, ids)
    sums = attack.exact(planned, released.tables.items, rows)
    for term, total in ((own.scores, sums.scores), (own.users, sums.users), (own.events, sums.events)):
        np.testing.assert_allclose(np.asarray(term.sum(0)).ravel(), total, atol=1e-6)
    np.testing.assert_allclose((own.rows.T @ own.rows).toarray(), sums.matrix, atol=1e-9)
    # Without noise that anybody could see, the same was released.
    for ours, theirs in zip(attack.noisy(planned, released), sums, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.1)
    assert own.users.sum(1).max() == 3


def test_canaries_that_are_too_alike_are_no_audit():
    control = audit.Bound(2.0, 1.0, 100, 60, 0.5)
    fine = dict.fromkeys(audit.OUTPUTS, control)
    report = audit.Report({"most": 5.0}, {audit.AS_PROMISED: fine, audit.WITHOUT_NOISE: fine})
    with pytest.raises(audit.BrokenPromiseError, match=r"without noise .* 0\.50 alone, of 2 claimed: .*--canaries"):
        audit.check(report)
    audit.check(report._replace(facts={"most": 1.0}))
    assert issubclass(audit.BrokenPromiseError, errors.UserError)

"""What is left of a user outside the released tables: `sottovoce forget` deletes it, and sees to it that nothing more comes.

What it can't tell apart it deletes whole. Said is how much was done, never to whom.
"""

from collections.abc import Collection

from data import files, letters, store, vault
from pipelines import config, release, source
from transforms.ingest import mentions

_STAYS = """\
stays: the pseudonym in the contribution book (and a count), until the period closes: without it a return would bring a fresh
  budget, and the user's loss would be bounded by nothing
stays: released tables, models and databases. They are no copy of anybody's events: what one user may have changed in them is
  hidden by their noise, which is the promise (docs/privacy.md); drawing them anew would charge everybody else once more
not reached: {left}"""
_YOURS = "backups; logs of your own; the stores of other jobs of this data set (run it for each)"


def run(job: config.Job, privacy_ids: Collection[str]) -> list[str]:
    """Opts users out and deletes their raw traces; returns what was done, what stays and why, and what is left to others.

    The same again changes nothing, and whether anybody knew an id makes no difference.

    Raises:
        config.JobFileError: no id is given, or the job has no list of opt-outs that can be added to.
        errors.AlreadyReleasedError: a run, or a stream, has the job in hand.
        kafka_client.KafkaError, vault.VaultError: the consent topic, or a file of letters, can't be used.
    """
    # As in the file of opt-outs: an id may have spaces around it, and so may a line.
    ids = {form for id_ in privacy_ids for form in (id_, id_.strip()) if form.strip()}
    if not ids:
        raise config.JobFileError("forget: no id is given; give one a line, by --ids FILE or on standard input.")
    keys = vault.read(job.privacy.encryption_key_file)
    is_text = job.source.kind != "kafka" or job.source.format == "json"
    names = mentions.Mentions(ids, job.source.columns["privacy_id"], is_text)
    with release.alone(job) as (kept, waiting):
        # First: whatever happens then, no event of theirs counts any more.
        added = source.opt_out(job, ids)
        kept.delete_drafts()
        dropped = [letters.rewrite(name, keys, lambda letter: not names(letter))[1] for name in kept.letter_files().values()]
        n_files = len(files.names(kept.operator("spill")))
        files.delete_directory(kept.operator("spill"))
        if waiting is not None:
            n_files += sum(1 for path in waiting.glob("*/**/*") if path.is_file())
            store.clear(waiting)
    left = "your source files" if job.source.kind != "kafka" else "the broker's topics, until their retention"
    return [
        f"opted out: {added} of {len(ids)} id(s); the others were before. Events from now on are dropped",
        f"deleted: {sum(dropped)} dead letter(s), and {n_files} file(s) of runs and streams, whole: a stream begins anew from "
        "its topic, and its checkpoints to come are without the user",
        *_STAYS.format(left=f"{left}; {_YOURS}").splitlines(),
    ]

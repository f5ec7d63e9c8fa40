"""The training job: the newest release's tables in, a model's tables out. It reads no events."""

import datetime as dt
import importlib.metadata
import logging
import math
import time
from pathlib import Path

from data import errors, store, tables
from models import training
from pipelines import config, contract, source
from transforms.privacy import budget

log = logging.getLogger(__name__)


def run_if_due(job: config.Job, release_id: str) -> None:
    """Trains on a release, unless there is a model that is younger than model.retrain."""
    model = store.Store(job.job.store).latest_model()
    age = dt.timedelta.max if model is None else dt.timedelta(seconds=time.time() - model.stat().st_mtime)
    if age >= job.model.lasts:
        run(job, release_id)


def run(job: config.Job, release_id: str | None = None) -> Path:
    """Trains on a release, without a name on the newest; returns the model's directory.

    Raises:
        errors.NothingThereError: there is no release yet.
    """
    kept = store.Store(job.job.store)
    published = kept.published(contract.open_ledger(job).releases(job.job.data_set))
    if not published:
        raise errors.NothingThereError(f"{kept.path} holds no release yet: `sottovoce release` makes one.")
    [manifest] = [each for each in published if each["release_id"] == release_id] or published[-1:]
    log.info("training on release %s", manifest["release_id"])
    [mechanism] = [m for m in manifest["mechanisms"] if m["name"] == budget.COOCCURRENCE]
    items = kept.read_table(manifest, "items", tables.ITEMS)
    if not items.num_rows:
        log.warning(
            "no item passed the selection's threshold: the model is empty. More users, a larger privacy.total_epsilon or a "
            "public [catalogue] let items through"
        )
    settings = training.Settings(**job.model.model_dump(exclude={"retrain"}))
    trained = training.train(
        items,
        kept.read_table(manifest, "item_pairs", tables.ITEM_PAIRS),
        mechanism["noise_sd"] / math.sqrt(2),
        source.load_catalogue(job),
        settings,
    )
    model = kept.add_model(
        trained._asdict(),
        {
            "created": manifest["created"],
            "release_ids": [manifest["release_id"]],
            "model": "lightfm-hybrid",
            "rank": len(trained.embeddings["embedding"][0]) if trained.embeddings.num_rows else 0,
            "epochs": settings.epochs,
            "items": trained.embeddings.num_rows,
            "parameters": job.model.model_dump(exclude={"retrain"}),
            "code_version": importlib.metadata.version("sottovoce"),
        },
    )
    log.info("trained model %s: %d items", model.name, trained.embeddings.num_rows)
    return model


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("train")

"""The training job: the newest release's tables in, a model's tables out. It reads no events."""

import datetime as dt
import importlib.metadata
import logging
import math
from typing import Any

from data import errors, store, tables
from models import training
from pipelines import config, contract, source
from transforms.privacy import budget

log = logging.getLogger(__name__)


def run_if_due(job: config.Job, release_id: str | None) -> None:
    """Trains on a release that was just made or read back, unless there is a model that is younger than model.retrain.

    Args:
        release_id: None: there is none. Then the newest one is trained on, if it has no model.
    """
    kept = store.Store(job.job.store)
    newest, model = _newest(job, kept), kept.latest_model()
    if newest is None:
        return
    if model is not None:
        # An earlier version's model doesn't tell its age: it is old.
        trained_at = dt.datetime.fromisoformat(model.manifest.get("trained_at", "2000-01-01T00:00:00Z"))
        age = dt.datetime.now(dt.UTC) - trained_at
        if age < job.model.lasts or (release_id is None and newest["release_id"] in model.manifest["release_ids"]):
            return
    run(job, release_id)


def _newest(job: config.Job, kept: store.Store) -> dict[str, Any] | None:
    """The manifest of the newest release that a model can be trained on."""
    found = kept.newest(contract.open_ledger(job).releases(job.job.data_set), budget.COOCCURRENCE)
    return found[0] if found else None


def run(job: config.Job, release_id: str | None = None) -> store.Model:
    """Trains on a release, without a name on the newest; returns the model.

    Raises:
        errors.NothingThereError: there is no release yet.
    """
    kept = store.Store(job.job.store)
    manifest = _newest(job, kept) if release_id is None else kept.manifest(release_id)
    if manifest is None:
        raise errors.NothingThereError(f"{kept.place} holds no release yet: `sottovoce release` makes one.")
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
        job.diversity.settings,
    )
    model = kept.add_model(
        trained._asdict(),
        {
            "created": manifest["created"],
            "trained_at": dt.datetime.now(dt.UTC).isoformat(),
            "release_ids": [manifest["release_id"]],
            "model": settings.kind,
            "rank": len(trained.embeddings["embedding"][0]) if trained.embeddings.num_rows else 0,
            "epochs": settings.epochs,
            "items": trained.embeddings.num_rows,
            "parameters": {**job.model.model_dump(exclude={"retrain"}), "diversity": job.diversity.model_dump()},
            "code_version": importlib.metadata.version("sottovoce"),
        },
    )
    log.info("trained model %d: %d items", model.number, trained.embeddings.num_rows)
    return model


if __name__ == "__main__":
    from pipelines import cli

    cli.main_of("train")

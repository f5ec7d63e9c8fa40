"""The training job: the newest release's tables in, a model's tables out. It reads no events."""

import datetime as dt
import importlib.metadata
import logging
import math
from typing import Any

from data import errors, store, tables
from data.catalogue import Catalogue
from models import training, windows
from pipelines import config, contract, source, versions
from transforms.privacy import budget

log = logging.getLogger(__name__)


def run_if_due(job: config.Job, release_id: str | None) -> None:
    """Trains on a release that was just made or read back, unless there is a model that is younger than model.retrain.

    Args:
        release_id: None: there is none. Then the newest one is trained on, if it has no model.
    """
    kept = store.Store(job.job.store)
    newest, model = newest_release(job), kept.latest_model()
    if newest is None:
        return
    if model is not None:
        # An earlier version's model doesn't tell its age: it is old.
        trained_at = dt.datetime.fromisoformat(model.manifest.get("trained_at", "2000-01-01T00:00:00Z"))
        age = dt.datetime.now(dt.UTC) - trained_at
        if age < job.model.lasts or (release_id is None and newest["release_id"] in model.manifest["release_ids"]):
            return
    run(job, release_id or newest["release_id"])


def newest_release(job: config.Job) -> dict[str, Any] | None:
    """Returns the manifest of the newest release that a model can be trained on; None: there is none."""
    found = store.Store(job.job.store).newest(contract.open_ledger(job).releases(job.job.data_set), budget.COOCCURRENCE)
    return found[0] if found else None


def noise_sd(manifest: dict[str, Any]) -> float:
    """Returns the standard deviation of the noise in a release's co-occurrences, off the diagonal."""
    [mechanism] = [m for m in manifest["mechanisms"] if m["name"] == budget.COOCCURRENCE]
    return float(mechanism["noise_sd"]) / math.sqrt(2)


def read(kept: store.Store, manifest: dict[str, Any], catalogue: Catalogue | None) -> training.Released:
    """Returns what models are trained on of a release that is here."""
    items, pairs = (
        kept.read_table(manifest, name, schema) for name, schema in (("items", tables.ITEMS), ("item_pairs", tables.ITEM_PAIRS))
    )
    return training.read(items, pairs, noise_sd(manifest), catalogue)


def run(job: config.Job, release_id: str | None = None) -> store.Model:
    """Trains on a release, without a name on the newest, and on those of the windows before, as many as model.windows says.

    Returns:
        The model. It starts from the one that people are served, and its vectors are turned to that one's.

    Raises:
        errors.NothingThereError: there is no release yet.
    """
    kept = store.Store(job.job.store)
    manifest = newest_release(job) if release_id is None else kept.manifest(release_id)
    if manifest is None:
        raise errors.NothingThereError(f"{kept.place} holds no release yet: `sottovoce release` makes one.")
    releases = contract.open_ledger(job).releases(job.job.data_set)
    older = [release for release in releases if release["window_end"] < manifest["window_end"]]
    earlier = kept.newest(older, budget.COOCCURRENCE, job.model.windows - 1)
    log.info("training on release %s%s", manifest["release_id"], f" and {len(earlier)} before it" if earlier else "")
    catalogue, shown = source.load_catalogue(job), versions.model(job)
    before = None if shown is None else kept.model(shown)
    released = read(kept, manifest, catalogue)
    if earlier:
        released = windows.combine(released, (read(kept, each, catalogue) for each in reversed(earlier)), job.model.decay)
    if not len(released.ids):
        log.warning(
            "no item passed the selection's threshold: the model is empty. More users, a larger privacy.total_epsilon or a "
            "public [catalogue] let items through"
        )
    settings = job.model.settings
    trained = training.train(
        released,
        catalogue,
        settings,
        job.diversity.settings,
        None if before is None else before.read_table("embeddings", tables.EMBEDDINGS),
    )
    model = kept.add_model(
        trained.tables(),
        {
            "created": manifest["created"],
            "trained_at": dt.datetime.now(dt.UTC).isoformat(),
            "release_ids": [each["release_id"] for each in [*earlier, manifest]],
            "model": trained.kind,
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

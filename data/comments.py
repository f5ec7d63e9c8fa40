"""What the published database says of itself: a comment for every table, column and macro.

Keys are the database's own names; `{protected}` becomes the unit of protection of the releases in it.
"""

from collections.abc import Mapping

TABLES: Mapping[str, str] = {
    "items": "Items that can be recommended: the public catalogue, or the items that a private release made known.",
    "item_counts": "Noisy number of users and events for each item, event type and window. Protected: {protected}. "
    "Contributions of each user are limited before counting, then Gaussian noise is added; values may be negative.",
    "trending_counts": "The same for each of the last short windows ([trending] of the job file), oldest first; empty without "
    "them. Protected: {protected}. Contributions of each user are limited before counting, then Gaussian noise is added; "
    "values may be negative.",
    "item_pairs": "Noisy co-occurrence of items: upper triangle of a symmetric matrix, its diagonal included. "
    "Protected: {protected}. Gaussian noise is in every cell; values may be negative.",
    "item_embeddings": "Item vectors of the model, which was trained on the private releases alone.",
    "feature_embeddings": "Vectors of the public item features, from the same model as item_embeddings.",
    "recommendations": "For each item, the items to show beside it, best first, as the model ranked them, or re-ranked where "
    "the model's parameters (diversity, in model_versions) say so.",
    "popular": "Items for users without a history, best first, from the private releases.",
    "model_versions": "The model that made the tables of this database.",
    "privacy_ledger": "What each release spent: one row per noise mechanism. Protected: {protected}.",
    "privacy_periods": "What all releases of a budget period cost together, and what its contract allows. "
    "Protected: {protected}.",
    "evaluations": "How well models did on users who were kept from them, in each evaluation: noisy means over these users. "
    "Protected: {protected}. Each user's values are in [0, 1]; Gaussian noise is added to their sums and to the users' number.",
    "release_report": "The report of the release that the tables are from, line by line: what was released, with which limits "
    "and noise.",
}

_COUNTS: Mapping[str, str] = {
    "window_start": "Start of the window of event times (UTC), included.",
    "window_end": "End of the window of event times (UTC), not included.",
    "item_id": "The item counted.",
    "event_type": "The kind of event counted.",
    "users": "Noisy number of users, after each user's contributions were limited. May be negative.",
    "events": "Noisy number of events, after each user's contributions were limited. May be negative.",
    "users_low": "Lower end of the 95 % interval of the bounded count of users: it accounts for the noise, not for "
    "what the limit on each user's contributions left out.",
    "users_high": "Upper end of the 95 % interval of the bounded count of users; see users_low.",
    "events_low": "Lower end of the 95 % interval of the bounded count of events: it accounts for the noise, not "
    "for what the limit on each user's contributions left out.",
    "events_high": "Upper end of the 95 % interval of the bounded count of events; see events_low.",
}

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "items": {
        "item_id": "The item's id, as text.",
        "title": "The item's public title; null when there is none.",
        "score": "Noisy sum over users of 1 / sqrt(number of the user's items): how much it is used. May be negative; "
        "null when it was not released.",
        "kept": "Whether the item is in the co-occurrence matrix, and so in item_pairs.",
        "position": "Place in the co-occurrence matrix (0 = highest score); null when not kept.",
    },
    "item_counts": _COUNTS,
    "trending_counts": _COUNTS,
    "item_pairs": {
        "item_id": "One item; on the diagonal, the same as other_item_id.",
        "other_item_id": "The other item; its position in items is the same or higher. Each pair is here once.",
        "value": "Noisy sum over users of weight times weight, each user's weights scaled to length 1.",
    },
    "item_embeddings": {
        "item_id": "The item.",
        "embedding": "The item as a candidate: compared with the mean of a user's history embeddings.",
        "history_embedding": "The item as a part of a user's history.",
        "bias": "Added to the inner product: the item's general appeal.",
    },
    "feature_embeddings": {
        "feature": "The feature and its value.",
        "embedding": "The feature's part in the embedding of an item of average popularity that has it.",
        "history_embedding": "The feature's part in the history embedding of an item of average popularity that has it.",
        "bias": "The feature's part in the bias of each item that has it.",
    },
    "recommendations": {
        "item_id": "The item that is looked at.",
        "rank": "1 = best.",
        "recommended_item_id": "The item to show beside it.",
        "score": "The model's score; compare within one item_id only. Re-ranked items aren't in its order.",
    },
    "popular": {
        "rank": "1 = best.",
        "item_id": "The item.",
        "score": "What the items are ranked by, from noisy figures; may be negative.",
    },
    "model_versions": {
        "version": "Number of the model in its store.",
        "created": "The day of the release it was trained on (UTC).",
        "release_ids": "The releases it was trained on: ids in privacy_ledger.",
        "model": "What the model started from: 'hybrid', the tastes that item_pairs shows; 'ensemble', those and what public "
        "features say; 'none', there was nothing to learn from. parameters has what was asked for.",
        "rank": "Length of the embeddings.",
        "epochs": "Passes over the training pairs.",
        "items": "Number of items in the model.",
        "parameters": "All settings, as a JSON object.",
        "code_version": "Version of the software that trained it.",
    },
    "privacy_ledger": {
        "release_id": "The release: a random id.",
        "data_set": "The account charged. Losses add up over data sets that share users.",
        "created": "When it was released (UTC).",
        "window_start": "Start of the window of event times it read (UTC), included.",
        "window_end": "End of the window of event times it read (UTC), not included.",
        "unit": "What is protected: everything this unit did within one budget period can be added or taken away.",
        "period": "The budget period; losses add up over periods.",
        "mechanism": "What got noise: selection, counts.users, counts.events, cooccurrence or evaluation.",
        "noise_kind": "Distribution of the noise.",
        "l2_sensitivity": "The most that one unit can change the result, as a Euclidean distance.",
        "noise_sd": "Standard deviation of the noise.",
        "noise_multiplier": "noise_sd / l2_sensitivity; its inverse square is what the mechanism spends.",
        "delta": "Part of delta set aside for making unknown items known by a threshold; 0 otherwise.",
        "total_epsilon": "Epsilon of the whole release, all its mechanisms together (the same in each of its rows).",
        "total_delta": "Delta of the whole release, all its mechanisms together (the same in each of its rows).",
    },
    "privacy_periods": {
        "data_set": "The account. Losses add up over data sets that share users.",
        "period": "The budget period, by name (UTC); losses add up over periods.",
        "unit": "What is protected: everything this unit did within the period can be added or taken away.",
        "composition": "How costs add up: gaussian (of 1/sigma^2) or zcdp (of rho).",
        "releases": "How many releases were charged, published or not.",
        "spent_epsilon": "Epsilon of all of them together, at spent_delta. A series of windows of which each user is in a few "
        "counts whole, with its first window.",
        "spent_delta": "Delta that goes with it.",
        "total_epsilon": "Epsilon that the contract allows in the period.",
        "total_delta": "Delta that the contract allows in the period.",
    },
    "evaluations": {
        "window_start": "Start of the window of event times it read (UTC), included.",
        "window_end": "End of the window of event times it read (UTC), not included.",
        "release_id": "The evaluation: its id in privacy_ledger.",
        "model": "What was evaluated: popularity (the items' scores of the release that the newest of these models was trained "
        "on), or the kind of model.",
        "version": "Number of the model in its store; null for popularity.",
        "metric": "recall, ndcg or mrr, of lists of k items.",
        "k": "Length of the lists.",
        "value": "Mean over the users, from noisy figures; null where there are too few users for the noise.",
        "low": "Lower end of the 95 % interval of the mean over users of this kind: it accounts for the noise and for which "
        "users were asked. Each interval by itself.",
        "high": "Upper end of the 95 % interval; see low.",
        "users": "Noisy number of users who were asked: held out, with items enough. May be negative.",
        "users_low": "Lower end of the 95 % interval of that number: it accounts for the noise.",
        "users_high": "Upper end of the 95 % interval of that number; see users_low.",
    },
    "release_report": {
        "release_id": "The release.",
        "section": "Part of the report.",
        "line": "Place of the line in its section.",
        "text": "The line.",
    },
}

MACROS: Mapping[str, str] = {
    "recommend": "recommend(history, k := 10): the k best items for someone whose item ids are in the list history, "
    "which are left out. Repeats and unknown ids are ignored; with no known id, the popular items. "
    "Example: FROM recommend(['85123A', '22423'], 5).",
    "recommend_diverse": "recommend_diverse(history, k := 10, trade_off := 0.3): k of the 200 best of recommend, re-ranked by "
    "maximal marginal relevance so that they are less alike (cosine of embeddings), best first. trade_off is in [0, 1], 0: the "
    "ranking as it is, 1: diversity alone. Scores are those of recommend. Example: FROM recommend_diverse(['85123A'], 5, 0.4).",
    "similar_items": "similar_items(item, k := 10): the k items whose embeddings point most nearly the same way "
    "(cosine similarity, popularity aside), for an item with co-occurrences of its own among such items. Unknown items have "
    "none.",
    "trending": "trending(k := 10): the k largest noisy user counts of the newest short window (trending_counts), or of the "
    "newest window of item_counts where there are none, each with the 95 % interval of the bounded count (each user's "
    "contributions are limited before counting); users_before is the mean of the earlier windows in the same table. "
    "Protected: {protected}.",
    "privacy_spent": "privacy_spent(): for each budget period, epsilon and delta of all its releases together, and what the "
    "contract allows. Protected: {protected}.",
}

FEATURE = "Public feature of the catalogue ({kind})."
"""Comment of a feature's column in items."""

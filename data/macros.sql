-- Table macros of the published database. data/database.py puts in the embeddings' length for {d}.

-- Fold-in: sum of scores = mean of history embeddings . embedding + bias (docs/model.md), or the popular ones.
CREATE MACRO recommend(history, k := 10) AS TABLE
WITH given AS (
    SELECT DISTINCT unnest(history::VARCHAR[]) AS item_id
), coordinates AS (
    SELECT unnest(history_embedding::FLOAT[]) AS x, generate_subscripts(history_embedding::FLOAT[], 1) AS i
    FROM item_embeddings SEMI JOIN given USING (item_id)
), means AS (
    SELECT i, avg(x) AS x FROM coordinates GROUP BY i
), profile AS MATERIALIZED (
    SELECT list(x ORDER BY i)::FLOAT[{d}] AS embedding FROM means HAVING count(*) > 0
), scored AS (
    SELECT e.item_id, (array_inner_product(e.embedding, profile.embedding) + e.bias)::DOUBLE AS score
    FROM item_embeddings AS e, profile
    UNION ALL
    SELECT item_id, score FROM popular WHERE NOT EXISTS (FROM profile)
), best AS (
    SELECT item_id, score FROM scored ANTI JOIN given USING (item_id) ORDER BY score DESC, item_id LIMIT k
)
SELECT row_number() OVER (ORDER BY best.score DESC, item_id) AS rank, item_id, items.title, best.score
FROM best LEFT JOIN items USING (item_id)
ORDER BY rank;

-- Maximal marginal relevance over the best 200 of recommend, as `mmr` of models/rerank.py has it, by the embeddings: an item a step.
CREATE MACRO recommend_diverse(history, k := 10, trade_off := 0.3) AS TABLE
WITH RECURSIVE candidates AS MATERIALIZED (
    SELECT r.rank, r.item_id, r.title, r.score, e.embedding
    FROM recommend(history, 200) AS r LEFT JOIN item_embeddings AS e USING (item_id)
), relevance AS MATERIALIZED (
    SELECT list(coalesce((score - lowest) / nullif(highest - lowest, 0), 0) ORDER BY rank) AS scores
    FROM candidates, (SELECT min(score) AS lowest, max(score) AS highest FROM candidates)
), taken(place, rank, nearest) AS (
    -- nearest: each candidate's largest cosine with an item taken; more than any cosine where it is taken itself.
    SELECT 0, NULL::BIGINT, list(-1.0::DOUBLE) FROM candidates
    UNION ALL
    SELECT next.place + 1, any_value(next.rank), list(
        -- Without a direction an item is like no other.
        CASE WHEN c.rank = next.rank THEN 2.0 ELSE greatest(next.nearest[c.rank],
            coalesce(nullif(array_cosine_similarity(c.embedding, chosen.embedding)::DOUBLE, 'nan'), 0.0)) END ORDER BY c.rank
    )
    FROM (
        SELECT place, nearest, list_position(worth, list_max(worth)) AS rank
        FROM (
            SELECT place, nearest, list_transform(
                list_zip(scores, nearest),
                lambda pair: CASE WHEN pair[2] > 1.5 THEN '-inf' ELSE (1 - trade_off) * pair[1] - trade_off * pair[2] END
            ) AS worth
            FROM taken, relevance
        )
    ) AS next JOIN candidates AS chosen ON chosen.rank = next.rank, candidates AS c
    WHERE next.place < least(k, (SELECT count(*) FROM candidates))
    GROUP BY next.place
)
-- What is taken is for diversity, its order for relevance.
SELECT row_number() OVER (ORDER BY rank) AS rank, item_id, title, score FROM taken JOIN candidates USING (rank) ORDER BY rank;

CREATE MACRO similar_items(item, k := 10) AS TABLE
WITH wanted AS MATERIALIZED (
    SELECT item_id, embedding, kept FROM item_embeddings JOIN items USING (item_id) WHERE item_id = item::VARCHAR
), best AS (
    SELECT e.item_id, array_cosine_similarity(e.embedding, wanted.embedding)::DOUBLE AS similarity
    FROM item_embeddings AS e JOIN items USING (item_id), wanted
    -- What features alone say of an item is less than what its own co-occurrences do: like is compared with like.
    WHERE e.item_id <> wanted.item_id AND (items.kept OR NOT wanted.kept) AND NOT isnan(similarity)
    ORDER BY similarity DESC, e.item_id LIMIT k
)
SELECT row_number() OVER (ORDER BY similarity DESC, item_id) AS rank, item_id, items.title, similarity
FROM best LEFT JOIN items USING (item_id)
ORDER BY rank;

-- Of the newest short window, or of the newest window where there are no short ones.
CREATE MACRO trending(k := 10) AS TABLE
WITH counted AS (
    FROM trending_counts UNION ALL (FROM item_counts WHERE NOT EXISTS (FROM trending_counts))
), newest AS (
    SELECT window_start, window_end FROM counted ORDER BY window_end DESC, window_start DESC LIMIT 1
), earlier AS (
    SELECT item_id, event_type, avg(users) AS users_before
    FROM counted ANTI JOIN newest USING (window_start, window_end) GROUP BY item_id, event_type
), best AS (
    SELECT counted.*, users_before
    FROM counted SEMI JOIN newest USING (window_start, window_end) LEFT JOIN earlier USING (item_id, event_type)
    ORDER BY users DESC, item_id, event_type LIMIT k
)
SELECT
    row_number() OVER (ORDER BY users DESC, item_id, event_type) AS rank, item_id, items.title, event_type,
    users, users_low, users_high, users_before, events, events_low, events_high, window_start, window_end
FROM best LEFT JOIN items USING (item_id)
ORDER BY rank;

CREATE MACRO privacy_spent() AS TABLE
FROM privacy_periods ORDER BY data_set, period;

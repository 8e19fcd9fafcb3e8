-- caption_sentences_of: the distinct sentences of a probing set's captions, and how often each occurs.
SELECT t.id, t.text, count(*) AS n
FROM probing_set_clips m
JOIN captions c ON c.clip_id = m.clip_id AND c.recipe_id = %(caption_recipe)s
JOIN caption_sentences s ON s.caption_id = c.id
JOIN texts t ON t.id = s.text_id
WHERE m.probing_set_id = %(probing_set)s
GROUP BY t.id, t.text
ORDER BY t.text COLLATE "C";

-- sentence_encoder: the encoder that compared a dissection's sentences, and how many of some texts it has not embedded.
SELECT e.id,
       (SELECT count(*)
        FROM unnest(%(texts)s::bigint[]) AS x (id)
        WHERE NOT EXISTS (SELECT FROM text_embeddings v WHERE v.encoder_id = e.id AND v.text_id = x.id)) AS missing
FROM dissection_recipes k
JOIN recipes r ON r.id = k.recipe_id
JOIN encoders e ON e.recipe_id = ANY (r.parents)
WHERE k.dissection_id = %(dissection)s AND k.stage = 'calibrate';

-- clusterings: what has been clustered, the latest first, with the sentences that have come since.
SELECT g.id, d.name AS dataset, a.backend AS captions, e.name AS encoder, g.n_clusters, g.chosen_by, g.seed, g.inertia,
       g.curve, count(c.id) AS n_captions, sum(s.n) AS n_sentences, sum(s.outside) AS n_outside, r.sha256,
       g.probing_set_id, g.caption_recipe_id, g.created_at
FROM clusterings g
JOIN recipes r ON r.id = g.recipe_id
JOIN recipes a ON a.id = g.caption_recipe_id
JOIN encoders e ON e.id = g.encoder_id
JOIN probing_sets p ON p.id = g.probing_set_id
JOIN datasets d ON d.id = p.dataset_id
JOIN probing_set_clips m ON m.probing_set_id = g.probing_set_id
JOIN captions c ON c.clip_id = m.clip_id AND c.recipe_id = g.caption_recipe_id
CROSS JOIN LATERAL (
    SELECT count(*) AS n, count(*) FILTER (WHERE k.cluster IS NULL) AS outside
    FROM caption_sentences x
    LEFT JOIN cluster_sentences k ON k.clustering_id = g.id AND k.text_id = x.text_id
    WHERE x.caption_id = c.id
) AS s
WHERE (%(clustering)s::bigint IS NULL OR g.id = %(clustering)s)
  AND (%(probing_set)s::bigint IS NULL OR g.probing_set_id = %(probing_set)s)
  AND (%(caption_recipe)s::bigint IS NULL OR g.caption_recipe_id = %(caption_recipe)s)
GROUP BY g.id, d.name, a.backend, e.name, r.sha256
ORDER BY g.id DESC;

-- insert_clusters: the clusters of stored memberships with their counts; their words are given.
INSERT INTO clusters (clustering_id, cluster, n_captions, n_sentences, words)
SELECT g.id, k.cluster, count(DISTINCT c.id), count(*), %(words)s::jsonb -> k.cluster::text
FROM clusterings g
JOIN probing_set_clips m ON m.probing_set_id = g.probing_set_id
JOIN captions c ON c.clip_id = m.clip_id AND c.recipe_id = g.caption_recipe_id
JOIN caption_sentences s ON s.caption_id = c.id
JOIN cluster_sentences k ON k.clustering_id = g.id AND k.text_id = s.text_id
WHERE g.id = %(clustering)s
GROUP BY g.id, k.cluster;

-- clusters_of: the clusters of a clustering with counts, words, and the sentence that occurs most often in each.
SELECT k.cluster, k.n_captions, k.n_sentences, k.words, x.text AS example
FROM clusters k
JOIN clusterings g ON g.id = k.clustering_id
LEFT JOIN LATERAL (
    SELECT t.text
    FROM cluster_sentences y
    JOIN texts t ON t.id = y.text_id
    JOIN caption_sentences s ON s.text_id = y.text_id
    JOIN captions c ON c.id = s.caption_id AND c.recipe_id = g.caption_recipe_id
    JOIN probing_set_clips m ON m.probing_set_id = g.probing_set_id AND m.clip_id = c.clip_id
    WHERE y.clustering_id = k.clustering_id AND y.cluster = k.cluster
    GROUP BY t.id, t.text
    ORDER BY count(*) DESC, t.text COLLATE "C"
    LIMIT 1
) AS x ON true
WHERE k.clustering_id = %(clustering)s
ORDER BY k.cluster;

-- caption_clusters: the clusters that each clip's caption belongs to, in order of position; none for a clip without caption.
SELECT m.position, coalesce(array_agg(DISTINCT k.cluster) FILTER (WHERE k.cluster IS NOT NULL), '{}') AS clusters
FROM clusterings g
JOIN probing_set_clips m ON m.probing_set_id = g.probing_set_id
LEFT JOIN captions c ON c.clip_id = m.clip_id AND c.recipe_id = g.caption_recipe_id
LEFT JOIN caption_sentences s ON s.caption_id = c.id
LEFT JOIN cluster_sentences k ON k.clustering_id = g.id AND k.text_id = s.text_id
WHERE g.id = %(clustering)s
GROUP BY m.position
ORDER BY m.position;

-- uninterpretable_blocks: share of uninterpretable neurons by block, and by block and kind of layer, with Wilson 95 % intervals.
SELECT q.block, q.layer_kind, q.k, q.tau, q.n_neurons, q.n_uninterpretable, w.p AS share,
       greatest((w.p + w.z2 / 2 - w.half) / (1 + w.z2), 0) AS low, least((w.p + w.z2 / 2 + w.half) / (1 + w.z2), 1) AS high
FROM (
    SELECT u.block, CASE WHEN grouping(u.layer_kind) = 1 THEN 'all' ELSE u.layer_kind END AS layer_kind, u.k, u.tau,
           sum(u.n_neurons)::bigint AS n_neurons, sum(u.n_uninterpretable)::bigint AS n_uninterpretable
    FROM uninterpretable_neurons(%(clustering)s, %(dissection)s, %(ks)s) u
    GROUP BY GROUPING SETS ((u.block, u.k, u.tau), (u.block, u.layer_kind, u.k, u.tau))
) AS q
CROSS JOIN LATERAL (
    SELECT v.p, v.z2, sqrt(v.z2 * v.p * (1 - v.p) + v.z2 * v.z2 / 4) AS half
    FROM (
        SELECT q.n_uninterpretable::float / q.n_neurons AS p, 1.959963984540054 ^ 2 / q.n_neurons::float AS z2
    ) AS v
) AS w
ORDER BY q.k, q.tau, q.block NULLS LAST, q.layer_kind;

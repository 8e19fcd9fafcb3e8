-- search_summaries: calibrated summaries nearest in meaning and by full text, fused by reciprocal rank.
WITH chosen AS (
    SELECT o.dissection_id, k.recipe_id
    FROM dissection_overview o
    JOIN dissection_recipes k ON k.dissection_id = o.dissection_id AND k.stage = 'calibrate'
    WHERE (%(dissection)s::bigint IS NULL AND o.is_current OR o.dissection_id = %(dissection)s)
      AND (%(network)s::text IS NULL OR o.network = %(network)s)
), by_meaning AS (
    SELECT c.id, k.dissection_id, e.embedding <=> %(vector)s::vector AS distance
    FROM summary_embeddings e
    JOIN calibrations c ON c.id = e.calibration_id
    JOIN chosen k ON k.recipe_id = c.recipe_id
    JOIN neurons n ON n.id = c.neuron_id
    JOIN dissected_layers dl ON dl.dissection_id = k.dissection_id AND dl.layer_id = n.layer_id
    WHERE e.encoder_id = %(encoder)s
    ORDER BY distance, c.id
    LIMIT %(depth)s
), by_text AS (
    SELECT c.id, k.dissection_id, ts_rank_cd(to_tsvector('english', c.summary), q.query) AS hit
    FROM calibrations c
    JOIN chosen k ON k.recipe_id = c.recipe_id
    JOIN neurons n ON n.id = c.neuron_id
    JOIN dissected_layers dl ON dl.dissection_id = k.dissection_id AND dl.layer_id = n.layer_id
    CROSS JOIN websearch_to_tsquery('english', %(text)s) AS q (query)
    WHERE to_tsvector('english', c.summary) @@ q.query
    ORDER BY hit DESC, c.id
    LIMIT %(depth)s
), fused AS (
    SELECT id, dissection_id, sum(1.0 / (60 + place))::float AS score, min(distance) AS distance, bool_or(in_text) AS in_text
    FROM (
        SELECT id, dissection_id, row_number() OVER (ORDER BY distance, id) AS place, distance, false AS in_text FROM by_meaning
        UNION ALL
        SELECT id, dissection_id, row_number() OVER (ORDER BY hit DESC, id), NULL, true FROM by_text
    ) both_ways
    GROUP BY id, dissection_id
)
SELECT l.name || '#' || n.unit AS neuron, w.name AS network, round((1 - f.distance)::numeric, 3)::float AS cosine,
       f.in_text, c.summary AS calibrated_summary, f.score, f.dissection_id
FROM fused f
JOIN calibrations c ON c.id = f.id
JOIN neurons n ON n.id = c.neuron_id
JOIN layers l ON l.id = n.layer_id
JOIN networks w ON w.id = l.network_id
ORDER BY f.score DESC, c.neuron_id
LIMIT %(n)s;

-- neurons_for_concept: what the SQL function of that name answers, restricted to layers by pattern.
SELECT neuron, neuron_network AS network, layer, block, unit, rank, score, why, dissection_id
FROM neurons_for_concept(
    %(concept)s, %(strategy)s, %(network)s, %(dissection)s, words => %(words)s, top => %(top)s,
    max_results => CASE WHEN %(layer)s::text IS NULL THEN %(n)s::int END
)
WHERE %(layer)s::text IS NULL OR layer LIKE %(layer)s
ORDER BY rank
LIMIT %(n)s;

-- describe_neuron: the row of neuron_descriptions of one neuron in one dissection.
SELECT d.*, w.architecture, s.mean, s.sd, s.min, s.max, s.sparsity
FROM neuron_descriptions d
JOIN networks w ON w.name = d.network
LEFT JOIN neuron_statistics s ON s.recording_id = d.recording_id AND s.neuron_id = d.neuron_id
WHERE d.dissection_id = %(dissection)s AND d.layer = %(layer)s AND d.unit = %(unit)s;

-- neuron_exemplars: its most and least active clips, with their captions.
SELECT x.side, x.rank, x.label, x.path, round(x.activation::numeric, 3)::float AS activation, a.text AS caption, a.names_label
FROM exemplar_clips x
LEFT JOIN dissection_recipes k ON k.dissection_id = %(dissection)s AND k.stage = 'caption'
LEFT JOIN captions a ON a.clip_id = x.clip_id AND a.recipe_id = k.recipe_id
WHERE x.recording_id = %(recording)s AND x.neuron_id = %(neuron)s AND x.rank <= %(n)s
ORDER BY x.side, x.rank;

-- neuron_points: the points of its high summary, kept or dropped, with the low point nearest to each.
SELECT point, kept, support, nearest_low_point, round(cosine::numeric, 3)::float AS cosine
FROM calibrated_summary_points
WHERE calibration_id = %(calibration)s
ORDER BY ordinal;

-- neuron_matches: its best closed-set concepts by every method and function.
SELECT method, similarity, speaks, rank, concept, round(score::numeric, 4)::float AS score
FROM closed_concepts
WHERE dissection_id = %(dissection)s AND neuron_id = %(neuron)s AND rank <= %(n)s
ORDER BY method, speaks DESC, similarity, rank;

-- neuron_terms_of: the terms of its calibrated summary.
SELECT term, part_of_speech, occurrences, is_open_concept, round(verdict_score::numeric, 3)::float AS verdict_score, verdict_reason
FROM open_concepts
WHERE dissection_id = %(dissection)s AND neuron_id = %(neuron)s
ORDER BY part_of_speech, term;

-- current_dissections: the dissections that questions go to, unless one is named.
SELECT dissection_id, network, dataset, concept_set
FROM dissection_overview
WHERE is_current AND (%(network)s::text IS NULL OR network = %(network)s)
ORDER BY completed_at DESC NULLS LAST, dissection_id DESC;

-- layer_table: a dissection, layer by layer.
SELECT layer, n_units AS neurons, n_constant AS constant, n_described AS described,
       round(mean_kept::numeric, 2)::float AS points_kept, round(mean_dropped::numeric, 2)::float AS points_dropped,
       round(mean_support::numeric, 2)::float AS support, round(mean_open_concepts::numeric, 1)::float AS open_concepts,
       commonest_closed_db AS commonest_concept, commonest_closed_db_neurons AS of_neurons
FROM layer_overview
WHERE dissection_id = %(dissection)s
ORDER BY position;

-- probing_clips: path, main label and fold of the clips of a probing set, in order of position.
SELECT c.path, c.labels[1] AS label, c.fold
FROM probing_set_clips m
JOIN clips c ON c.id = m.clip_id
WHERE m.probing_set_id = %(probing_set)s
ORDER BY m.position;

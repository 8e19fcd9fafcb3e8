-- insert_study_items: draw neurons for a study: some per layer, of those that every method describes; in random order.
INSERT INTO study_items (study_id, item, neuron_id)
SELECT %(study)s, row_number() OVER (ORDER BY md5('place ' || %(seed)s::bigint || drawn.neuron) COLLATE "C", drawn.neuron), drawn.neuron_id
FROM (
    SELECT d.neuron_id, d.neuron,
           row_number() OVER (PARTITION BY d.layer_id ORDER BY md5(%(seed)s::bigint || d.layer || '#' || d.unit) COLLATE "C", d.unit) AS place
    FROM neuron_descriptions d
    WHERE d.dissection_id = %(dissection)s
      AND d.layer = ANY (%(layers)s::text[])
      AND NOT EXISTS (
          SELECT FROM unnest(%(methods)s::text[]) AS wanted (method)
          WHERE CASE wanted.method
                    WHEN 'closed_db' THEN d.closed_db
                    WHEN 'closed_tab' THEN d.closed_tab
                    WHEN 'closed_icl' THEN d.closed_icl
                    WHEN 'summary' THEN nullif(btrim(d.calibrated_summary), '')
                END IS NULL)
) drawn
WHERE drawn.place <= %(per_layer)s;

-- insert_study_descriptions: what each method says of the neurons of a study, in a random order of its own for each neuron.
INSERT INTO study_descriptions (study_id, item, slot, method, text)
SELECT i.study_id, i.item,
       chr(64 + row_number() OVER (
           PARTITION BY i.item ORDER BY md5('slot ' || %(seed)s::bigint || d.neuron || said.method) COLLATE "C", said.method)::int),
       said.method, said.text
FROM study_items i
-- One look-up a neuron: nothing is known yet of how many items there are, and a join would describe the whole network.
CROSS JOIN LATERAL (
    SELECT x.neuron, x.closed_db, x.closed_tab, x.closed_icl, x.calibrated_summary
    FROM neuron_descriptions x
    WHERE x.neuron_id = i.neuron_id AND x.dissection_id = %(dissection)s
    OFFSET 0
) AS d
CROSS JOIN LATERAL (
    VALUES ('closed_db', d.closed_db), ('closed_tab', d.closed_tab), ('closed_icl', d.closed_icl),
           ('summary', btrim(d.calibrated_summary))
) AS said (method, text)
WHERE i.study_id = %(study)s AND said.method = ANY (%(methods)s::text[]);

-- study_drawn: per layer, neurons in the study and neurons that the layer has.
SELECT l.name AS layer, count(i.item) AS drawn, l.n_units
FROM dissected_layers d
JOIN layers l ON l.id = d.layer_id
LEFT JOIN neurons n ON n.layer_id = l.id
LEFT JOIN study_items i ON i.neuron_id = n.id AND i.study_id = %(study)s
WHERE d.dissection_id = %(dissection)s AND l.name = ANY (%(layers)s::text[])
GROUP BY l.id, l.name, l.n_units, l.position
ORDER BY l.position;

-- study_shown: the descriptions of a study as raters see them, without the method behind each.
SELECT item, slot, text
FROM study_descriptions
WHERE study_id = %(study)s
ORDER BY item, slot;

-- study_clips: the clips of a study's neurons, the most active first.
SELECT i.item, x.rank::int AS rank, c.id AS clip_id, f.root, c.path, c.sha256
FROM study_items i
JOIN studies s ON s.id = i.study_id
JOIN dissections d ON d.id = s.dissection_id
JOIN exemplars e ON e.recording_id = d.recording_id AND e.neuron_id = i.neuron_id AND e.side = 'high'
CROSS JOIN LATERAL unnest(e.positions[1:%(exemplars)s]) WITH ORDINALITY AS x (position, rank)
JOIN probing_set_clips m ON m.probing_set_id = d.probing_set_id AND m.position = x.position
JOIN clips c ON c.id = m.clip_id
JOIN datasets f ON f.id = c.dataset_id
WHERE i.study_id = %(study)s
ORDER BY i.item, x.rank;

-- list_studies: the studies, the latest first, with how much has been answered; of one network or of all.
SELECT s.name, o.network, o.dataset, s.dissection_id AS dissection,
       (SELECT count(*) FROM study_items i WHERE i.study_id = s.id) AS neurons,
       ARRAY(SELECT DISTINCT d.method FROM study_descriptions d WHERE d.study_id = s.id ORDER BY 1) AS methods,
       (SELECT count(DISTINCT r.rater)
        FROM (SELECT rater FROM study_ratings WHERE study_id = s.id
              UNION ALL SELECT rater FROM study_summaries WHERE study_id = s.id) r) AS raters,
       (SELECT count(*) FROM study_ratings r WHERE r.study_id = s.id) AS ratings,
       (SELECT count(*) FROM study_summaries w WHERE w.study_id = s.id) AS summaries,
       s.created_at
FROM studies s
JOIN dissection_overview o ON o.dissection_id = s.dissection_id
WHERE %(network)s::text IS NULL OR o.network = %(network)s
ORDER BY s.created_at DESC, s.id DESC;

-- study_ratings_by_method: ratings of each method: mean and spread over neurons, of what the raters of a neuron gave on average.
SELECT r.method,
       count(*) AS n_neurons,
       sum(r.n_ratings)::int AS n_ratings,
       avg(r.rating)::float AS rating,
       stddev_samp(r.rating)::float AS sd,
       ARRAY(SELECT (SELECT count(*) FROM study_ratings g
                     JOIN study_descriptions d USING (study_id, item, slot)
                     WHERE g.study_id = %(study)s AND d.method = r.method AND g.rating = step)
             FROM generate_series(1, 5) AS step ORDER BY step) AS counts
FROM study_results r
WHERE r.study_id = %(study)s AND r.n_ratings > 0
GROUP BY r.method
ORDER BY rating DESC, r.method;

-- study_differences: how much higher one method is rated than another, over the neurons where both were rated.
SELECT a.method, b.method AS than, count(*) AS n_neurons, avg(a.rating - b.rating)::float AS difference,
       stddev_samp(a.rating - b.rating)::float AS sd
FROM study_results a
JOIN study_results b ON b.study_id = a.study_id AND b.item = a.item AND b.method <> a.method
WHERE a.study_id = %(study)s AND a.n_ratings > 0 AND b.n_ratings > 0
GROUP BY a.method, b.method
HAVING avg(a.rating - b.rating) > 0 OR (avg(a.rating - b.rating) = 0 AND a.method < b.method)
ORDER BY difference DESC, a.method, b.method;

-- study_rating_matrix: each rating of a study, with the description it is of as one number.
SELECT r.rater, dense_rank() OVER (ORDER BY r.item, r.slot)::int - 1 AS unit, d.method, r.rating
FROM study_ratings r
JOIN study_descriptions d USING (study_id, item, slot)
WHERE r.study_id = %(study)s
ORDER BY r.rater, unit;

-- study_raters: how much each rater has answered.
SELECT p.rater,
       count(DISTINCT r.item) AS neurons_rated,
       count(r.rating) AS ratings,
       avg(r.rating)::float AS mean_rating,
       (SELECT count(*) FROM study_summaries w WHERE w.study_id = %(study)s AND w.rater = p.rater) AS summaries
FROM (SELECT rater FROM study_ratings WHERE study_id = %(study)s
      UNION SELECT rater FROM study_summaries WHERE study_id = %(study)s) p
LEFT JOIN study_ratings r ON r.study_id = %(study)s AND r.rater = p.rater
GROUP BY p.rater
ORDER BY p.rater;

-- study_pairs: what raters wrote beside what each method says of the same neuron.
SELECT w.rater, d.item, d.method, w.text AS written, d.text AS generated
FROM study_summaries w
JOIN study_descriptions d USING (study_id, item)
WHERE w.study_id = %(study)s
ORDER BY w.rater, d.item, d.method;

-- study_cosines: cosine of written and generated text by method: mean and spread over neurons, of the raters' mean.
SELECT method, count(*) AS n_neurons, sum(n)::int AS n_written, avg(cosine)::float AS cosine, stddev_samp(cosine)::float AS sd
FROM (
    SELECT d.method, d.item, count(*) AS n, avg(1 - (a.embedding <=> b.embedding)) AS cosine
    FROM study_summaries w
    JOIN study_descriptions d USING (study_id, item)
    JOIN texts ta ON md5(ta.text) = md5(w.text)
    JOIN text_embeddings a ON a.text_id = ta.id AND a.encoder_id = %(encoder)s
    JOIN texts tb ON md5(tb.text) = md5(d.text)
    JOIN text_embeddings b ON b.text_id = tb.id AND b.encoder_id = %(encoder)s
    WHERE w.study_id = %(study)s
    GROUP BY d.method, d.item
) per_neuron
GROUP BY method
ORDER BY method;

-- study_bertscores: BERTScore of written and generated text by method, from an experiment that holds one score per pair.
SELECT method, count(*) AS n_neurons, avg(score)::float AS bertscore, stddev_samp(score)::float AS sd
FROM (
    SELECT s.value ->> 1 AS method, s.value ->> 0 AS item, avg((s.value ->> 3)::float) AS score
    FROM experiments e
    CROSS JOIN LATERAL jsonb_array_elements(e.figures -> 'scores') AS s (value)
    WHERE e.id = %(experiment)s
    GROUP BY 1, 2
) per_neuron
GROUP BY method
ORDER BY method;

-- drawn_neurons: some neurons of each layer of a dissection, drawn at random: the same seed draws the same ones anywhere.
SELECT q.neuron
FROM (
    SELECT l.name || '#' || n.unit AS neuron, l.position, n.unit,
           row_number() OVER (PARTITION BY l.id ORDER BY md5(%(seed)s || ':' || l.name || '#' || n.unit) COLLATE "C") AS place
    FROM dissected_layers d
    JOIN layers l ON l.id = d.layer_id
    JOIN neurons n ON n.layer_id = l.id
    WHERE d.dissection_id = %(dissection)s
) q
WHERE q.place <= %(per_layer)s
ORDER BY q.position, q.unit;

-- calibrated_neurons: hidden neurons of which calibration kept and dropped points, drawn at random, each from another layer.
SELECT q.neuron
FROM (
    SELECT DISTINCT ON (l.id) l.name || '#' || n.unit AS neuron, l.position,
           md5(%(seed)s || ':' || l.name || '#' || n.unit) COLLATE "C" AS draw
    FROM dissected_layers d
    JOIN layers l ON l.id = d.layer_id AND l.kind <> 'head'
    JOIN neurons n ON n.layer_id = l.id
    JOIN dissection_recipes k ON k.dissection_id = d.dissection_id AND k.stage = 'calibrate'
    JOIN calibrations c ON c.recipe_id = k.recipe_id AND c.neuron_id = n.id
    WHERE d.dissection_id = %(dissection)s AND c.n_kept > 0 AND c.n_dropped > 0
    ORDER BY l.id, draw
) q
ORDER BY q.draw
LIMIT %(n)s;

-- neuron_outputs: Table 6: the labels of a neuron's exemplars, its closed-set concepts and its calibrated summary, in the order asked for.
SELECT q.neuron, q.layer, q.class_name, q.exemplar_labels, q.closed_tab, q.closed_db, q.closed_icl, q.calibrated_summary AS summary,
       q.points_dropped
FROM unnest(%(neurons)s::text[]) WITH ORDINALITY AS asked (neuron, place)
JOIN neuron_descriptions q ON q.neuron = asked.neuron AND q.dissection_id = %(dissection)s
ORDER BY asked.place;

-- exemplar_sounds: the files of the n most and n least active clips of neurons.
SELECT x.neuron, x.side, x.rank, x.clip_id, x.label, x.path, s.root, c.sha256, c.duration_s
FROM dissections d
JOIN exemplar_clips x ON x.recording_id = d.recording_id
JOIN clips c ON c.id = x.clip_id
JOIN datasets s ON s.id = c.dataset_id
WHERE d.id = %(dissection)s AND x.neuron_id = ANY (%(neurons)s) AND x.rank <= %(n)s
ORDER BY x.neuron_id, x.side, x.rank;

-- neurons_by_name: ids of neurons of a dissection.
SELECT l.name || '#' || n.unit AS neuron, n.id AS neuron_id
FROM dissected_layers d
JOIN layers l ON l.id = d.layer_id
JOIN neurons n ON n.layer_id = l.id
WHERE d.dissection_id = %(dissection)s AND l.name || '#' || n.unit = ANY (%(neurons)s)
ORDER BY l.position, n.unit;

-- low_points: the points of a neuron's low summary, and which points of the high one each removed.
SELECT t.text AS point,
       coalesce(array_agg(h.text ORDER BY p.ordinal) FILTER (WHERE h.text IS NOT NULL), '{}') AS removed
FROM calibrations c
JOIN summary_points lp ON lp.summary_id = c.low_summary_id
JOIN texts t ON t.id = lp.text_id
LEFT JOIN calibrated_points p ON p.calibration_id = c.id AND NOT p.kept AND p.nearest_low_ordinal = lp.ordinal
LEFT JOIN summary_points hp ON hp.summary_id = c.high_summary_id AND hp.ordinal = p.ordinal
LEFT JOIN texts h ON h.id = hp.text_id
WHERE c.id = %(calibration)s
GROUP BY lp.ordinal, t.text
ORDER BY lp.ordinal;

-- dissection_recipe_rows: what each stage of a dissection was made with.
SELECT k.stage, r.backend, left(r.revision, 12) AS revision, left(r.sha256, 10) AS recipe, k.speaks, r.params, r.created_at
FROM dissection_recipes k
JOIN recipes r ON r.id = k.recipe_id
WHERE k.dissection_id = %(dissection)s
ORDER BY r.id;

-- probing_set_figures: how much sound a dissection was probed with, and how many captions say the name of the class.
SELECT count(*) AS clips, count(DISTINCT c.labels[1]) AS labels, sum(c.duration_s) / 60 AS minutes,
       count(DISTINCT c.fold) AS folds, count(a.id) AS captions, count(a.id) FILTER (WHERE a.names_label) AS naming
FROM dissections d
JOIN probing_set_clips m ON m.probing_set_id = d.probing_set_id
JOIN clips c ON c.id = m.clip_id
LEFT JOIN dissection_recipes k ON k.dissection_id = d.id AND k.stage = 'caption'
LEFT JOIN captions a ON a.clip_id = c.id AND a.recipe_id = k.recipe_id
WHERE d.id = %(dissection)s;

-- versions_of: the libraries that a dissection was made with, by its latest run that came to an end.
SELECT r.versions, r.command, r.arguments, r.finished_at
FROM runs r
WHERE r.dissection_id = %(dissection)s AND r.command = 'dissect' AND r.outcome = 'ok'
ORDER BY r.id DESC
LIMIT 1;

-- stored_ablations: which shares and seeds of each criterion an experiment holds.
SELECT a.strategy, jsonb_agg(jsonb_build_array(a.share, a.seed) ORDER BY a.share, a.seed) AS units
FROM ablations a
WHERE a.experiment_id = %(experiment)s
GROUP BY a.strategy
ORDER BY a.strategy;

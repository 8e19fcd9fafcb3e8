-- hidden_layers: the layers of a dissection whose neurons may be ablated: all but the head.
SELECT l.name, l.n_units
FROM dissected_layers x
JOIN layers l ON l.id = x.layer_id AND l.kind <> 'head'
WHERE x.dissection_id = %(dissection)s
ORDER BY l.position;

-- has_summary_vectors: whether the summaries of a calibration have vectors.
SELECT EXISTS (
    SELECT FROM calibrations c JOIN summary_embeddings s ON s.calibration_id = c.id WHERE c.recipe_id = %(calibrate_recipe)s
) AS has;

-- texts_without_vector: which of some texts have no vector by an encoder of a dissection's summaries.
SELECT w.text
FROM unnest(%(texts)s::text[]) AS w (text)
WHERE NOT EXISTS (
    SELECT
    FROM texts t
    JOIN text_embeddings m ON m.text_id = t.id
    WHERE md5(t.text) = md5(w.text)
      AND EXISTS (
          SELECT
          FROM dissection_recipes k
          JOIN calibrations c ON c.recipe_id = k.recipe_id
          JOIN summary_embeddings s ON s.calibration_id = c.id AND s.encoder_id = m.encoder_id
          WHERE k.dissection_id = %(dissection)s AND k.stage = 'calibrate'
      )
);

-- open_terms: the open concepts of a dissection, and whether each has a stem of the words asked for; the commonest first.
SELECT o.term, bool_or(x.stem = ANY (tsvector_to_array(to_tsvector('english', %(concept)s)))
                       OR to_tsvector('english', replace(x.term, '-', ' ')) @@ plainto_tsquery('english', %(concept)s)) AS asked
FROM open_concepts o
JOIN terms x ON x.id = o.term_id
WHERE o.dissection_id = %(dissection)s AND o.is_open_concept
GROUP BY o.term
ORDER BY count(*) DESC, o.term;

-- insert_plan_by_concept: the hidden neurons that respond to a concept, best first. Where a strategy gives equal scores (open: the same number of the concept's words), neurons of which less else is said come first, then an order that knows nothing of layers.
INSERT INTO ablation_plan_neurons (plan_id, neuron_id, rank, score, why)
SELECT %(plan)s, q.neuron_id, row_number() OVER (ORDER BY q.tied, q.n_open, q.draw, q.rank), q.score, q.why
FROM (
    SELECT f.neuron_id, f.rank, f.score, t.n_open,
           CASE WHEN t.n_open IS NOT NULL THEN -f.score END AS tied,
           CASE WHEN t.n_open IS NOT NULL THEN md5(f.neuron) COLLATE "C" END AS draw,
           regexp_replace(regexp_replace(f.why, '</?b>', '', 'g'), '\s+', ' ', 'g') || coalesce(' (of ' || t.n_open || ' open concepts)', '') AS why
    FROM neurons_for_concept(
        %(concept)s, %(strategy)s, dissection => %(dissection)s, words => %(words)s, top => %(top)s,
        max_results => (SELECT sum(l.n_units)::int FROM dissected_layers x JOIN layers l ON l.id = x.layer_id
                        WHERE x.dissection_id = %(dissection)s)
    ) f
    JOIN neurons n ON n.id = f.neuron_id
    JOIN layers l ON l.id = n.layer_id AND l.kind <> 'head'
    LEFT JOIN LATERAL (
        SELECT count(*) AS n_open
        FROM dissection_recipes k
        JOIN neuron_terms o ON o.recipe_id = k.recipe_id AND o.neuron_id = f.neuron_id AND o.is_open_concept
        WHERE k.dissection_id = %(dissection)s AND k.stage = 'extract'
    ) t ON %(strategy)s::text IN ('open', 'closed_icl')
    WHERE l.name = ANY (%(layers)s)
) q
ORDER BY 3
LIMIT %(n)s;

-- insert_plan_at_random: hidden neurons drawn from all layers together: the same seed draws the same ones in any database.
INSERT INTO ablation_plan_neurons (plan_id, neuron_id, rank, why)
SELECT %(plan)s, q.neuron_id, q.place, 'drawn with seed ' || %(seed)s::text
FROM (
    SELECT n.id AS neuron_id,
           row_number() OVER (ORDER BY md5(%(seed)s::text || l.name || '#' || n.unit) COLLATE "C", l.position, n.unit) AS place
    FROM dissected_layers x
    JOIN layers l ON l.id = x.layer_id AND l.kind <> 'head'
    JOIN neurons n ON n.layer_id = l.id
    WHERE x.dissection_id = %(dissection)s AND l.name = ANY (%(layers)s)
) q
WHERE q.place <= %(n)s;

-- insert_plan_matched: as many neurons of each layer as another plan has there, drawn from all of the layer's.
INSERT INTO ablation_plan_neurons (plan_id, neuron_id, rank, why)
WITH wanted AS (
    SELECT n.layer_id, count(*) AS n
    FROM ablation_plan_neurons p
    JOIN neurons n ON n.id = p.neuron_id
    WHERE p.plan_id = %(compared_with)s
    GROUP BY n.layer_id
), shuffled AS (
    SELECT n.id AS neuron_id, w.n, l.name, md5(%(seed)s::text || l.name || '#' || n.unit) COLLATE "C" AS draw,
           row_number() OVER (
               PARTITION BY l.id ORDER BY md5(%(seed)s::text || l.name || '#' || n.unit) COLLATE "C", n.unit
           ) AS place
    FROM wanted w
    JOIN layers l ON l.id = w.layer_id
    JOIN neurons n ON n.layer_id = l.id
)
SELECT %(plan)s, neuron_id, row_number() OVER (ORDER BY draw, neuron_id),
       'drawn with seed ' || %(seed)s::text || ', one of ' || n || ' of ' || name
FROM shuffled
WHERE place <= n;

-- plan_units: which units of which layers some plans choose, in order of computation.
SELECT p.plan_id, l.name AS layer, array_agg(n.unit ORDER BY n.unit) AS units
FROM ablation_plan_neurons p
JOIN neurons n ON n.id = p.neuron_id
JOIN layers l ON l.id = n.layer_id
WHERE p.plan_id = ANY (%(plans)s)
GROUP BY p.plan_id, l.id
ORDER BY p.plan_id, l.position;

-- plan_neurons: the neurons of a plan in order of choice, and why each.
SELECT p.rank, l.name || '#' || n.unit AS neuron, p.score, p.why
FROM ablation_plan_neurons p
JOIN neurons n ON n.id = p.neuron_id
JOIN layers l ON l.id = n.layer_id
WHERE p.plan_id = %(plan)s
ORDER BY p.rank
LIMIT %(n)s;

-- plan_rows: plans with their neurons counted by layer; one of them, or all of a dissection.
SELECT p.id, p.dissection_id, w.name AS network, p.strategy, p.concept, p.target_unit, w.classes[p.target_unit + 1] AS target,
       p.n_neurons, p.max_neurons, p.seed, p.compared_with_id, p.layers, r.params, r.sha256, p.created_at,
       (SELECT sum(l.n_units) FROM dissected_layers x JOIN layers l ON l.id = x.layer_id AND l.kind <> 'head'
        WHERE x.dissection_id = d.id)::bigint AS n_hidden,
       coalesce(
           (SELECT json_object_agg(c.name, c.n ORDER BY c.position)
            FROM (SELECT l.name, l.position, count(*) AS n
                  FROM ablation_plan_neurons a
                  JOIN neurons n ON n.id = a.neuron_id
                  JOIN layers l ON l.id = n.layer_id
                  WHERE a.plan_id = p.id
                  GROUP BY l.id) c),
           '{}'::json
       ) AS per_layer
FROM ablation_plans p
JOIN recipes r ON r.id = p.recipe_id
JOIN dissections d ON d.id = p.dissection_id
JOIN networks w ON w.id = d.network_id
WHERE (%(plan)s::bigint IS NULL OR p.id = %(plan)s) AND (%(dissection)s::bigint IS NULL OR p.dissection_id = %(dissection)s)
ORDER BY p.id;

-- first_units: which units the first neurons of a plan are, for several sizes.
SELECT s.size, l.name AS layer, array_agg(n.unit ORDER BY n.unit) AS units
FROM unnest(%(sizes)s::int[]) AS s (size)
JOIN ablation_plan_neurons p ON p.plan_id = %(plan)s AND p.rank <= s.size
JOIN neurons n ON n.id = p.neuron_id
JOIN layers l ON l.id = n.layer_id
GROUP BY s.size, l.id
ORDER BY s.size, l.position;

-- matched_units: for several sizes and seeds, as many units of each layer as the first neurons of a plan have there. Each seed orders the units of a layer once, so that its larger draws contain its smaller ones.
WITH wanted AS (
    SELECT s.size, n.layer_id, count(*) AS n
    FROM unnest(%(sizes)s::int[]) AS s (size)
    JOIN ablation_plan_neurons p ON p.plan_id = %(plan)s AND p.rank <= s.size
    JOIN neurons n ON n.id = p.neuron_id
    GROUP BY s.size, n.layer_id
), shuffled AS (
    SELECT e.seed, l.id AS layer_id, l.name, l.position, n.unit,
           row_number() OVER (
               PARTITION BY e.seed, l.id ORDER BY md5(e.seed || l.name || '#' || n.unit) COLLATE "C", n.unit
           ) AS place
    FROM unnest(%(seeds)s::text[]) AS e (seed)
    CROSS JOIN layers l
    JOIN neurons n ON n.layer_id = l.id
    WHERE l.id IN (SELECT layer_id FROM wanted)
)
SELECT w.size, s.seed::bigint AS seed, s.name AS layer, array_agg(s.unit ORDER BY s.unit) AS units
FROM wanted w
JOIN shuffled s ON s.layer_id = w.layer_id AND s.place <= w.n
GROUP BY w.size, s.seed, s.layer_id, s.name, s.position
ORDER BY w.size, s.seed::bigint, s.position;

-- copy_known_ablations: outcomes of plans that were measured on the same clips already, in another experiment or for another target.
INSERT INTO ablations (
    experiment_id, plan_id, strategy, target_unit, seed, n_neurons, n_parameters, n_clips, logit_before, logit_after,
    probability_before, probability_after, accuracy_before, accuracy_after
)
SELECT %(experiment)s, u.plan_id, u.strategy, u.target_unit, u.seed, k.n_neurons, k.n_parameters, k.n_clips, k.logit_before,
       k.logit_after, k.probability_before, k.probability_after, k.accuracy_before, k.accuracy_after
FROM unnest(%(plans)s::bigint[], %(strategies)s::text[], %(targets)s::int[], %(seeds)s::bigint[])
     AS u (plan_id, strategy, target_unit, seed)
JOIN LATERAL (
    SELECT a.*
    FROM ablations a
    JOIN experiments x ON x.id = a.experiment_id AND x.kind = 'unlearning'
    JOIN recipes r ON r.id = x.recipe_id
    WHERE a.plan_id = u.plan_id
      AND r.params -> 'clips' = (
          SELECT s.params -> 'clips' FROM experiments o JOIN recipes s ON s.id = o.recipe_id WHERE o.id = %(experiment)s
      )
    ORDER BY a.id
    LIMIT 1
) k ON true
ON CONFLICT DO NOTHING;

-- measured_units: what of an experiment is there already.
SELECT strategy, target_unit, size, share, seed, id
FROM ablations
WHERE experiment_id = %(experiment)s;

-- unlearning_experiments: the experiments of a kind on a dissection: those with most target classes first, then the latest.
SELECT x.id, x.status, x.figures, r.params, count(DISTINCT a.target_unit) AS n_targets, count(a.id) AS n_ablations,
       array_agg(DISTINCT a.strategy) AS strategies
FROM experiments x
JOIN recipes r ON r.id = x.recipe_id
JOIN ablations a ON a.experiment_id = x.id
WHERE x.dissection_id = %(dissection)s AND x.kind = %(kind)s
GROUP BY x.id, r.id
ORDER BY count(DISTINCT a.target_unit) DESC, greatest(x.completed_at, max(a.created_at)) DESC, x.id DESC;

-- target_changes: dA, dR and gap of each target class, by strategy and seed.
SELECT strategy, target, seed, n_neurons, d_a, d_r, gap
FROM ablation_overview
WHERE experiment_id = %(experiment)s AND target IS NOT NULL AND d_a IS NOT NULL
ORDER BY strategy, target_unit, seed;

-- table_4: by strategy: mean number of neurons ablated, dA, dR, dR - dA, accuracies; over the seeds of a class first, then over classes.
SELECT strategy, count(*) AS targets, max(seeds) AS seeds, count(*) FILTER (WHERE neurons = 0) AS empty_plans,
       avg(neurons)::float8 AS neurons, avg(parameters)::float8 AS parameters, avg(d_a) AS d_a, avg(d_r) AS d_r,
       avg(gap) AS gap, avg(target_before) AS target_accuracy_before, avg(target_after) AS target_accuracy_after,
       avg(rest_before) AS rest_accuracy_before, avg(rest_after) AS rest_accuracy_after
FROM (
    SELECT strategy, target_unit, count(*) AS seeds, avg(n_neurons) AS neurons, avg(n_parameters) AS parameters,
           avg(d_a) AS d_a, avg(d_r) AS d_r, avg(gap) AS gap,
           avg(target_accuracy_before) AS target_before, avg(target_accuracy_after) AS target_after,
           avg(rest_accuracy_before) AS rest_before, avg(rest_accuracy_after) AS rest_after
    FROM ablation_overview
    WHERE experiment_id = %(experiment)s AND target IS NOT NULL AND d_a IS NOT NULL
    GROUP BY strategy, target_unit
) per_class
GROUP BY strategy
ORDER BY array_position(
    ARRAY['random', 'random_matched', 'closed_tab', 'closed_db', 'closed_icl', 'meaning', 'open'], strategy
);

-- ablation_rows: ablations by number, or those of plans on a dissection.
SELECT ablation_id, strategy, concept, target IS NOT NULL AS is_class, size, seed, n_neurons, n_parameters, d_a, d_r, gap,
       target_accuracy_before, target_accuracy_after, rest_accuracy_before, rest_accuracy_after, plan_id, experiment_id
FROM ablation_overview
WHERE CASE
          WHEN %(ids)s::bigint[] IS NOT NULL THEN ablation_id = ANY (%(ids)s)
          ELSE dissection_id = %(dissection)s AND kind = ANY (%(kinds)s) AND plan_id IS NOT NULL
      END
  AND (%(concept)s::text IS NULL
       OR lower(regexp_replace(concept, '[\s_/-]+', ' ', 'g')) = lower(regexp_replace(%(concept)s, '[\s_/-]+', ' ', 'g')))
  AND (%(strategy)s::text IS NULL OR strategy = %(strategy)s)
ORDER BY coalesce(array_position(%(ids)s::bigint[], ablation_id), 0), strategy, target_unit, concept, size, seed, ablation_id;

-- ablation_by_class: what one ablation does to each class, the target first, then the most affected.
SELECT class_name AS class, is_target, n_clips AS clips, logit_before, logit_after, logit_change, probability_before,
       probability_after, probability_change, accuracy_before, accuracy_after
FROM ablation_classes
WHERE ablation_id = %(ablation)s
ORDER BY is_target DESC, logit_change NULLS LAST, unit;

-- one_ablation: one ablation, with names.
SELECT *
FROM ablation_overview
WHERE ablation_id = %(ablation)s;

-- sweep_points: for each target and size: the plan's first neurons beside the random draws that have as many in each layer.
WITH measured AS MATERIALIZED (
    -- Unnested once for each ablation, whatever the planner knows of how many there are.
    SELECT * FROM ablation_overview WHERE experiment_id = %(experiment)s
)
SELECT c.concept, c.target, c.target_unit, c.size, c.size = p.n_neurons AS whole_plan, c.ablation_id, c.n_neurons, c.n_parameters,
       c.d_a, c.d_r, c.gap, count(r.ablation_id) AS draws,
       avg(r.d_a) AS draws_d_a,
       percentile_cont(0.025) WITHIN GROUP (ORDER BY r.d_a) AS draws_d_a_low,
       percentile_cont(0.975) WITHIN GROUP (ORDER BY r.d_a) AS draws_d_a_high,
       avg(r.d_r) AS draws_d_r,
       percentile_cont(0.025) WITHIN GROUP (ORDER BY r.d_r) AS draws_d_r_low,
       percentile_cont(0.975) WITHIN GROUP (ORDER BY r.d_r) AS draws_d_r_high,
       avg(r.gap) AS draws_gap,
       percentile_cont(0.025) WITHIN GROUP (ORDER BY r.gap) AS draws_gap_low,
       percentile_cont(0.975) WITHIN GROUP (ORDER BY r.gap) AS draws_gap_high,
       c.gap - avg(r.gap) AS margin,
       CASE WHEN count(r.gap) > 0 AND c.gap IS NOT NULL
            THEN (1 + count(*) FILTER (WHERE r.gap >= c.gap))::float8 / (1 + count(r.gap)) END AS p
FROM measured c
JOIN ablation_plans p ON p.id = c.plan_id
LEFT JOIN measured r
  ON r.target_unit IS NOT DISTINCT FROM c.target_unit AND r.size = c.size AND r.strategy = 'random_matched'
WHERE c.strategy = %(strategy)s
GROUP BY c.concept, c.target, c.target_unit, c.size, p.n_neurons, c.ablation_id, c.n_neurons, c.n_parameters, c.d_a, c.d_r, c.gap
ORDER BY c.target_unit, c.size;

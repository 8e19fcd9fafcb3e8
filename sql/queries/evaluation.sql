-- head_units: the units of the head of a dissection: class and calibrated summary.
SELECT n.unit, n.id AS neuron_id, n.class_name, c.summary
FROM dissected_layers x
JOIN layers l ON l.id = x.layer_id AND l.kind = 'head'
JOIN neurons n ON n.layer_id = l.id
LEFT JOIN dissection_recipes k ON k.dissection_id = x.dissection_id AND k.stage = 'calibrate'
LEFT JOIN calibrations c ON c.recipe_id = k.recipe_id AND c.neuron_id = n.id
WHERE x.dissection_id = %(dissection)s
ORDER BY n.unit;

-- head_matches: the best concepts of each unit of the head, by every method and function that was computed.
SELECT c.method, c.similarity, c.speaks, c.neuron_id, c.unit, c.rank, c.concept_id
FROM closed_concepts c
JOIN dissected_layers x ON x.dissection_id = c.dissection_id
JOIN layers l ON l.id = x.layer_id AND l.kind = 'head' AND l.name = c.layer
WHERE c.dissection_id = %(dissection)s
ORDER BY c.method, c.similarity, c.unit, c.rank;

-- last_layer_measures: the measures of an evaluation of the last layer; speaks: by the function that is stated beforehand.
SELECT m.method, m.similarity, coalesce(k.speaks, m.method = 'icl') AS speaks, m.over, m.measure, m.n, m.value, m.low, m.high
FROM last_layer_measures m
JOIN experiments e ON e.id = m.experiment_id
LEFT JOIN dissection_recipes k
  ON k.dissection_id = e.dissection_id AND k.stage = 'match.' || m.method || '.' || m.similarity
WHERE m.experiment_id = %(experiment)s
ORDER BY array_position(ARRAY['icl', 'tab', 'db'], m.method),
         array_position(ARRAY['llm', 'cos', 'cos_cubed', 'rank_reorder', 'wpmi', 'soft_wpmi'], m.similarity),
         m.over, array_position(ARRAY['top_1', 'top_5', 'cosine_sentence', 'cosine_concept'], m.measure);

-- last_layer_names: the concepts that an evaluation found for each class, best first, with the cosines of the first one.
SELECT n.unit, n.class_name, x.method, x.similarity, array_agg(c.name ORDER BY x.rank) AS concepts,
       max(x.cosine_sentence) FILTER (WHERE x.rank = 1) AS cosine_sentence,
       max(x.cosine_concept) FILTER (WHERE x.rank = 1) AS cosine_concept
FROM last_layer_names x
JOIN neurons n ON n.id = x.neuron_id
JOIN concepts c ON c.id = x.concept_id
WHERE x.experiment_id = %(experiment)s
GROUP BY n.unit, n.class_name, x.method, x.similarity
ORDER BY n.unit, x.method, x.similarity;

-- clip_labels: the labels of the clips of a probing set, in order of position; empty where a clip has none.
SELECT m.position, c.labels
FROM probing_set_clips m
JOIN clips c ON c.id = m.clip_id
WHERE m.probing_set_id = %(probing_set)s
ORDER BY m.position;

-- best_concepts: the best concept of each neuron of a layer by the function that speaks, by method.
SELECT r.params ->> 'method' AS method, n.unit, m.concept_id
FROM dissections d
JOIN dissection_recipes k ON k.dissection_id = d.id AND k.speaks
JOIN recipes r ON r.id = k.recipe_id AND r.stage = 'match'
JOIN neurons n ON n.layer_id = %(layer)s
JOIN concept_matches m ON m.recording_id = d.recording_id AND m.recipe_id = k.recipe_id AND m.neuron_id = n.id AND m.rank = 1
WHERE d.id = %(dissection)s
ORDER BY 1, n.unit;

-- summarised_units: the units of a layer whose calibrated summary has a vector, in order.
SELECT n.unit
FROM neurons n
JOIN calibrations c ON c.neuron_id = n.id AND c.recipe_id = %(calibrate_recipe)s
JOIN summary_embeddings e ON e.calibration_id = c.id AND e.encoder_id = %(encoder)s
WHERE n.layer_id = %(layer)s
ORDER BY n.unit;

-- captioned_clips: position and text of the captions of a probing set by one recipe, in order.
SELECT m.position, c.text_id
FROM probing_set_clips m
JOIN captions c ON c.clip_id = m.clip_id AND c.recipe_id = %(caption_recipe)s
WHERE m.probing_set_id = %(probing_set)s
ORDER BY m.position;

-- explanation_layers: scores of an evaluation of explanations, layer by layer; the arrays hold one value per neuron.
SELECT l.name AS layer, l.kind AS layer_kind, l.block, s.explanation, s.reference,
       count(*)::int AS n, count(s.auprc)::int AS n_scored,
       avg(s.auprc) AS mean_auprc, percentile_cont(0.5) WITHIN GROUP (ORDER BY s.auprc) AS median_auprc,
       avg(s.null_auprc) FILTER (WHERE s.auprc IS NOT NULL) AS null_auprc,
       avg(s.pearson) AS mean_pearson, avg(s.f1) AS mean_f1, avg(s.iou) AS mean_iou,
       array_agg(s.auprc ORDER BY n.unit) FILTER (WHERE s.auprc IS NOT NULL) AS auprc,
       array_agg(s.p_auprc ORDER BY n.unit) FILTER (WHERE s.p_auprc IS NOT NULL) AS p
FROM explanation_scores s
JOIN neurons n ON n.id = s.neuron_id
JOIN layers l ON l.id = n.layer_id
WHERE s.experiment_id = %(experiment)s AND (%(layers)s::text[] IS NULL OR l.name = ANY (%(layers)s))
GROUP BY l.position, l.name, l.kind, l.block, s.explanation, s.reference
ORDER BY l.position, array_position(ARRAY['best_label', 'closed_db', 'closed_tab', 'closed_icl', 'summary'], s.explanation),
         s.reference;

-- explanation_neurons: the same neuron by neuron, those with the highest average precision first.
SELECT l.name || '#' || n.unit AS neuron, s.explanation, s.reference, s.concept, s.n_positive,
       s.auprc, s.null_auprc, s.p_auprc, s.pearson, s.null_pearson, s.p_pearson, s.f1, s.null_f1, s.iou, s.null_iou
FROM explanation_scores s
JOIN neurons n ON n.id = s.neuron_id
JOIN layers l ON l.id = n.layer_id
WHERE s.experiment_id = %(experiment)s AND (%(layers)s::text[] IS NULL OR l.name = ANY (%(layers)s))
ORDER BY s.auprc DESC NULLS LAST, l.position, n.unit, s.explanation, s.reference
LIMIT %(n)s;

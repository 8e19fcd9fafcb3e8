DROP VIEW current_neuron_descriptions, neuron_descriptions;

CREATE VIEW neuron_descriptions AS
SELECT d.id AS dissection_id,
       w.name AS network,
       s.name AS dataset,
       l.name || '#' || n.unit AS neuron,
       l.name AS layer,
       l.kind AS layer_kind,
       l.block,
       n.unit,
       n.class_name,
       high.text AS summary,
       low.text AS low_summary,
       cal.summary AS calibrated_summary,
       cal.n_kept AS points_kept,
       cal.n_dropped AS points_dropped,
       cal.support,
       closed.db AS closed_db,
       closed.db_score AS closed_db_score,
       closed.tab AS closed_tab,
       closed.tab_score AS closed_tab_score,
       closed.icl AS closed_icl,
       open.concepts AS open_concepts,
       ex.labels AS exemplar_labels,
       n.id AS neuron_id,
       n.layer_id,
       cal.id AS calibration_id,
       d.recording_id,
       quality.closed_db_auprc,
       quality.closed_db_pearson,
       quality.closed_db_f1,
       quality.closed_db_iou,
       quality.closed_db_p,
       quality.closed_tab_auprc,
       quality.closed_tab_pearson,
       quality.closed_tab_f1,
       quality.closed_tab_iou,
       quality.closed_tab_p,
       quality.closed_icl_auprc,
       quality.closed_icl_pearson,
       quality.closed_icl_f1,
       quality.closed_icl_iou,
       quality.closed_icl_p,
       quality.summary_pearson,
       quality.summary_auprc,
       quality.summary_p,
       quality.best_label,
       quality.best_label_auprc,
       quality.best_label_p
FROM dissections d
JOIN networks w ON w.id = d.network_id
JOIN probing_sets p ON p.id = d.probing_set_id
JOIN datasets s ON s.id = p.dataset_id
JOIN dissected_layers dl ON dl.dissection_id = d.id
JOIN layers l ON l.id = dl.layer_id
JOIN neurons n ON n.layer_id = l.id
LEFT JOIN dissection_recipes kc ON kc.dissection_id = d.id AND kc.stage = 'calibrate'
LEFT JOIN calibrations cal ON cal.recipe_id = kc.recipe_id AND cal.neuron_id = n.id
LEFT JOIN summaries high ON high.id = cal.high_summary_id
LEFT JOIN summaries low ON low.id = cal.low_summary_id
LEFT JOIN LATERAL (
    SELECT max(c.name) FILTER (WHERE k.stage LIKE 'match.db.%') AS db,
           max(m.score) FILTER (WHERE k.stage LIKE 'match.db.%') AS db_score,
           max(c.name) FILTER (WHERE k.stage LIKE 'match.tab.%') AS tab,
           max(m.score) FILTER (WHERE k.stage LIKE 'match.tab.%') AS tab_score,
           max(c.name) FILTER (WHERE k.stage LIKE 'match.icl.%') AS icl
    FROM dissection_recipes k
    JOIN concept_matches m
      ON m.recording_id = d.recording_id AND m.recipe_id = k.recipe_id AND m.neuron_id = n.id AND m.rank = 1
    JOIN concepts c ON c.id = m.concept_id
    WHERE k.dissection_id = d.id AND k.speaks
) closed ON true
LEFT JOIN dissection_recipes kx ON kx.dissection_id = d.id AND kx.stage = 'extract'
LEFT JOIN LATERAL (
    SELECT array_agg(DISTINCT x.term ORDER BY x.term) AS concepts
    FROM neuron_terms t
    JOIN terms x ON x.id = t.term_id
    WHERE t.recipe_id = kx.recipe_id AND t.neuron_id = n.id AND t.is_open_concept
) open ON true
LEFT JOIN LATERAL (
    SELECT array_agg(c.labels[1] ORDER BY x.rank) AS labels
    FROM exemplars e
    CROSS JOIN LATERAL unnest(e.positions[1:d.top_k]) WITH ORDINALITY AS x (position, rank)
    JOIN probing_set_clips m ON m.probing_set_id = d.probing_set_id AND m.position = x.position
    JOIN clips c ON c.id = m.clip_id
    WHERE e.recording_id = d.recording_id AND e.neuron_id = n.id AND e.side = 'high'
) ex ON true
LEFT JOIN LATERAL (
    SELECT x.id
    FROM experiments x
    WHERE x.dissection_id = d.id AND x.kind = 'explanations' AND x.status = 'complete'
    ORDER BY x.completed_at DESC, x.id DESC
    LIMIT 1
) scored ON true
LEFT JOIN LATERAL (
    SELECT max(e.auprc) FILTER (WHERE e.explanation = 'closed_db' AND e.reference = 'labels') AS closed_db_auprc,
           max(e.pearson) FILTER (WHERE e.explanation = 'closed_db' AND e.reference = 'labels') AS closed_db_pearson,
           max(e.f1) FILTER (WHERE e.explanation = 'closed_db' AND e.reference = 'labels') AS closed_db_f1,
           max(e.iou) FILTER (WHERE e.explanation = 'closed_db' AND e.reference = 'labels') AS closed_db_iou,
           max(e.p_auprc) FILTER (WHERE e.explanation = 'closed_db' AND e.reference = 'labels') AS closed_db_p,
           max(e.auprc) FILTER (WHERE e.explanation = 'closed_tab' AND e.reference = 'labels') AS closed_tab_auprc,
           max(e.pearson) FILTER (WHERE e.explanation = 'closed_tab' AND e.reference = 'labels') AS closed_tab_pearson,
           max(e.f1) FILTER (WHERE e.explanation = 'closed_tab' AND e.reference = 'labels') AS closed_tab_f1,
           max(e.iou) FILTER (WHERE e.explanation = 'closed_tab' AND e.reference = 'labels') AS closed_tab_iou,
           max(e.p_auprc) FILTER (WHERE e.explanation = 'closed_tab' AND e.reference = 'labels') AS closed_tab_p,
           max(e.auprc) FILTER (WHERE e.explanation = 'closed_icl' AND e.reference = 'labels') AS closed_icl_auprc,
           max(e.pearson) FILTER (WHERE e.explanation = 'closed_icl' AND e.reference = 'labels') AS closed_icl_pearson,
           max(e.f1) FILTER (WHERE e.explanation = 'closed_icl' AND e.reference = 'labels') AS closed_icl_f1,
           max(e.iou) FILTER (WHERE e.explanation = 'closed_icl' AND e.reference = 'labels') AS closed_icl_iou,
           max(e.p_auprc) FILTER (WHERE e.explanation = 'closed_icl' AND e.reference = 'labels') AS closed_icl_p,
           max(e.pearson) FILTER (WHERE e.explanation = 'summary') AS summary_pearson,
           max(e.auprc) FILTER (WHERE e.explanation = 'summary') AS summary_auprc,
           max(e.p_auprc) FILTER (WHERE e.explanation = 'summary') AS summary_p,
           max(e.concept) FILTER (WHERE e.explanation = 'best_label') AS best_label,
           max(e.auprc) FILTER (WHERE e.explanation = 'best_label') AS best_label_auprc,
           max(e.p_auprc) FILTER (WHERE e.explanation = 'best_label') AS best_label_p
    FROM explanation_scores e
    WHERE e.experiment_id = scored.id AND e.neuron_id = n.id
) quality ON true;

COMMENT ON VIEW neuron_descriptions IS 'What is known of each neuron: one row per neuron and dissection. Quality figures are of the latest complete scoring (andp eval explanations).';
COMMENT ON COLUMN neuron_descriptions.dissection_id IS 'Id of the dissection.';
COMMENT ON COLUMN neuron_descriptions.network IS 'Name of the network.';
COMMENT ON COLUMN neuron_descriptions.dataset IS 'Name of the probing data set.';
COMMENT ON COLUMN neuron_descriptions.neuron IS 'Name of the neuron, e.g. b03.ff_in#17.';
COMMENT ON COLUMN neuron_descriptions.layer IS 'Name of the layer.';
COMMENT ON COLUMN neuron_descriptions.layer_kind IS 'attn_out, ff_in, ff_out, head …';
COMMENT ON COLUMN neuron_descriptions.block IS 'Block, from 0; NULL for the head.';
COMMENT ON COLUMN neuron_descriptions.unit IS 'Unit of the layer, from 0.';
COMMENT ON COLUMN neuron_descriptions.class_name IS 'For units of the head: the class it stands for.';
COMMENT ON COLUMN neuron_descriptions.summary IS 'What its high exemplars have in common (S_h), one point a line.';
COMMENT ON COLUMN neuron_descriptions.low_summary IS 'What its low exemplars have in common (S_l).';
COMMENT ON COLUMN neuron_descriptions.calibrated_summary IS 'The summary without the points that the low summary makes too.';
COMMENT ON COLUMN neuron_descriptions.points_kept IS 'Points of the summary that calibration kept.';
COMMENT ON COLUMN neuron_descriptions.points_dropped IS 'Points of the summary that calibration dropped.';
COMMENT ON COLUMN neuron_descriptions.support IS 'Confidence: share of the K captions that say a kept point, averaged over these.';
COMMENT ON COLUMN neuron_descriptions.closed_db IS 'Best concept by captions; NULL: not computed.';
COMMENT ON COLUMN neuron_descriptions.closed_db_score IS 'Its similarity.';
COMMENT ON COLUMN neuron_descriptions.closed_tab IS 'Best concept by a text-audio encoder; NULL: not computed.';
COMMENT ON COLUMN neuron_descriptions.closed_tab_score IS 'Its similarity.';
COMMENT ON COLUMN neuron_descriptions.closed_icl IS 'Concept picked by an LLM from the summary; NULL: not computed.';
COMMENT ON COLUMN neuron_descriptions.open_concepts IS 'C_open: accepted adjectives, nouns and verbs of the calibrated summary.';
COMMENT ON COLUMN neuron_descriptions.exemplar_labels IS 'Labels of its K high exemplars, most active first.';
COMMENT ON COLUMN neuron_descriptions.neuron_id IS 'Id of the neuron.';
COMMENT ON COLUMN neuron_descriptions.layer_id IS 'Id of the layer.';
COMMENT ON COLUMN neuron_descriptions.calibration_id IS 'Id of the calibration.';
COMMENT ON COLUMN neuron_descriptions.recording_id IS 'Id of the recording.';
COMMENT ON COLUMN neuron_descriptions.closed_db_auprc IS 'Average precision of its activation on the clips that carry the concept by captions as a label; NULL: it is no label, or not scored.';
COMMENT ON COLUMN neuron_descriptions.closed_db_pearson IS 'Pearson correlation of its activation and that label (0/1).';
COMMENT ON COLUMN neuron_descriptions.closed_db_f1 IS 'F1 of its most active clips, as many as carry the label, against those that do.';
COMMENT ON COLUMN neuron_descriptions.closed_db_iou IS 'Intersection over union of the same two sets of clips.';
COMMENT ON COLUMN neuron_descriptions.closed_db_p IS 'Share of permuted activations for which the best of all concepts reaches that average precision; not corrected for many neurons.';
COMMENT ON COLUMN neuron_descriptions.closed_tab_auprc IS 'Average precision of its activation on the clips that carry the concept by sound as a label; NULL: it is no label, or not scored.';
COMMENT ON COLUMN neuron_descriptions.closed_tab_pearson IS 'Pearson correlation of its activation and that label (0/1).';
COMMENT ON COLUMN neuron_descriptions.closed_tab_f1 IS 'F1 of its most active clips, as many as carry the label, against those that do.';
COMMENT ON COLUMN neuron_descriptions.closed_tab_iou IS 'Intersection over union of the same two sets of clips.';
COMMENT ON COLUMN neuron_descriptions.closed_tab_p IS 'Share of permuted activations for which the best of all concepts reaches that average precision; not corrected for many neurons.';
COMMENT ON COLUMN neuron_descriptions.closed_icl_auprc IS 'Average precision of its activation on the clips that carry the concept by an LLM as a label; NULL: it is no label, or not scored.';
COMMENT ON COLUMN neuron_descriptions.closed_icl_pearson IS 'Pearson correlation of its activation and that label (0/1).';
COMMENT ON COLUMN neuron_descriptions.closed_icl_f1 IS 'F1 of its most active clips, as many as carry the label, against those that do.';
COMMENT ON COLUMN neuron_descriptions.closed_icl_iou IS 'Intersection over union of the same two sets of clips.';
COMMENT ON COLUMN neuron_descriptions.closed_icl_p IS 'Share of permuted activations for which the best of all concepts reaches that average precision; not corrected for many neurons.';
COMMENT ON COLUMN neuron_descriptions.summary_pearson IS 'Pearson correlation of its activation and the cosine of caption and calibrated summary, over the clips that it was not made of.';
COMMENT ON COLUMN neuron_descriptions.summary_auprc IS 'Average precision of its activation on the 5 % of these clips (at least K) whose captions are nearest to the calibrated summary.';
COMMENT ON COLUMN neuron_descriptions.summary_p IS 'Share of permuted activations with at least that average precision.';
COMMENT ON COLUMN neuron_descriptions.best_label IS 'The label whose clips its activation separates best; NULL: not scored.';
COMMENT ON COLUMN neuron_descriptions.best_label_auprc IS 'Average precision of its activation on the clips of that label.';
COMMENT ON COLUMN neuron_descriptions.best_label_p IS 'Share of permuted activations for which the best label reaches that average precision.';

CREATE VIEW current_neuron_descriptions AS
SELECT n.*
FROM neuron_descriptions n
WHERE n.dissection_id IN (SELECT o.dissection_id FROM dissection_overview o WHERE o.is_current);

COMMENT ON VIEW current_neuron_descriptions IS 'neuron_descriptions of the current dissection of each network and data set; the columns are described there.';
DO $$
DECLARE
    name text;
    told text;
BEGIN
    FOR name, told IN
        SELECT a.attname, col_description(a.attrelid, a.attnum)
        FROM pg_attribute a
        WHERE a.attrelid = 'neuron_descriptions'::regclass AND a.attnum > 0
    LOOP
        EXECUTE format('COMMENT ON COLUMN current_neuron_descriptions.%I IS %L', name, told);
    END LOOP;
END $$;

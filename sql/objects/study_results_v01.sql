CREATE VIEW study_results AS
SELECT s.id AS study_id,
       s.name AS study,
       w.name AS network,
       d.item,
       l.name || '#' || n.unit AS neuron,
       l.name AS layer,
       l.block,
       d.method,
       d.slot,
       d.text AS description,
       rated.n AS n_ratings,
       rated.mean AS rating,
       rated.ratings,
       ARRAY(SELECT x.text FROM study_summaries x WHERE x.study_id = s.id AND x.item = d.item ORDER BY x.rater) AS written,
       i.neuron_id,
       s.dissection_id
FROM studies s
JOIN study_items i ON i.study_id = s.id
JOIN study_descriptions d ON d.study_id = i.study_id AND d.item = i.item
JOIN neurons n ON n.id = i.neuron_id
JOIN layers l ON l.id = n.layer_id
JOIN networks w ON w.id = l.network_id
CROSS JOIN LATERAL (
    SELECT count(*)::int AS n, avg(r.rating)::float AS mean, array_agg(r.rating ORDER BY r.rater) AS ratings
    FROM study_ratings r
    WHERE r.study_id = d.study_id AND r.item = d.item AND r.slot = d.slot
) rated;

COMMENT ON VIEW study_results IS 'What people say of each description in a study: one row per neuron and method.';
COMMENT ON COLUMN study_results.study_id IS 'Id of the study.';
COMMENT ON COLUMN study_results.study IS 'Name of the study.';
COMMENT ON COLUMN study_results.network IS 'Name of the network.';
COMMENT ON COLUMN study_results.item IS 'Place of the neuron in the study, from 1.';
COMMENT ON COLUMN study_results.neuron IS 'Name of the neuron, e.g. b03.ff_in#17.';
COMMENT ON COLUMN study_results.layer IS 'Name of the layer.';
COMMENT ON COLUMN study_results.block IS 'Block, from 0; NULL for the head.';
COMMENT ON COLUMN study_results.method IS 'closed_db, closed_tab, closed_icl or summary.';
COMMENT ON COLUMN study_results.slot IS 'What raters saw in place of the method: A, B, C …';
COMMENT ON COLUMN study_results.description IS 'The description as it was shown.';
COMMENT ON COLUMN study_results.n_ratings IS 'Ratings given: one a rater.';
COMMENT ON COLUMN study_results.rating IS 'Their mean, 1 to 5; NULL: not rated yet.';
COMMENT ON COLUMN study_results.ratings IS 'The ratings, in order of the raters'' codes.';
COMMENT ON COLUMN study_results.written IS 'What raters wrote of the clips before they saw the descriptions.';
COMMENT ON COLUMN study_results.neuron_id IS 'Id of the neuron.';
COMMENT ON COLUMN study_results.dissection_id IS 'Id of the dissection.';

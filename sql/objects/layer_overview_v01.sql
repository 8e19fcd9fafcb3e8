CREATE VIEW layer_overview AS
SELECT d.id AS dissection_id,
       w.name AS network,
       l.name AS layer,
       l.kind AS layer_kind,
       l.block,
       l.position,
       l.n_units,
       st.n_constant,
       ca.n_described,
       ca.mean_kept,
       ca.mean_dropped,
       ca.mean_support,
       te.mean_open_concepts,
       te.mean_adjectives,
       top.concept AS commonest_closed_db,
       top.n AS commonest_closed_db_neurons
FROM dissections d
JOIN networks w ON w.id = d.network_id
JOIN dissected_layers dl ON dl.dissection_id = d.id
JOIN layers l ON l.id = dl.layer_id
LEFT JOIN dissection_recipes kc ON kc.dissection_id = d.id AND kc.stage = 'calibrate'
LEFT JOIN dissection_recipes kx ON kx.dissection_id = d.id AND kx.stage = 'extract'
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE x.min = x.max) AS n_constant
    FROM neuron_statistics x
    JOIN neurons n ON n.id = x.neuron_id
    WHERE x.recording_id = d.recording_id AND n.layer_id = l.id
) st ON true
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE c.n_kept > 0) AS n_described,
           avg(c.n_kept)::real AS mean_kept,
           avg(c.n_dropped)::real AS mean_dropped,
           avg(c.support)::real AS mean_support
    FROM neurons n
    JOIN calibrations c ON c.neuron_id = n.id AND c.recipe_id = kc.recipe_id
    WHERE n.layer_id = l.id
) ca ON true
LEFT JOIN LATERAL (
    SELECT (count(*) FILTER (WHERE t.is_open_concept))::real / l.n_units AS mean_open_concepts,
           (count(*) FILTER (WHERE t.is_open_concept AND x.part_of_speech = 'adjective'))::real / l.n_units
               AS mean_adjectives
    FROM neurons n
    JOIN neuron_terms t ON t.neuron_id = n.id AND t.recipe_id = kx.recipe_id
    JOIN terms x ON x.id = t.term_id
    WHERE n.layer_id = l.id
) te ON true
LEFT JOIN LATERAL (
    SELECT c.name AS concept, count(*) AS n
    FROM dissection_recipes k
    JOIN concept_matches m ON m.recording_id = d.recording_id AND m.recipe_id = k.recipe_id AND m.rank = 1
    JOIN neurons n ON n.id = m.neuron_id AND n.layer_id = l.id
    JOIN concepts c ON c.id = m.concept_id
    WHERE k.dissection_id = d.id AND k.speaks AND k.stage LIKE 'match.db.%'
    GROUP BY c.name
    ORDER BY count(*) DESC, c.name
    LIMIT 1
) top ON true;

COMMENT ON VIEW layer_overview IS 'One row per layer and dissection: how many neurons could be described, and with what.';
COMMENT ON COLUMN layer_overview.dissection_id IS 'Id of the dissection.';
COMMENT ON COLUMN layer_overview.network IS 'Name of the network.';
COMMENT ON COLUMN layer_overview.layer IS 'Name of the layer.';
COMMENT ON COLUMN layer_overview.layer_kind IS 'attn_out, ff_in, ff_out, head …';
COMMENT ON COLUMN layer_overview.block IS 'Block, from 0; NULL for the head.';
COMMENT ON COLUMN layer_overview.position IS 'Place in the network, in order of computation.';
COMMENT ON COLUMN layer_overview.n_units IS 'Neurons of the layer.';
COMMENT ON COLUMN layer_overview.n_constant IS 'Neurons with the same activation on every clip: nothing can be said of them.';
COMMENT ON COLUMN layer_overview.n_described IS 'Neurons whose calibrated summary has a point.';
COMMENT ON COLUMN layer_overview.mean_kept IS 'Points kept by calibration, mean per neuron.';
COMMENT ON COLUMN layer_overview.mean_dropped IS 'Points dropped by calibration, mean per neuron.';
COMMENT ON COLUMN layer_overview.mean_support IS 'Confidence: mean share of the K captions that say a kept point.';
COMMENT ON COLUMN layer_overview.mean_open_concepts IS 'Open concepts per neuron.';
COMMENT ON COLUMN layer_overview.mean_adjectives IS 'Accepted adjectives per neuron (Figure 5 of the paper).';
COMMENT ON COLUMN layer_overview.commonest_closed_db IS 'The concept that most neurons have as closed_db.';
COMMENT ON COLUMN layer_overview.commonest_closed_db_neurons IS 'How many have it.';

CREATE VIEW neuron_word_counts AS
SELECT d.id AS dissection_id,
       w.name AS network,
       l.name || '#' || n.unit AS neuron,
       l.name AS layer,
       l.kind AS layer_kind,
       l.block,
       n.unit,
       count(x.id) FILTER (WHERE x.part_of_speech = 'noun') AS n_nouns,
       count(x.id) FILTER (WHERE x.part_of_speech = 'adjective' AND t.is_open_concept) AS n_adjectives,
       count(x.id) FILTER (WHERE x.part_of_speech = 'verb') AS n_verbs,
       count(x.id) FILTER (WHERE x.part_of_speech = 'preposition') AS n_prepositions,
       regexp_count(coalesce(cal.summary, ''), '\S+') AS n_words,
       n.id AS neuron_id
FROM dissections d
JOIN networks w ON w.id = d.network_id
JOIN dissected_layers dl ON dl.dissection_id = d.id
JOIN layers l ON l.id = dl.layer_id
JOIN neurons n ON n.layer_id = l.id
LEFT JOIN dissection_recipes kc ON kc.dissection_id = d.id AND kc.stage = 'calibrate'
LEFT JOIN calibrations cal ON cal.recipe_id = kc.recipe_id AND cal.neuron_id = n.id
LEFT JOIN dissection_recipes kx ON kx.dissection_id = d.id AND kx.stage = 'extract'
LEFT JOIN neuron_terms t ON t.recipe_id = kx.recipe_id AND t.neuron_id = n.id
LEFT JOIN terms x ON x.id = t.term_id
GROUP BY d.id, w.id, l.id, n.id, cal.id;

COMMENT ON VIEW neuron_word_counts IS 'Distinct words of each neuron''s calibrated summary by part of speech (Figures 4 and 5 of the paper); 0 where the summary is empty.';
COMMENT ON COLUMN neuron_word_counts.dissection_id IS 'Id of the dissection.';
COMMENT ON COLUMN neuron_word_counts.network IS 'Name of the network.';
COMMENT ON COLUMN neuron_word_counts.neuron IS 'Name of the neuron, e.g. b03.ff_in#17.';
COMMENT ON COLUMN neuron_word_counts.layer IS 'Name of the layer.';
COMMENT ON COLUMN neuron_word_counts.layer_kind IS 'attn_out, ff_in, ff_out, head …';
COMMENT ON COLUMN neuron_word_counts.block IS 'Block, from 0; NULL for the head.';
COMMENT ON COLUMN neuron_word_counts.unit IS 'Unit of the layer, from 0.';
COMMENT ON COLUMN neuron_word_counts.n_nouns IS 'Distinct nouns.';
COMMENT ON COLUMN neuron_word_counts.n_adjectives IS 'Distinct adjectives that the judge accepted.';
COMMENT ON COLUMN neuron_word_counts.n_verbs IS 'Distinct verbs.';
COMMENT ON COLUMN neuron_word_counts.n_prepositions IS 'Distinct prepositions.';
COMMENT ON COLUMN neuron_word_counts.n_words IS 'Length of the calibrated summary in words, as spaces and line ends part them.';
COMMENT ON COLUMN neuron_word_counts.neuron_id IS 'Id of the neuron.';

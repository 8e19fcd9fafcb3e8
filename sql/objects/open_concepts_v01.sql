CREATE VIEW open_concepts AS
SELECT d.id AS dissection_id,
       w.name AS network,
       l.name AS layer,
       l.block,
       n.unit,
       l.name || '#' || n.unit AS neuron,
       t.neuron_id,
       x.term,
       x.part_of_speech,
       t.occurrences,
       t.is_open_concept,
       v.score AS verdict_score,
       v.reason AS verdict_reason,
       t.term_id
FROM dissections d
JOIN dissection_recipes k ON k.dissection_id = d.id AND k.stage = 'extract'
JOIN neuron_terms t ON t.recipe_id = k.recipe_id
JOIN terms x ON x.id = t.term_id
JOIN neurons n ON n.id = t.neuron_id
JOIN dissected_layers dl ON dl.dissection_id = d.id AND dl.layer_id = n.layer_id
JOIN layers l ON l.id = n.layer_id
JOIN networks w ON w.id = l.network_id
LEFT JOIN dissection_recipes j ON j.dissection_id = d.id AND j.stage = 'judge'
LEFT JOIN term_verdicts v ON v.recipe_id = j.recipe_id AND v.term_id = t.term_id;

COMMENT ON VIEW open_concepts IS 'Module C: the terms of each neuron''s calibrated summary.';
COMMENT ON COLUMN open_concepts.dissection_id IS 'Id of the dissection.';
COMMENT ON COLUMN open_concepts.network IS 'Name of the network.';
COMMENT ON COLUMN open_concepts.layer IS 'Name of the layer.';
COMMENT ON COLUMN open_concepts.block IS 'Block, from 0; NULL for the head.';
COMMENT ON COLUMN open_concepts.unit IS 'Unit of the layer, from 0.';
COMMENT ON COLUMN open_concepts.neuron IS 'Name of the neuron, e.g. b03.ff_in#17.';
COMMENT ON COLUMN open_concepts.neuron_id IS 'Id of the neuron.';
COMMENT ON COLUMN open_concepts.term IS 'Lemma.';
COMMENT ON COLUMN open_concepts.part_of_speech IS 'adjective, noun, verb or preposition.';
COMMENT ON COLUMN open_concepts.occurrences IS 'How often the summary uses it.';
COMMENT ON COLUMN open_concepts.is_open_concept IS 'True if it is in C_open: nouns, verbs, and adjectives that were accepted.';
COMMENT ON COLUMN open_concepts.verdict_score IS 'For adjectives: score of the judge.';
COMMENT ON COLUMN open_concepts.verdict_reason IS 'For adjectives: why it was accepted or not.';
COMMENT ON COLUMN open_concepts.term_id IS 'Id of the term.';

CREATE VIEW adjective_counts AS
SELECT d.id AS dissection_id,
       w.name AS network,
       x.term AS adjective,
       count(*) AS n_neurons,
       sum(t.occurrences) AS n_occurrences,
       (count(*)::float8 / a.n)::real AS share
FROM dissections d
JOIN networks w ON w.id = d.network_id
JOIN dissection_recipes k ON k.dissection_id = d.id AND k.stage = 'extract'
JOIN neuron_terms t ON t.recipe_id = k.recipe_id AND t.is_open_concept
JOIN terms x ON x.id = t.term_id AND x.part_of_speech = 'adjective'
JOIN neurons n ON n.id = t.neuron_id
JOIN dissected_layers dl ON dl.dissection_id = d.id AND dl.layer_id = n.layer_id
CROSS JOIN LATERAL (
    SELECT sum(l.n_units) AS n
    FROM dissected_layers y
    JOIN layers l ON l.id = y.layer_id
    WHERE y.dissection_id = d.id
) a
GROUP BY d.id, w.name, x.term, a.n;

COMMENT ON VIEW adjective_counts IS 'How many neurons have each adjective in C_open (Figures 3 and 9 of the paper); the head counts too.';
COMMENT ON COLUMN adjective_counts.dissection_id IS 'Id of the dissection.';
COMMENT ON COLUMN adjective_counts.network IS 'Name of the network.';
COMMENT ON COLUMN adjective_counts.adjective IS 'The adjective, one that the judge accepted.';
COMMENT ON COLUMN adjective_counts.n_neurons IS 'Neurons that have it in C_open.';
COMMENT ON COLUMN adjective_counts.n_occurrences IS 'How often their calibrated summaries use it.';
COMMENT ON COLUMN adjective_counts.share IS 'Share of all neurons of the dissection that have it, 0 to 1.';

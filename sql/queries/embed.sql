-- insert_summary_embeddings: a summary's vector is the normalised mean of its kept points' vectors, which are there already.
INSERT INTO summary_embeddings (encoder_id, calibration_id, embedding)
SELECT %(encoder)s, c.id, l2_normalize(avg(e.embedding))
FROM calibrations c
JOIN neurons n ON n.id = c.neuron_id
JOIN calibrated_points p ON p.calibration_id = c.id AND p.kept
JOIN summary_points sp ON sp.summary_id = c.high_summary_id AND sp.ordinal = p.ordinal
JOIN text_embeddings e ON e.text_id = sp.text_id AND e.encoder_id = %(encoder)s
WHERE c.recipe_id = %(calibrate_recipe)s AND n.layer_id = %(layer)s
  AND NOT EXISTS (SELECT FROM summary_embeddings s WHERE s.encoder_id = %(encoder)s AND s.calibration_id = c.id)
GROUP BY c.id
ORDER BY c.id
ON CONFLICT (encoder_id, calibration_id) DO NOTHING;

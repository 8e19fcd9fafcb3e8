CREATE VIEW calibrated_summary_points AS
SELECT c.recipe_id,
       l.name || '#' || n.unit AS neuron,
       c.neuron_id,
       p.ordinal,
       t.text AS point,
       p.kept,
       lt.text AS nearest_low_point,
       p.cosine,
       p.support,
       c.id AS calibration_id
FROM calibrations c
JOIN calibrated_points p ON p.calibration_id = c.id
JOIN summary_points sp ON sp.summary_id = c.high_summary_id AND sp.ordinal = p.ordinal
JOIN texts t ON t.id = sp.text_id
JOIN neurons n ON n.id = c.neuron_id
JOIN layers l ON l.id = n.layer_id
LEFT JOIN summary_points lp ON lp.summary_id = c.low_summary_id AND lp.ordinal = p.nearest_low_ordinal
LEFT JOIN texts lt ON lt.id = lp.text_id;

COMMENT ON VIEW calibrated_summary_points IS 'Module B: every point of the high summaries, kept or dropped, with the low point nearest to it.';
COMMENT ON COLUMN calibrated_summary_points.recipe_id IS 'Calibrate recipe.';
COMMENT ON COLUMN calibrated_summary_points.neuron IS 'Name of the neuron, e.g. b03.ff_in#17.';
COMMENT ON COLUMN calibrated_summary_points.neuron_id IS 'Id of the neuron.';
COMMENT ON COLUMN calibrated_summary_points.ordinal IS 'Place of the point in the summary, from 0.';
COMMENT ON COLUMN calibrated_summary_points.point IS 'The point.';
COMMENT ON COLUMN calibrated_summary_points.kept IS 'False: dropped, because the low point says the same.';
COMMENT ON COLUMN calibrated_summary_points.nearest_low_point IS 'The low point nearest to it.';
COMMENT ON COLUMN calibrated_summary_points.cosine IS 'Cosine of the two.';
COMMENT ON COLUMN calibrated_summary_points.support IS 'How many of the K captions say it.';
COMMENT ON COLUMN calibrated_summary_points.calibration_id IS 'Id of the calibration.';

-- untagged_points: the distinct kept points of some layers that a tagger has not seen.
SELECT t.id, t.text
FROM texts t
WHERE t.id IN (
    SELECT sp.text_id
    FROM calibrations c
    JOIN neurons n ON n.id = c.neuron_id
    JOIN calibrated_points p ON p.calibration_id = c.id AND p.kept
    JOIN summary_points sp ON sp.summary_id = c.high_summary_id AND sp.ordinal = p.ordinal
    WHERE c.recipe_id = %(calibrate_recipe)s AND n.layer_id = ANY (%(layers)s)
)
AND NOT EXISTS (SELECT FROM text_tags g WHERE g.recipe_id = %(tag_recipe)s AND g.text_id = t.id)
ORDER BY t.id;

-- unjudged_adjectives: every adjective that a tagger has found in kept points of some layers and a judge has not seen.
SELECT x.id, x.term
FROM terms x
WHERE x.part_of_speech = 'adjective'
  AND x.id IN (
    SELECT unnest(g.terms)
    FROM text_tags g
    WHERE g.recipe_id = %(tag_recipe)s AND g.text_id IN (
        SELECT sp.text_id
        FROM calibrations c
        JOIN neurons n ON n.id = c.neuron_id
        JOIN calibrated_points p ON p.calibration_id = c.id AND p.kept
        JOIN summary_points sp ON sp.summary_id = c.high_summary_id AND sp.ordinal = p.ordinal
        WHERE c.recipe_id = %(calibrate_recipe)s AND n.layer_id = ANY (%(layers)s)
    )
)
  AND NOT EXISTS (SELECT FROM term_verdicts v WHERE v.recipe_id = %(judge_recipe)s AND v.term_id = x.id)
ORDER BY x.term;

-- insert_neuron_terms: count the terms of the kept points of a layer's neurons; C_open are nouns, verbs and accepted adjectives.
INSERT INTO neuron_terms (recipe_id, neuron_id, term_id, occurrences, is_open_concept)
SELECT %(recipe)s, q.neuron_id, q.term_id, q.occurrences,
       x.part_of_speech IN ('noun', 'verb') OR (x.part_of_speech = 'adjective' AND coalesce(v.accepted, false))
FROM (
    SELECT c.neuron_id, term_id, count(*)::int AS occurrences
    FROM calibrations c
    JOIN neurons n ON n.id = c.neuron_id
    JOIN calibrated_points p ON p.calibration_id = c.id AND p.kept
    JOIN summary_points sp ON sp.summary_id = c.high_summary_id AND sp.ordinal = p.ordinal
    JOIN text_tags g ON g.text_id = sp.text_id AND g.recipe_id = %(tag_recipe)s
    CROSS JOIN LATERAL unnest(g.terms) AS term_id
    WHERE c.recipe_id = %(calibrate_recipe)s AND n.layer_id = %(layer)s
    GROUP BY c.neuron_id, term_id
) q
JOIN terms x ON x.id = q.term_id
LEFT JOIN term_verdicts v ON v.term_id = q.term_id AND v.recipe_id = %(judge_recipe)s
ORDER BY q.neuron_id, q.term_id  -- two processes must not wait for each other's rows
ON CONFLICT (recipe_id, neuron_id, term_id) DO UPDATE
SET occurrences = excluded.occurrences, is_open_concept = excluded.is_open_concept;

CREATE FUNCTION match_concepts(
    recording bigint,
    concept_set text,
    similarity text DEFAULT 'cos_cubed',
    k integer DEFAULT 5,
    method text DEFAULT 'db',
    layer text DEFAULT NULL
)
RETURNS TABLE (neuron_id bigint, rank integer, concept text, score real)
LANGUAGE plpgsql STABLE
AS $$
#variable_conflict use_column
DECLARE
    p scorings;
BEGIN
    SELECT s.* INTO p
    FROM scorings s
    JOIN recordings r ON r.probing_set_id = s.probing_set_id
    JOIN concept_sets c ON c.id = s.concept_set_id
    WHERE r.id = match_concepts.recording AND c.name = match_concepts.concept_set AND s.method = match_concepts.method
    ORDER BY s.id DESC
    LIMIT 1;
    IF p.id IS NULL THEN
        RAISE EXCEPTION 'no % scores of concept set % for recording %', match_concepts.method,
            quote_literal(match_concepts.concept_set), match_concepts.recording
            USING HINT = 'run: andp dissect NETWORK --concepts ' || match_concepts.concept_set;
    END IF;
    IF cardinality(p.missing) > 0 THEN
        RAISE EXCEPTION '% clips have no score (no caption), and vectors cannot leave them out', cardinality(p.missing)
            USING HINT = 'use the concept_matches that andp dissect computed: it leaves those clips out';
    END IF;

    -- A constant neuron (min = max) has no score: which clips move it most would be decided by their position alone.
    IF similarity = 'cos' THEN
        RETURN QUERY
        SELECT q.neuron_id, q.place::int, c.name, q.similarity::real
        FROM (
            SELECT g.*, row_number() OVER (PARTITION BY g.neuron_id ORDER BY g.similarity DESC, g.position) AS place
            FROM (
                SELECT a.neuron_id, s.concept_id, c.position,
                       -sum(a.values::vector <#> s.scores)
                           / (sqrt(sum(l2_norm(a.values) ^ 2)) * greatest(sqrt(sum(vector_norm(s.scores) ^ 2)), 1e-12))
                           AS similarity
                FROM activations a
                JOIN neuron_statistics x ON x.recording_id = a.recording_id AND x.neuron_id = a.neuron_id AND x.min < x.max
                JOIN clip_concept_scores s ON s.stretch = a.stretch AND s.scoring_id = p.id
                JOIN concepts c ON c.id = s.concept_id
                WHERE a.recording_id = match_concepts.recording
                  AND (match_concepts.layer IS NULL OR a.neuron_id IN (
                      SELECT n.id FROM neurons n JOIN layers l ON l.id = n.layer_id WHERE l.name = match_concepts.layer))
                GROUP BY a.neuron_id, s.concept_id, c.position
            ) g
        ) q
        JOIN concepts c ON c.id = q.concept_id
        WHERE q.place <= k
        ORDER BY q.neuron_id, q.place;
    ELSIF similarity = 'cos_cubed' THEN
        IF NOT EXISTS (SELECT FROM activation_cubes a WHERE a.recording_id = match_concepts.recording) THEN
            RAISE EXCEPTION 'recording % keeps no cubed activations', match_concepts.recording
                USING HINT = 'set ANDP_MATERIALISE_CUBES=true and record again, or use the concept_matches of a dissection';
        END IF;
        RETURN QUERY
        SELECT q.neuron_id, q.place::int, c.name, q.similarity::real
        FROM (
            SELECT g.*, row_number() OVER (PARTITION BY g.neuron_id ORDER BY g.similarity DESC, g.position) AS place
            FROM (
                SELECT a.neuron_id, s.concept_id, c.position, -sum(a.values <#> s.cubed) AS similarity
                FROM activation_cubes a
                JOIN neuron_statistics x ON x.recording_id = a.recording_id AND x.neuron_id = a.neuron_id AND x.min < x.max
                JOIN clip_concept_scores s ON s.stretch = a.stretch AND s.scoring_id = p.id
                JOIN concepts c ON c.id = s.concept_id
                WHERE a.recording_id = match_concepts.recording
                  AND (match_concepts.layer IS NULL OR a.neuron_id IN (
                      SELECT n.id FROM neurons n JOIN layers l ON l.id = n.layer_id WHERE l.name = match_concepts.layer))
                GROUP BY a.neuron_id, s.concept_id, c.position
            ) g
        ) q
        JOIN concepts c ON c.id = q.concept_id
        WHERE q.place <= k
        ORDER BY q.neuron_id, q.place;
    ELSE
        RAISE EXCEPTION 'match_concepts knows cos and cos_cubed, not %', quote_literal(similarity)
            USING HINT = 'the other functions are computed by: andp dissect --similarity';
    END IF;
END $$;

COMMENT ON FUNCTION match_concepts IS
'Closed-set matching in vector SQL: the k best concepts of each neuron of a recording, by cosine (cos) or by cubed cosine (cos_cubed), over the latest scores of that concept set and method. Neurons with the same activation on every clip have no row. Restrict to one layer with layer => name.';

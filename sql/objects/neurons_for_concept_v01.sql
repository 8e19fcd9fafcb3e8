CREATE FUNCTION neurons_for_concept(
    concept text,
    strategy text DEFAULT 'open',
    network text DEFAULT NULL,
    dissection bigint DEFAULT NULL,
    words text DEFAULT 'any',
    top integer DEFAULT 3,
    max_results integer DEFAULT NULL
)
RETURNS TABLE (
    neuron_id bigint, neuron_network text, neuron text, layer text, block integer, unit integer,
    rank integer, score real, why text, dissection_id bigint
)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    stems text[];
    phrase tsquery := phraseto_tsquery('english', replace(replace(concept, '_', ' '), '-', ' '));
    wanted text := lower(btrim(regexp_replace(replace(replace(concept, '_', ' '), '-', ' '), '\s+', ' ', 'g')));
    chosen bigint[];
    enc record;
BEGIN
    IF strategy NOT IN ('open', 'closed_db', 'closed_tab', 'closed_icl', 'meaning') THEN
        RAISE EXCEPTION 'unknown strategy %', strategy
            USING HINT = 'one of: open, closed_db, closed_tab, closed_icl, meaning';
    END IF;
    IF words NOT IN ('any', 'all', 'phrase') THEN
        RAISE EXCEPTION 'unknown value % for words', words USING HINT = 'one of: any, all, phrase';
    END IF;
    SELECT array_agg(o.dissection_id) INTO chosen
    FROM dissection_overview o
    WHERE (neurons_for_concept.dissection IS NULL AND o.is_current OR o.dissection_id = neurons_for_concept.dissection)
      AND (neurons_for_concept.network IS NULL OR o.network = neurons_for_concept.network);
    IF chosen IS NULL THEN
        RAISE EXCEPTION 'no complete dissection of network %', coalesce(neurons_for_concept.network, '(any)')
            USING HINT = 'see: SELECT * FROM dissection_overview';
    END IF;

    IF strategy = 'open' AND words = 'phrase' THEN
        RETURN QUERY
        SELECT q.neuron_id, q.network, q.neuron, q.layer, q.block, q.unit,
               (row_number() OVER (ORDER BY q.hit DESC, q.neuron_id))::int, q.hit,
               'summary says: ' || q.headline, q.dissection_id
        FROM (
            SELECT c.neuron_id, w.name AS network, l.name || '#' || n.unit AS neuron, l.name AS layer, l.block, n.unit,
                   k.dissection_id, ts_rank(to_tsvector('english', c.summary), phrase) AS hit,
                   ts_headline('english', c.summary, phrase, 'MaxFragments=1, MaxWords=12, MinWords=3') AS headline
            FROM dissection_recipes k
            JOIN calibrations c ON c.recipe_id = k.recipe_id
            JOIN neurons n ON n.id = c.neuron_id
            JOIN dissected_layers dl ON dl.dissection_id = k.dissection_id AND dl.layer_id = n.layer_id
            JOIN layers l ON l.id = n.layer_id
            JOIN networks w ON w.id = l.network_id
            WHERE k.dissection_id = ANY (chosen) AND k.stage = 'calibrate'
              AND to_tsvector('english', c.summary) @@ phrase
        ) q
        ORDER BY 7
        LIMIT max_results;

    ELSIF strategy = 'open' THEN
        -- Content words only: the parser drops 'of', 'the' … and gives stems, as terms.stem has them. A compound
        -- ('high-pitched') is found when all of its parts are among the words asked for.
        stems := tsvector_to_array(to_tsvector('english', wanted));
        RETURN QUERY
        WITH found AS (
            SELECT x.id, x.term, x.stem AS word FROM terms x WHERE x.stem = ANY (stems)
            UNION
            SELECT x.id, x.term, unnest(p.parts)
            FROM terms x
            CROSS JOIN LATERAL tsvector_to_array(to_tsvector('english', replace(x.term, '-', ' '))) AS p (parts)
            WHERE x.term LIKE '%-%' AND p.parts <@ stems
        )
        SELECT q.neuron_id, q.network, q.neuron, q.layer, q.block, q.unit,
               (row_number() OVER (ORDER BY q.n_words DESC, q.n DESC, q.neuron_id))::int,
               (q.n_words::real / greatest(cardinality(stems), 1))::real,
               'terms: ' || q.terms, q.dissection_id
        FROM (
            SELECT o.neuron_id, w.name AS network, l.name || '#' || n.unit AS neuron, l.name AS layer, l.block, n.unit,
                   k.dissection_id, count(DISTINCT x.word) AS n_words, sum(o.occurrences) AS n,
                   string_agg(DISTINCT x.term, ', ' ORDER BY x.term) AS terms
            FROM dissection_recipes k
            JOIN neuron_terms o ON o.recipe_id = k.recipe_id AND o.is_open_concept
            JOIN found x ON x.id = o.term_id
            JOIN neurons n ON n.id = o.neuron_id
            JOIN dissected_layers dl ON dl.dissection_id = k.dissection_id AND dl.layer_id = n.layer_id
            JOIN layers l ON l.id = n.layer_id
            JOIN networks w ON w.id = l.network_id
            WHERE k.dissection_id = ANY (chosen) AND k.stage = 'extract'
            GROUP BY o.neuron_id, w.name, l.name, l.block, n.unit, k.dissection_id
        ) q
        WHERE words = 'any' OR q.n_words = cardinality(stems)
        ORDER BY 7
        LIMIT max_results;

    ELSIF strategy = 'meaning' THEN
        SELECT e.id, e.dim, e.name, te.embedding INTO enc
        FROM encoders e
        LEFT JOIN LATERAL (
            SELECT m.embedding
            FROM texts t
            JOIN text_embeddings m ON m.text_id = t.id AND m.encoder_id = e.id
            WHERE md5(t.text) IN (md5(concept), md5(wanted))
            LIMIT 1
        ) te ON true
        WHERE EXISTS (
            SELECT
            FROM summary_embeddings s
            JOIN calibrations c ON c.id = s.calibration_id
            JOIN dissection_recipes k
              ON k.recipe_id = c.recipe_id AND k.stage = 'calibrate' AND k.dissection_id = ANY (chosen)
            WHERE s.encoder_id = e.id
        )
        ORDER BY te.embedding IS NULL, e.id
        LIMIT 1;
        IF enc.id IS NULL THEN
            RAISE EXCEPTION 'the summaries of this dissection have no embeddings' USING HINT = 'run: andp dissect';
        END IF;
        IF enc.embedding IS NULL THEN
            RAISE EXCEPTION 'the text % has no embedding by %', quote_literal(concept), enc.name
                USING HINT = format('run: andp neurons --concept %L --strategy meaning', concept);
        END IF;
        -- The index is partial (one per encoder) and filtered by dissection: scan on until enough rows fit.
        PERFORM set_config('hnsw.iterative_scan', 'strict_order', true);
        RETURN QUERY EXECUTE format(
            'SELECT q.neuron_id, w.name, l.name || ''#'' || n.unit, l.name, l.block, n.unit,
                    (row_number() OVER (ORDER BY q.distance, q.neuron_id))::int, (1 - q.distance)::real,
                    ''cosine '' || round((1 - q.distance)::numeric, 2) || '' to: '' || replace(q.summary, E''\n'', '' ''),
                    q.dissection_id
             FROM (
                 SELECT c.neuron_id, c.summary, k.dissection_id,
                        (s.embedding::vector(%1$s)) <=> $1::vector(%1$s) AS distance
                 FROM summary_embeddings s
                 JOIN calibrations c ON c.id = s.calibration_id
                 JOIN dissection_recipes k
                   ON k.recipe_id = c.recipe_id AND k.stage = ''calibrate'' AND k.dissection_id = ANY ($2)
                 JOIN neurons n ON n.id = c.neuron_id
                 JOIN dissected_layers dl ON dl.dissection_id = k.dissection_id AND dl.layer_id = n.layer_id
                 WHERE s.encoder_id = %2$s
                 ORDER BY (s.embedding::vector(%1$s)) <=> $1::vector(%1$s)
                 LIMIT $3
             ) q
             JOIN neurons n ON n.id = q.neuron_id
             JOIN layers l ON l.id = n.layer_id
             JOIN networks w ON w.id = l.network_id
             ORDER BY 7', enc.dim, enc.id)
        USING enc.embedding, chosen, coalesce(max_results, 100);

    ELSE
        RETURN QUERY
        SELECT q.neuron_id, q.network, q.neuron, q.layer, q.block, q.unit,
               (row_number() OVER (ORDER BY q.rank, q.score DESC NULLS LAST, q.neuron_id))::int, q.score,
               'rank ' || q.rank || ' of ' || q.method || ', ' || q.similarity, q.dissection_id
        FROM (
            SELECT c.*
            FROM closed_concepts c
            WHERE c.dissection_id = ANY (chosen) AND c.speaks AND c.method = substr(strategy, 8)
              AND c.concept = wanted AND c.rank <= top
        ) q
        ORDER BY 7
        LIMIT max_results;
    END IF;
END $$;

COMMENT ON FUNCTION neurons_for_concept IS
'The neurons that respond to a concept, best first. strategy: open (the summary''s terms contain its words: any or all of its content words by stem, or words => ''phrase''), closed_db, closed_tab, closed_icl (it is among the neuron''s top concepts), meaning (nearest summaries by vector). network and dissection restrict; without them, the current dissections.';

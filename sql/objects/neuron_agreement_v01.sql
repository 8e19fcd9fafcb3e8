CREATE FUNCTION neuron_agreement(clustering bigint, dissection bigint, ks integer[] DEFAULT '{5,10,20}')
RETURNS TABLE (neuron_id bigint, k integer, agreement integer, cluster integer)
LANGUAGE plpgsql STABLE
SET work_mem = '256MB'
AS $$
#variable_conflict use_column
DECLARE
    c clusterings;
    d dissections;
    wanted integer[];
BEGIN
    SELECT x.* INTO c FROM clusterings x WHERE x.id = neuron_agreement.clustering;
    IF c.id IS NULL THEN
        RAISE EXCEPTION 'no clustering %', neuron_agreement.clustering
            USING HINT = 'see: andp interpretability list';
    END IF;
    SELECT x.* INTO d FROM dissections x WHERE x.id = neuron_agreement.dissection;
    IF d.id IS NULL THEN
        RAISE EXCEPTION 'no dissection %', neuron_agreement.dissection USING HINT = 'see: andp dissections list';
    END IF;
    IF d.probing_set_id <> c.probing_set_id THEN
        RAISE EXCEPTION 'clustering % is of other clips than dissection %', c.id, d.id
            USING HINT = 'run: andp interpretability cluster';
    END IF;
    -- All neurons of a recording have the same number of exemplars: 20, or all clips where there are fewer.
    SELECT array_agg(DISTINCT least(u.k, 62, (
        SELECT cardinality(e.positions) FROM exemplars e WHERE e.recording_id = d.recording_id LIMIT 1
    ))) INTO wanted
    FROM unnest(neuron_agreement.ks) AS u (k)
    WHERE u.k > 0;
    RETURN QUERY
    WITH member AS (
        SELECT DISTINCT m.position, y.cluster
        FROM probing_set_clips m
        JOIN captions a ON a.clip_id = m.clip_id AND a.recipe_id = c.caption_recipe_id
        JOIN caption_sentences s ON s.caption_id = a.id
        JOIN cluster_sentences y ON y.clustering_id = c.id AND y.text_id = s.text_id
        WHERE m.probing_set_id = c.probing_set_id
    ), high AS (
        SELECT e.neuron_id, e.positions
        FROM dissected_layers l
        JOIN neurons n ON n.layer_id = l.layer_id
        JOIN exemplars e ON e.recording_id = d.recording_id AND e.neuron_id = n.id AND e.side = 'high'
        WHERE l.dissection_id = d.id
    ), ranked AS MATERIALIZED (
        -- Unnested on its own, so that it meets the members in one hash join and not neuron by neuron.
        SELECT h.neuron_id, x.position, x.rank::int
        FROM high h
        CROSS JOIN LATERAL unnest(h.positions[:(SELECT max(w) FROM unnest(wanted) AS w)]) WITH ORDINALITY AS x (position, rank)
    ), shared AS MATERIALIZED (
        -- Bit r - 1 of `ranks`: the exemplar of rank r belongs to the cluster. One row serves every K.
        SELECT r.neuron_id, m.cluster, bit_or(1::bigint << (r.rank - 1)) AS ranks
        FROM ranked r
        JOIN member m ON m.position = r.position
        GROUP BY r.neuron_id, m.cluster
    ), best AS (
        -- The larger count first, then the cluster of the lower number: one number holds both.
        SELECT s.neuron_id, q.k,
               max(bit_count((s.ranks & ((1::bigint << q.k) - 1))::bit(64)) * 1000000 - s.cluster) AS both_of
        FROM shared s
        CROSS JOIN unnest(wanted) AS q (k)
        GROUP BY s.neuron_id, q.k
    )
    SELECT h.neuron_id, q.k,
           coalesce((b.both_of + 999999) / 1000000, 0)::int,
           CASE WHEN b.both_of > 0 THEN (b.both_of + 999999) / 1000000 * 1000000 - b.both_of END::int
    FROM high h
    CROSS JOIN unnest(wanted) AS q (k)
    LEFT JOIN best b ON b.neuron_id = h.neuron_id AND b.k = q.k;
END $$;

COMMENT ON FUNCTION neuron_agreement IS
'How much the most active clips of each neuron have in common (paper, 4.5): agreement is the largest number of its K high exemplars whose captions share a cluster of sentences, cluster the one they share (of several the lower number; NULL where agreement is 0). A caption belongs to every cluster that one of its sentences falls into; a clip without a caption to none. A neuron is interpretable at (tau, K) if agreement >= tau. k is K, or the number of exemplars that are kept where that is less.';

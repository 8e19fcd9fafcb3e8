CREATE FUNCTION uninterpretable_neurons(clustering bigint, dissection bigint, ks integer[] DEFAULT '{5,10,20}')
RETURNS TABLE (
    block integer,
    layer_kind text,
    layer text,
    k integer,
    tau integer,
    n_neurons bigint,
    n_uninterpretable bigint,
    share double precision
)
LANGUAGE sql STABLE
AS $$
    WITH counted AS (
        SELECT n.layer_id, a.k, a.agreement, count(*) AS n
        FROM neuron_agreement(
            uninterpretable_neurons.clustering, uninterpretable_neurons.dissection, uninterpretable_neurons.ks
        ) a
        JOIN neurons n ON n.id = a.neuron_id
        GROUP BY n.layer_id, a.k, a.agreement
    )
    SELECT coalesce(
               l.block,
               CASE WHEN l.kind = 'head' THEN (SELECT max(o.block) FROM layers o WHERE o.network_id = l.network_id) END
           ),
           l.kind, l.name, c.k, t.tau,
           sum(c.n)::bigint,
           coalesce(sum(c.n) FILTER (WHERE c.agreement < t.tau), 0)::bigint,
           coalesce(sum(c.n) FILTER (WHERE c.agreement < t.tau), 0)::float / sum(c.n)::float
    FROM counted c
    JOIN layers l ON l.id = c.layer_id
    CROSS JOIN LATERAL generate_series(1, c.k) AS t (tau)
    GROUP BY l.id, c.k, t.tau
    ORDER BY l.position, c.k, t.tau
$$;

COMMENT ON FUNCTION uninterpretable_neurons IS
'Share of uninterpretable neurons by layer for all tau and K (paper, Figures 6 and 11-14): those of whose K high exemplars fewer than tau share a cluster of sentences; see neuron_agreement. The head counts with the last block. block is NULL outside blocks; k is K, or the number of exemplars that are kept where that is less.';

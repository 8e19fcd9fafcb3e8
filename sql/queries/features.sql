-- commonest_adjectives: the adjectives that most neurons of a dissection have in C_open.
SELECT row_number() OVER (ORDER BY a.n_neurons DESC, a.n_occurrences DESC, a.adjective)::int AS rank,
       a.adjective, a.n_neurons::int AS n_neurons, a.n_occurrences::int AS n_occurrences, a.share::float8 AS share
FROM adjective_counts a
WHERE a.dissection_id = %(dissection)s
ORDER BY 1
LIMIT %(top)s;

-- dissected_neurons: how many neurons a dissection covers, and how many of them are hidden (not of the head).
SELECT coalesce(sum(l.n_units), 0)::int AS n_neurons,
       coalesce(sum(l.n_units) FILTER (WHERE l.kind <> 'head'), 0)::int AS n_hidden
FROM dissected_layers dl
JOIN layers l ON l.id = dl.layer_id
WHERE dl.dissection_id = %(dissection)s;

-- adjectives_by_block: how many neurons of each block have how many adjectives; the head counts with the last block.
SELECT block, n_adjectives::int AS n_adjectives, count(*)::int AS n_neurons
FROM (
    SELECT coalesce(w.block, CASE WHEN w.layer_kind = 'head' THEN max(w.block) OVER () END) AS block, w.n_adjectives
    FROM neuron_word_counts w
    WHERE w.dissection_id = %(dissection)s
) q
WHERE block IS NOT NULL
GROUP BY block, n_adjectives
ORDER BY block, n_adjectives;

-- neurons_with_features: how many hidden neurons have any of what each criterion counts; single adjectives by their word.
WITH counted AS (
    SELECT w.*, (
        SELECT array_agg(x.term)
        FROM dissection_recipes k
        JOIN neuron_terms t ON t.recipe_id = k.recipe_id AND t.neuron_id = w.neuron_id AND t.is_open_concept
        JOIN terms x ON x.id = t.term_id
        WHERE k.dissection_id = w.dissection_id AND k.stage = 'extract'
          AND x.part_of_speech = 'adjective' AND x.term = ANY (%(words)s::text[])
    ) AS words
    FROM neuron_word_counts w
    WHERE w.dissection_id = %(dissection)s AND w.layer_kind <> 'head'
)
SELECT f.criterion, count(*) FILTER (WHERE f.has)::int AS n_neurons
FROM counted c
CROSS JOIN LATERAL (
    VALUES ('nouns', c.n_nouns > 0), ('adjectives', c.n_adjectives > 0), ('verbs', c.n_verbs > 0),
           ('prepositions', c.n_prepositions > 0), ('length', c.n_words > 0),
           ('basic', c.words && %(basic)s::text[]),
           ('high_level', c.n_adjectives > (
               SELECT count(*) FROM unnest(c.words) AS y (word) WHERE y.word = ANY (%(basic)s::text[]))),
           ('random', true)
    UNION ALL
    SELECT 'adjective:' || y.word, c.words @> ARRAY[y.word] FROM unnest(%(words)s::text[]) AS y (word)
) AS f (criterion, has)
GROUP BY f.criterion
ORDER BY f.criterion;

-- neurons_by_criterion: hidden neurons in the order in which a criterion has them ablated, ties broken by the seed.
-- A single adjective orders only the neurons that have it: at random among these, and the others never.
WITH counted AS (
    SELECT w.neuron_id, w.layer, w.unit, w.n_adjectives, w.n_nouns, w.n_verbs, w.n_prepositions, w.n_words, (
        SELECT count(*)
        FROM dissection_recipes k
        JOIN neuron_terms t ON t.recipe_id = k.recipe_id AND t.neuron_id = w.neuron_id AND t.is_open_concept
        JOIN terms x ON x.id = t.term_id
        WHERE k.dissection_id = w.dissection_id AND k.stage = 'extract'
          AND x.part_of_speech = 'adjective' AND x.term = ANY (%(words)s::text[])
    ) AS n_of_words
    FROM neuron_word_counts w
    WHERE w.dissection_id = %(dissection)s AND w.layer_kind <> 'head'
), valued AS (
    SELECT neuron_id, layer, unit,
           CASE %(criterion)s::text
               WHEN 'nouns' THEN n_nouns
               WHEN 'adjectives' THEN n_adjectives
               WHEN 'verbs' THEN n_verbs
               WHEN 'prepositions' THEN n_prepositions
               WHEN 'length' THEN n_words
               WHEN 'basic' THEN n_of_words
               WHEN 'adjective' THEN n_of_words
               WHEN 'high_level' THEN n_adjectives - n_of_words
               WHEN 'random' THEN 0
           END AS value
    FROM counted
)
SELECT layer, unit, value::int AS value
FROM valued
WHERE %(criterion)s::text <> 'adjective' OR value > 0
ORDER BY value DESC, md5(%(seed)s::bigint || layer || '#' || unit) COLLATE "C", neuron_id
LIMIT %(n)s;

-- feature_ablations: accuracy and mean probability of the true class on held-out clips, before and after each ablation asked for.
SELECT a.strategy AS criterion, a.share, a.seed::int AS seed, a.n_neurons, 100.0::float8 * a.n_neurons / %(hidden)s AS actual_share,
       a.n_parameters, c.accuracy_before, c.accuracy, c.accuracy - c.accuracy_before AS change, c.probability_before,
       c.probability, c.n_clips
FROM ablations a
CROSS JOIN LATERAL (
    SELECT sum(round(y.accuracy_before * y.n))::float8 / sum(y.n) AS accuracy_before,
           sum(round(y.accuracy * y.n))::float8 / sum(y.n) AS accuracy,
           sum(y.probability_before * y.n) / sum(y.n) AS probability_before,
           sum(y.probability * y.n) / sum(y.n) AS probability,
           sum(y.n)::int AS n_clips
    FROM unnest(
        a.n_clips, a.accuracy_before::float8[], a.accuracy_after::float8[], a.probability_before::float8[],
        a.probability_after::float8[]
    ) AS y (n, accuracy_before, accuracy, probability_before, probability)
) c
WHERE a.experiment_id = %(experiment)s AND a.strategy = ANY (%(criteria)s::text[])
  AND a.share = ANY (%(shares)s::float8[]) AND a.seed = ANY (%(seeds)s::bigint[])
ORDER BY array_position(%(criteria)s::text[], a.strategy), a.share, a.seed;

-- word_acoustics: one measure of the high exemplars of each neuron, and whether the word is in its C_open.
SELECT a.neuron, CASE %(measure)s::text WHEN 'amplitude' THEN a.mean_abs_amplitude WHEN 'mdf' THEN a.median_frequency_hz END
           AS value,
       a.is_constant,
       EXISTS (
           SELECT FROM dissection_recipes k
           JOIN neuron_terms t ON t.recipe_id = k.recipe_id AND t.neuron_id = a.neuron_id AND t.is_open_concept
           JOIN terms x ON x.id = t.term_id
           WHERE k.dissection_id = a.dissection_id AND k.stage = 'extract' AND x.term = %(word)s
       ) AS has_word
FROM neuron_acoustics a
WHERE a.dissection_id = %(dissection)s
ORDER BY a.neuron_id;

-- open_words: the distinct words in C_open of a dissection's neurons, the commonest first.
SELECT x.term, count(DISTINCT t.neuron_id)::int AS n_neurons
FROM dissection_recipes k
JOIN neuron_terms t ON t.recipe_id = k.recipe_id AND t.is_open_concept
JOIN terms x ON x.id = t.term_id
JOIN neurons n ON n.id = t.neuron_id
JOIN dissected_layers dl ON dl.dissection_id = k.dissection_id AND dl.layer_id = n.layer_id
WHERE k.dissection_id = %(dissection)s AND k.stage = 'extract'
  AND (%(part_of_speech)s::text IS NULL OR x.part_of_speech = %(part_of_speech)s)
GROUP BY x.term
ORDER BY n_neurons DESC, x.term;

CREATE VIEW ablation_overview AS
SELECT a.id AS ablation_id,
       a.experiment_id,
       x.kind,
       x.dissection_id,
       w.name AS network,
       s.name AS dataset,
       a.plan_id,
       a.strategy,
       a.target_unit,
       w.classes[a.target_unit + 1] AS target,
       coalesce(w.classes[a.target_unit + 1], p.concept, r.params ->> 'concept') AS concept,
       a.size,
       a.share,
       a.seed,
       a.n_neurons,
       a.n_parameters,
       c.n_clips,
       c.n_target_clips,
       c.d_a,
       c.d_r,
       c.d_r - c.d_a AS gap,
       c.target_accuracy_before,
       c.target_accuracy_after,
       c.rest_accuracy_before,
       c.rest_accuracy_after,
       c.accuracy_before,
       c.accuracy_after,
       a.created_at
FROM ablations a
JOIN experiments x ON x.id = a.experiment_id
JOIN recipes r ON r.id = x.recipe_id
JOIN dissections d ON d.id = x.dissection_id
JOIN networks w ON w.id = d.network_id
JOIN probing_sets b ON b.id = d.probing_set_id
JOIN datasets s ON s.id = b.dataset_id
LEFT JOIN ablation_plans p ON p.id = a.plan_id
CROSS JOIN LATERAL (
    SELECT sum(n) AS n_clips,
           coalesce(sum(n) FILTER (WHERE is_target), 0) AS n_target_clips,
           -- Logits are averaged per class first, then over classes: avg() leaves out classes without clips (NULL).
           avg(logit_after - logit_before) FILTER (WHERE is_target) AS d_a,
           avg(logit_after - logit_before) FILTER (WHERE NOT is_target) AS d_r,
           -- Accuracies are shares of clips.
           sum(n * right_before) FILTER (WHERE is_target) / nullif(sum(n) FILTER (WHERE is_target), 0) AS target_accuracy_before,
           sum(n * right_after) FILTER (WHERE is_target) / nullif(sum(n) FILTER (WHERE is_target), 0) AS target_accuracy_after,
           sum(n * right_before) FILTER (WHERE NOT is_target) / nullif(sum(n) FILTER (WHERE NOT is_target), 0) AS rest_accuracy_before,
           sum(n * right_after) FILTER (WHERE NOT is_target) / nullif(sum(n) FILTER (WHERE NOT is_target), 0) AS rest_accuracy_after,
           sum(n * right_before) / nullif(sum(n), 0) AS accuracy_before,
           sum(n * right_after) / nullif(sum(n), 0) AS accuracy_after
    FROM (
        SELECT n, logit_before::float8, logit_after::float8, right_before::float8, right_after::float8,
               coalesce(unit = a.target_unit + 1, false) AS is_target
        FROM unnest(a.n_clips, a.logit_before, a.logit_after, a.accuracy_before, a.accuracy_after)
             WITH ORDINALITY AS u (n, logit_before, logit_after, right_before, right_after, unit)
    ) per_class
) c;

COMMENT ON VIEW ablation_overview IS 'Table 4: one row per ablation, with names in place of keys. Figures are of held-out clips: changes of the mean logit of each clip''s true class.';
COMMENT ON COLUMN ablation_overview.ablation_id IS 'Id of the ablation.';
COMMENT ON COLUMN ablation_overview.experiment_id IS 'Id of the experiment.';
COMMENT ON COLUMN ablation_overview.kind IS 'Kind of the experiment: unlearning, sweep …';
COMMENT ON COLUMN ablation_overview.dissection_id IS 'Id of the dissection.';
COMMENT ON COLUMN ablation_overview.network IS 'Name of the network.';
COMMENT ON COLUMN ablation_overview.dataset IS 'Name of the data set.';
COMMENT ON COLUMN ablation_overview.plan_id IS 'Id of the plan that chose the neurons; NULL for draws of a sweep.';
COMMENT ON COLUMN ablation_overview.strategy IS 'How the neurons were chosen.';
COMMENT ON COLUMN ablation_overview.target_unit IS 'Unit of the head whose class is the target; NULL where there is none.';
COMMENT ON COLUMN ablation_overview.target IS 'Name of the target class.';
COMMENT ON COLUMN ablation_overview.concept IS 'The target class, or the concept where it is no class.';
COMMENT ON COLUMN ablation_overview.size IS 'Neurons asked for, in a sweep.';
COMMENT ON COLUMN ablation_overview.share IS 'Share of all hidden neurons asked for, in percent (Figure 4).';
COMMENT ON COLUMN ablation_overview.seed IS 'Seed of a random choice, or of what breaks ties.';
COMMENT ON COLUMN ablation_overview.n_neurons IS 'Neurons ablated.';
COMMENT ON COLUMN ablation_overview.n_parameters IS 'Weights and biases zeroed.';
COMMENT ON COLUMN ablation_overview.n_clips IS 'Held-out clips.';
COMMENT ON COLUMN ablation_overview.n_target_clips IS 'Those of the target class.';
COMMENT ON COLUMN ablation_overview.d_a IS 'dA: change of the mean logit of the target class on its own clips; NULL without a target.';
COMMENT ON COLUMN ablation_overview.d_r IS 'dR: the same of every other class on its own clips, averaged over classes.';
COMMENT ON COLUMN ablation_overview.gap IS 'dR - dA: how much further the target falls than the others.';
COMMENT ON COLUMN ablation_overview.target_accuracy_before IS 'Share of the target''s clips that are classified right, intact.';
COMMENT ON COLUMN ablation_overview.target_accuracy_after IS 'The same, ablated.';
COMMENT ON COLUMN ablation_overview.rest_accuracy_before IS 'Share of all other clips that are classified right, intact.';
COMMENT ON COLUMN ablation_overview.rest_accuracy_after IS 'The same, ablated.';
COMMENT ON COLUMN ablation_overview.accuracy_before IS 'Share of all clips that are classified right, intact.';
COMMENT ON COLUMN ablation_overview.accuracy_after IS 'The same, ablated.';
COMMENT ON COLUMN ablation_overview.created_at IS 'When it was measured.';

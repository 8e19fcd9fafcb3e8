CREATE VIEW ablation_classes AS
SELECT a.id AS ablation_id,
       a.experiment_id,
       x.dissection_id,
       w.name AS network,
       a.strategy,
       w.classes[a.target_unit + 1] AS target,
       (c.ordinal - 1)::int AS unit,
       w.classes[c.ordinal] AS class_name,
       coalesce(c.ordinal - 1 = a.target_unit, false) AS is_target,
       c.n_clips,
       c.logit_before,
       c.logit_after,
       c.logit_after - c.logit_before AS logit_change,
       c.probability_before,
       c.probability_after,
       c.probability_after - c.probability_before AS probability_change,
       c.accuracy_before,
       c.accuracy_after,
       c.accuracy_after - c.accuracy_before AS accuracy_change
FROM ablations a
JOIN experiments x ON x.id = a.experiment_id
JOIN dissections d ON d.id = x.dissection_id
JOIN networks w ON w.id = d.network_id
CROSS JOIN LATERAL unnest(
    a.n_clips, a.logit_before, a.logit_after, a.probability_before, a.probability_after, a.accuracy_before, a.accuracy_after
) WITH ORDINALITY AS c (
    n_clips, logit_before, logit_after, probability_before, probability_after, accuracy_before, accuracy_after, ordinal
);

COMMENT ON VIEW ablation_classes IS 'Figure 10: what an ablation does to each class, on held-out clips. One row per ablation and class.';
COMMENT ON COLUMN ablation_classes.ablation_id IS 'Id of the ablation.';
COMMENT ON COLUMN ablation_classes.experiment_id IS 'Id of the experiment.';
COMMENT ON COLUMN ablation_classes.dissection_id IS 'Id of the dissection.';
COMMENT ON COLUMN ablation_classes.network IS 'Name of the network.';
COMMENT ON COLUMN ablation_classes.strategy IS 'How the neurons were chosen.';
COMMENT ON COLUMN ablation_classes.target IS 'Name of the target class; NULL where there is none.';
COMMENT ON COLUMN ablation_classes.unit IS 'Unit of the head, from 0.';
COMMENT ON COLUMN ablation_classes.class_name IS 'Name of the class.';
COMMENT ON COLUMN ablation_classes.is_target IS 'True for the target class.';
COMMENT ON COLUMN ablation_classes.n_clips IS 'Held-out clips of the class; the figures are NULL where there is none.';
COMMENT ON COLUMN ablation_classes.logit_before IS 'Mean logit of the true class over its clips, intact.';
COMMENT ON COLUMN ablation_classes.logit_after IS 'The same, ablated.';
COMMENT ON COLUMN ablation_classes.logit_change IS 'After - before.';
COMMENT ON COLUMN ablation_classes.probability_before IS 'Mean softmax probability of the true class, intact.';
COMMENT ON COLUMN ablation_classes.probability_after IS 'The same, ablated.';
COMMENT ON COLUMN ablation_classes.probability_change IS 'After - before.';
COMMENT ON COLUMN ablation_classes.accuracy_before IS 'Share of the clips that are classified right, intact.';
COMMENT ON COLUMN ablation_classes.accuracy_after IS 'The same, ablated.';
COMMENT ON COLUMN ablation_classes.accuracy_change IS 'After - before.';

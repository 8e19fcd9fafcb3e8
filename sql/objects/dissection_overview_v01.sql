CREATE VIEW dissection_overview AS
SELECT d.id AS dissection_id,
       n.name AS network,
       s.name AS dataset,
       c.name AS concept_set,
       p.n_clips,
       d.status,
       d.pinned,
       d.id = first_value(d.id) OVER (
           PARTITION BY d.network_id, p.dataset_id
           ORDER BY d.pinned DESC, d.status = 'complete' DESC, d.completed_at DESC NULLS LAST, d.id DESC
       ) AND (d.pinned OR d.status = 'complete') AS is_current,
       d.top_k,
       d.methods,
       (SELECT count(*) FROM dissected_layers l WHERE l.dissection_id = d.id) AS n_layers,
       d.recording_id,
       d.network_id,
       p.dataset_id,
       d.probing_set_id,
       d.concept_set_id,
       d.created_at,
       d.completed_at
FROM dissections d
JOIN networks n ON n.id = d.network_id
JOIN probing_sets p ON p.id = d.probing_set_id
JOIN datasets s ON s.id = p.dataset_id
JOIN concept_sets c ON c.id = d.concept_set_id;

COMMENT ON VIEW dissection_overview IS 'One row per dissection, with names in place of keys.';
COMMENT ON COLUMN dissection_overview.dissection_id IS 'Id of the dissection.';
COMMENT ON COLUMN dissection_overview.network IS 'Name of the network.';
COMMENT ON COLUMN dissection_overview.dataset IS 'Name of the probing data set.';
COMMENT ON COLUMN dissection_overview.concept_set IS 'Name of the concept set.';
COMMENT ON COLUMN dissection_overview.n_clips IS 'Clips of the probing set.';
COMMENT ON COLUMN dissection_overview.status IS 'running, complete or failed.';
COMMENT ON COLUMN dissection_overview.pinned IS 'True: current, whatever comes later.';
COMMENT ON COLUMN dissection_overview.is_current IS 'True for the one that current_neuron_descriptions shows: per network and data set the pinned one, else the latest complete one.';
COMMENT ON COLUMN dissection_overview.top_k IS 'K: exemplars a side that summaries are made of.';
COMMENT ON COLUMN dissection_overview.methods IS 'Closed-set methods that were computed: db, tab, icl.';
COMMENT ON COLUMN dissection_overview.n_layers IS 'Layers it covers.';
COMMENT ON COLUMN dissection_overview.recording_id IS 'Id of the recording it reads.';
COMMENT ON COLUMN dissection_overview.network_id IS 'Id of the network.';
COMMENT ON COLUMN dissection_overview.dataset_id IS 'Id of the data set.';
COMMENT ON COLUMN dissection_overview.probing_set_id IS 'Id of the probing set.';
COMMENT ON COLUMN dissection_overview.concept_set_id IS 'Id of the concept set.';
COMMENT ON COLUMN dissection_overview.created_at IS 'When it was begun.';
COMMENT ON COLUMN dissection_overview.completed_at IS 'When it was last completed.';

CREATE VIEW exemplar_clips AS
SELECT e.recording_id,
       w.name AS network,
       s.name AS dataset,
       l.name AS layer,
       l.block,
       n.unit,
       l.name || '#' || n.unit AS neuron,
       e.neuron_id,
       e.side,
       x.rank::int AS rank,
       x.position,
       c.id AS clip_id,
       c.path,
       c.labels[1] AS label,
       c.labels,
       x.activation
FROM exemplars e
CROSS JOIN LATERAL unnest(e.positions, e.activations) WITH ORDINALITY AS x (position, activation, rank)
JOIN recordings r ON r.id = e.recording_id
JOIN networks w ON w.id = r.network_id
JOIN probing_sets p ON p.id = r.probing_set_id
JOIN datasets s ON s.id = p.dataset_id
JOIN neurons n ON n.id = e.neuron_id
JOIN layers l ON l.id = n.layer_id
JOIN probing_set_clips m ON m.probing_set_id = r.probing_set_id AND m.position = x.position
JOIN clips c ON c.id = m.clip_id;

COMMENT ON VIEW exemplar_clips IS 'The exemplars of each neuron: one row per clip, both sides.';
COMMENT ON COLUMN exemplar_clips.recording_id IS 'Id of the recording.';
COMMENT ON COLUMN exemplar_clips.network IS 'Name of the network.';
COMMENT ON COLUMN exemplar_clips.dataset IS 'Name of the data set.';
COMMENT ON COLUMN exemplar_clips.layer IS 'Name of the layer.';
COMMENT ON COLUMN exemplar_clips.block IS 'Block, from 0; NULL for the head.';
COMMENT ON COLUMN exemplar_clips.unit IS 'Unit of the layer, from 0.';
COMMENT ON COLUMN exemplar_clips.neuron IS 'Name of the neuron, e.g. b03.ff_in#17.';
COMMENT ON COLUMN exemplar_clips.neuron_id IS 'Id of the neuron.';
COMMENT ON COLUMN exemplar_clips.side IS 'high or low.';
COMMENT ON COLUMN exemplar_clips.rank IS '1 is the most extreme of its side.';
COMMENT ON COLUMN exemplar_clips.position IS 'Position in the probing set.';
COMMENT ON COLUMN exemplar_clips.clip_id IS 'Id of the clip.';
COMMENT ON COLUMN exemplar_clips.path IS 'Path of the clip, relative to the data set''s root.';
COMMENT ON COLUMN exemplar_clips.label IS 'Main label of the clip.';
COMMENT ON COLUMN exemplar_clips.labels IS 'All labels of the clip.';
COMMENT ON COLUMN exemplar_clips.activation IS 'Activation of the neuron on the clip.';

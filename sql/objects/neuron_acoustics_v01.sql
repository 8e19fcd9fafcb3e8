CREATE VIEW neuron_acoustics AS
SELECT d.id AS dissection_id,
       w.name AS network,
       l.name || '#' || n.unit AS neuron,
       l.name AS layer,
       l.kind AS layer_kind,
       l.block,
       n.unit,
       s.min = s.max AS is_constant,
       x.n_clips,
       x.mean_abs_amplitude,
       x.median_frequency_hz,
       n.id AS neuron_id
FROM dissections d
JOIN networks w ON w.id = d.network_id
JOIN dissected_layers dl ON dl.dissection_id = d.id
JOIN layers l ON l.id = dl.layer_id
JOIN neurons n ON n.layer_id = l.id
JOIN neuron_statistics s ON s.recording_id = d.recording_id AND s.neuron_id = n.id
JOIN exemplars e ON e.recording_id = d.recording_id AND e.neuron_id = n.id AND e.side = 'high'
CROSS JOIN LATERAL (
    SELECT count(*) AS n_clips,
           avg(c.mean_abs_amplitude) AS mean_abs_amplitude,
           avg(c.median_frequency_hz) AS median_frequency_hz
    FROM unnest(e.positions[1:d.top_k]) AS y (position)
    JOIN probing_set_clips m ON m.probing_set_id = d.probing_set_id AND m.position = y.position
    JOIN clips c ON c.id = m.clip_id
) x;

COMMENT ON VIEW neuron_acoustics IS 'How the K high exemplars of each neuron sound, as measured (Figure 8 of the paper).';
COMMENT ON COLUMN neuron_acoustics.dissection_id IS 'Id of the dissection.';
COMMENT ON COLUMN neuron_acoustics.network IS 'Name of the network.';
COMMENT ON COLUMN neuron_acoustics.neuron IS 'Name of the neuron, e.g. b03.ff_in#17.';
COMMENT ON COLUMN neuron_acoustics.layer IS 'Name of the layer.';
COMMENT ON COLUMN neuron_acoustics.layer_kind IS 'attn_out, ff_in, ff_out, head …';
COMMENT ON COLUMN neuron_acoustics.block IS 'Block, from 0; NULL for the head.';
COMMENT ON COLUMN neuron_acoustics.unit IS 'Unit of the layer, from 0.';
COMMENT ON COLUMN neuron_acoustics.is_constant IS 'True: the same activation on every clip, so that its exemplars say nothing.';
COMMENT ON COLUMN neuron_acoustics.n_clips IS 'Exemplars it is over: the dissection''s K.';
COMMENT ON COLUMN neuron_acoustics.mean_abs_amplitude IS 'Mean of their mean absolute amplitudes, 1 is full scale.';
COMMENT ON COLUMN neuron_acoustics.median_frequency_hz IS 'Mean of their median frequencies, Hz; clips without one (a constant) are left out; NULL: none has one.';
COMMENT ON COLUMN neuron_acoustics.neuron_id IS 'Id of the neuron.';

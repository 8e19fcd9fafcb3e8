CREATE VIEW closed_concepts AS
SELECT d.id AS dissection_id,
       w.name AS network,
       l.name AS layer,
       l.block,
       n.unit,
       l.name || '#' || n.unit AS neuron,
       m.neuron_id,
       r.params ->> 'method' AS method,
       r.params ->> 'similarity' AS similarity,
       k.speaks,
       m.rank,
       c.name AS concept,
       m.concept_id,
       m.score
FROM dissections d
JOIN dissection_recipes k ON k.dissection_id = d.id
JOIN recipes r ON r.id = k.recipe_id AND r.stage = 'match'
JOIN concept_matches m ON m.recording_id = d.recording_id AND m.recipe_id = k.recipe_id
JOIN concepts c ON c.id = m.concept_id
JOIN neurons n ON n.id = m.neuron_id
JOIN dissected_layers dl ON dl.dissection_id = d.id AND dl.layer_id = n.layer_id
JOIN layers l ON l.id = n.layer_id
JOIN networks w ON w.id = l.network_id;

COMMENT ON VIEW closed_concepts IS 'Module A: the best concepts of each neuron, by method and similarity function.';
COMMENT ON COLUMN closed_concepts.dissection_id IS 'Id of the dissection.';
COMMENT ON COLUMN closed_concepts.network IS 'Name of the network.';
COMMENT ON COLUMN closed_concepts.layer IS 'Name of the layer.';
COMMENT ON COLUMN closed_concepts.block IS 'Block, from 0; NULL for the head.';
COMMENT ON COLUMN closed_concepts.unit IS 'Unit of the layer, from 0.';
COMMENT ON COLUMN closed_concepts.neuron IS 'Name of the neuron, e.g. b03.ff_in#17.';
COMMENT ON COLUMN closed_concepts.neuron_id IS 'Id of the neuron.';
COMMENT ON COLUMN closed_concepts.method IS 'db (captions), tab (text-audio encoder) or icl (LLM).';
COMMENT ON COLUMN closed_concepts.similarity IS 'Similarity function: cos, cos_cubed, wpmi, soft_wpmi, rank_reorder; llm for icl.';
COMMENT ON COLUMN closed_concepts.speaks IS 'True for the function that fills closed_db, closed_tab, closed_icl of neuron_descriptions.';
COMMENT ON COLUMN closed_concepts.rank IS '1 is the best.';
COMMENT ON COLUMN closed_concepts.concept IS 'Name of the concept.';
COMMENT ON COLUMN closed_concepts.concept_id IS 'Id of the concept.';
COMMENT ON COLUMN closed_concepts.score IS 'Similarity; comparable within one method and function only.';

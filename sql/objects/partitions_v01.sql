CREATE FUNCTION andp_make_partitions(recording bigint)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
AS $$
DECLARE
    parent text;
BEGIN
    IF NOT EXISTS (SELECT FROM recordings r WHERE r.id = andp_make_partitions.recording) THEN
        RAISE EXCEPTION 'no recording %', recording USING ERRCODE = 'no_data_found';
    END IF;
    -- Made aside and attached: the parents stay open to readers and writers.
    FOREACH parent IN ARRAY ARRAY['activation_blocks', 'activations', 'activation_cubes', 'exemplars', 'neuron_statistics',
                                  'concept_matches']
    LOOP
        EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', 'andp_' || parent || '_' || recording, parent);
        EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES IN (%s)',
                       parent, 'andp_' || parent || '_' || recording, recording);
    END LOOP;
END $$;

COMMENT ON FUNCTION andp_make_partitions IS
'Make the partitions of a recording, as the owner of the schema: workers own nothing.';

CREATE FUNCTION andp_analyse_partitions(recording bigint)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER
AS $$
DECLARE
    parent text;
BEGIN
    FOREACH parent IN ARRAY ARRAY['activation_blocks', 'activations', 'activation_cubes', 'exemplars', 'neuron_statistics',
                                  'concept_matches']
    LOOP
        IF to_regclass(format('%I', 'andp_' || parent || '_' || recording)) IS NOT NULL THEN
            EXECUTE format('ANALYZE %I', 'andp_' || parent || '_' || recording);
        END IF;
    END LOOP;
END $$;

COMMENT ON FUNCTION andp_analyse_partitions IS
'Tell the planner what the partitions of a recording hold, as the owner of the schema.';

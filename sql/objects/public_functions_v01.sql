-- Functions of the server that everybody may call, and that a reader must not: the locks of the platform, large objects,
-- messages in the server's log of changes, snapshots kept in its files, an end to other sessions. Only a superuser can
-- close them, for one database; for others this does nothing. Who writes in the platform's tables keeps them. May be run
-- again at any time.
DO $$
DECLARE
    item record;
    writer regrole;
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        RETURN;
    END IF;
    FOR item IN
        SELECT p.oid::regprocedure AS name
        FROM pg_proc p
        WHERE p.pronamespace = 'pg_catalog'::regnamespace
          AND (p.proname ~ '^pg_(try_)?advisory_(xact_)?lock(_shared)?$'
               OR p.proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_open', 'lo_put', 'lo_truncate', 'lo_truncate64',
                                'lo_unlink', 'lowrite', 'pg_logical_emit_message', 'pg_export_snapshot', 'pg_cancel_backend',
                                'pg_terminate_backend'))
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', item.name);
        FOR writer IN
            SELECT datdba FROM pg_database WHERE datname = current_database()
            UNION
            SELECT relowner FROM pg_class WHERE oid = to_regclass('runs')
            UNION
            SELECT a.grantee FROM pg_class c, aclexplode(c.relacl) a
            WHERE c.oid = to_regclass('runs') AND a.privilege_type = 'INSERT' AND a.grantee <> 0
        LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %s', item.name, writer);
        END LOOP;
    END LOOP;
END $$;

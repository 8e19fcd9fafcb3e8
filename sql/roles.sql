-- Three roles for one database of and_platform, each with no more than it needs:
--
--   andp_owner    owns the schema: migrates (andp db upgrade), builds indexes, vacuums
--   andp_worker   dissects: reads and writes rows, and has the owner's functions make partitions; owns nothing; adds no
--                 networks, for what their location names is imported
--   andp_reader   asks: reads tables and views, calls the query functions
--
-- Run it in that database as its owner with CREATEROLE, or as a superuser:  andp db roles --apply
-- Again after any upgrade, as often as you like: it changes what differs. Tables of later migrations and partitions made
-- at run time are covered without it.
--
-- The roles cannot log in. Those who do are members of one of them:
--
--   CREATE ROLE gpu_host LOGIN PASSWORD '…' IN ROLE andp_worker;
--   CREATE ROLE alice LOGIN PASSWORD '…' IN ROLE andp_reader;
--   ALTER ROLE alice SET default_transaction_read_only = on;    -- settings are not inherited from a role:
--   ALTER ROLE alice SET statement_timeout = '5min';            -- give them to who logs in
--   CREATE ROLE deploy LOGIN PASSWORD '…' IN ROLE andp_owner;   -- what it migrates belongs to andp_owner

DO $$
DECLARE
    wanted text;
    told text;
    item record;
    former oid;
    home text := current_schema();
BEGIN
    IF to_regclass(format('%I.alembic_version', home)) IS NULL THEN
        RAISE EXCEPTION 'the schema is not there yet' USING HINT = 'run: andp db upgrade';
    END IF;

    FOR wanted, told IN VALUES
        ('andp_owner', 'and_platform: owns the schema and migrates it'),
        ('andp_worker', 'and_platform: reads and writes rows'),
        ('andp_reader', 'and_platform: reads')
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXECUTE format('COMMENT ON ROLE %I IS %L', wanted, told);
        END IF;
    END LOOP;
    IF NOT pg_has_role('andp_owner', 'USAGE') THEN
        EXECUTE format('GRANT andp_owner TO %I', current_user);
    END IF;

    EXECUTE format('GRANT CONNECT, TEMPORARY ON DATABASE %I TO andp_owner, andp_worker', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO andp_reader', current_database());
    EXECUTE format('GRANT CREATE ON DATABASE %I TO andp_owner', current_database());
    IF pg_has_role((SELECT datdba FROM pg_database WHERE datname = current_database()), 'USAGE') THEN
        EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    END IF;
    EXECUTE format('GRANT USAGE, CREATE ON SCHEMA %I TO andp_owner', home);
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO andp_worker, andp_reader', home);
    IF has_schema_privilege('public', home, 'CREATE') THEN  -- the default before Postgres 15
        EXECUTE format('REVOKE CREATE ON SCHEMA %I FROM PUBLIC', home);
    END IF;

    -- Ours is what belongs to whoever made the schema, extensions' objects apart. Partitions are tables of their own here.
    former := (SELECT c.relowner FROM pg_class c WHERE c.oid = to_regclass(format('%I.alembic_version', home)));
    IF former <> 'andp_owner'::regrole THEN
        FOR item IN
            SELECT c.oid::regclass AS name
            FROM pg_class c
            WHERE c.relnamespace = home::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'S') AND c.relowner = former
              AND NOT EXISTS (
                  SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                    AND (d.deptype = 'e' OR c.relkind = 'S' AND d.deptype IN ('i', 'a')))  -- sequences go with their tables
        LOOP
            EXECUTE format('ALTER TABLE %s OWNER TO andp_owner', item.name);
        END LOOP;
        FOR item IN
            SELECT p.oid::regprocedure AS name
            FROM pg_proc p
            WHERE p.pronamespace = home::regnamespace AND p.proowner = former
              AND NOT EXISTS (
                  SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
        LOOP
            EXECUTE format('ALTER ROUTINE %s OWNER TO andp_owner', item.name);
        END LOOP;
    END IF;

    FOR item IN
        SELECT c.oid::regclass AS name, c.relname, c.relkind
        FROM pg_class c
        WHERE c.relnamespace = home::regnamespace AND c.relowner = 'andp_owner'::regrole
          AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
    LOOP
        IF item.relkind = 'S' THEN
            EXECUTE format('GRANT USAGE, SELECT ON SEQUENCE %s TO andp_worker', item.name);
        ELSE
            EXECUTE format('GRANT SELECT ON %s TO andp_reader, andp_worker', item.name);
            IF item.relkind IN ('r', 'p') AND item.relname <> 'alembic_version' THEN
                EXECUTE format('GRANT INSERT, UPDATE, DELETE ON %s TO andp_worker', item.name);
            END IF;
            -- What a network's location names is imported: only the owner says what.
            IF item.relname = 'networks' THEN
                EXECUTE format('REVOKE INSERT, UPDATE ON %s FROM andp_worker', item.name);
            END IF;
        END IF;
    END LOOP;
    EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE andp_owner IN SCHEMA %I'
                   ' GRANT SELECT ON TABLES TO andp_reader, andp_worker', home);
    EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE andp_owner IN SCHEMA %I'
                   ' GRANT INSERT, UPDATE, DELETE ON TABLES TO andp_worker', home);
    EXECUTE format('ALTER DEFAULT PRIVILEGES FOR ROLE andp_owner IN SCHEMA %I'
                   ' GRANT USAGE, SELECT ON SEQUENCES TO andp_worker', home);

    -- What runs with the owner's rights is for workers alone; the query functions run with those of who calls them.
    FOR item IN
        SELECT p.oid::regprocedure AS name, p.prosecdef AS as_owner
        FROM pg_proc p
        WHERE p.pronamespace = home::regnamespace AND p.proowner = 'andp_owner'::regrole
    LOOP
        IF item.as_owner THEN
            EXECUTE format('REVOKE EXECUTE ON ROUTINE %s FROM PUBLIC', item.name);
            EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO andp_worker', item.name);
        ELSE
            EXECUTE format('GRANT EXECUTE ON ROUTINE %s TO andp_worker, andp_reader', item.name);
        END IF;
    END LOOP;

    -- The queue of pgmq://, where it is in this database: messages hold ids, and workers make and empty its tables.
    IF to_regnamespace('pgmq') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA pgmq TO andp_worker;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgmq TO andp_worker;
        GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA pgmq TO andp_worker;
        GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA pgmq TO andp_worker;
    END IF;
END $$;

-- For whom logs in as one of the roles itself, after ALTER ROLE … LOGIN.
ALTER ROLE andp_reader SET default_transaction_read_only = on;
ALTER ROLE andp_reader SET statement_timeout = '5min';

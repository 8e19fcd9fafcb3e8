CREATE VIEW run_progress AS
SELECT s.run_id,
       s.ordinal,
       s.stage,
       s.step,
       s.queue,
       CASE WHEN s.finished_at IS NOT NULL THEN 'done'
            WHEN s.planned_at IS NOT NULL OR u.units > 0 THEN 'open'
            ELSE 'waiting' END AS state,
       coalesce(u.units, 0) AS units,
       coalesce(u.done, 0) AS done,
       coalesce(u.running, 0) AS running,
       coalesce(u.failed, 0) AS failed,
       coalesce(u.cancelled, 0) AS cancelled,
       s.unit,
       coalesce(u.size, 0) AS size,
       coalesce(u.size_done, 0) AS size_done,
       coalesce(u.size_left, 0) AS size_left,
       u.retries,
       u.seconds,
       u.size_done / nullif(extract(epoch FROM u.last_finished - u.first_started), 0)::double precision AS rate,
       u.longest_s,
       s.planned_at,
       s.finished_at
FROM run_steps s
LEFT JOIN LATERAL (
    SELECT count(*) AS units,
           count(*) FILTER (WHERE w.state = 'done') AS done,
           count(*) FILTER (WHERE w.state = 'running') AS running,
           count(*) FILTER (WHERE w.state = 'failed') AS failed,
           count(*) FILTER (WHERE w.state = 'cancelled') AS cancelled,
           sum(w.size)::bigint AS size,
           (sum(w.size) FILTER (WHERE w.state = 'done'))::bigint AS size_done,
           (sum(w.size) FILTER (WHERE w.state IN ('waiting', 'sent', 'running')))::bigint AS size_left,
           sum(greatest(w.attempts - 1, 0))::bigint AS retries,
           sum(w.seconds) AS seconds,
           max(w.seconds) AS longest_s,
           min(w.started_at) FILTER (WHERE w.state = 'done') AS first_started,
           max(w.finished_at) FILTER (WHERE w.state = 'done') AS last_finished
    FROM work_units w
    WHERE w.run_id = s.run_id AND w.step = s.step
) u ON true;

COMMENT ON VIEW run_progress IS
    'Steps of the runs that are shared out to workers: how much is done, how fast, and what failed.';
COMMENT ON COLUMN run_progress.run_id IS 'The run.';
COMMENT ON COLUMN run_progress.ordinal IS 'Order of the steps.';
COMMENT ON COLUMN run_progress.stage IS 'The stage of the dissection.';
COMMENT ON COLUMN run_progress.step IS 'The step.';
COMMENT ON COLUMN run_progress.queue IS 'Queue whose workers do it: cpu, gpu, llm or db.';
COMMENT ON COLUMN run_progress.state IS 'waiting for earlier steps, open, or done.';
COMMENT ON COLUMN run_progress.units IS 'Units that are known.';
COMMENT ON COLUMN run_progress.done IS 'Units done.';
COMMENT ON COLUMN run_progress.running IS 'Units that a worker is at.';
COMMENT ON COLUMN run_progress.failed IS 'Units given up; see work_units.reason.';
COMMENT ON COLUMN run_progress.cancelled IS 'Units cancelled.';
COMMENT ON COLUMN run_progress.unit IS 'What size, size_done and rate count.';
COMMENT ON COLUMN run_progress.size IS 'Work that is known, counted in the unit.';
COMMENT ON COLUMN run_progress.size_done IS 'Work done, counted in the unit.';
COMMENT ON COLUMN run_progress.size_left IS 'Work of units that are not over, counted in the unit.';
COMMENT ON COLUMN run_progress.retries IS 'Tries beyond the first, of all units.';
COMMENT ON COLUMN run_progress.seconds IS 'Time of the workers, added up.';
COMMENT ON COLUMN run_progress.rate IS 'Work a second, from the first beginning to the latest end.';
COMMENT ON COLUMN run_progress.longest_s IS 'Seconds of the longest unit.';
COMMENT ON COLUMN run_progress.planned_at IS 'When all its units were known.';
COMMENT ON COLUMN run_progress.finished_at IS 'When none was open any more.';

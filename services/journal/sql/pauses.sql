-- name: current
SELECT
    (SELECT version FROM journal.controls) AS version,
    ARRAY(SELECT target FROM journal.paused_targets ORDER BY target) AS targets

-- name: advance
-- The lock of the row orders the changes. The time keeps the version growing after a lost database.
UPDATE journal.controls
SET version = greatest(version + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)

-- name: pause
INSERT INTO journal.paused_targets (target, actor) VALUES ($1, $2) ON CONFLICT DO NOTHING

-- name: count
SELECT count(*) FROM journal.paused_targets

-- name: resume
DELETE FROM journal.paused_targets WHERE target = $1

-- name: insert
INSERT INTO journal.jobs
    (id, kind, status, queue, filter, url, rate, matching, cursor, actor, client_id)
VALUES ($1, $2, 'running', $3, $4::jsonb, $5, $6, $7, $8::jsonb, $9, $10)

-- name: get
SELECT * FROM journal.jobs WHERE id = $1

-- name: running
SELECT id FROM journal.jobs WHERE queue = $1 AND status = 'running'

-- name: lock
SELECT pg_advisory_xact_lock(hashtextextended('ringback job of ' || $1::text, 0))

-- name: running_of
SELECT id FROM journal.jobs WHERE client_id = $1 AND status = 'running' LIMIT 1

-- name: running_queues
SELECT queue FROM journal.jobs WHERE status = 'running' AND queue IS NOT NULL

-- name: list
SELECT * FROM journal.jobs
WHERE (created_at, id) < ($1, $2)
    AND ($3::text IS NULL OR kind = $3)
    AND ($4::text IS NULL OR status = $4)
    AND ($5::text IS NULL OR client_id = $5)
ORDER BY created_at DESC, id DESC
LIMIT $6

-- name: cancel
UPDATE journal.jobs SET status = 'cancelled', finished_at = now()
WHERE id = $1 AND status = 'running'
RETURNING *

-- name: claim
-- A job that had a lease before is continued.
UPDATE journal.jobs j SET lease = $1, leased_until = now() + $2 * interval '1 second'
FROM (
    SELECT id, lease IS NOT NULL AS continued FROM journal.jobs
    WHERE status = 'running' AND leased_until < now()
    ORDER BY created_at LIMIT 1
    FOR UPDATE SKIP LOCKED
) old
WHERE j.id = old.id
RETURNING j.*, old.continued

-- name: renew
UPDATE journal.jobs SET leased_until = now() + $3 * interval '1 second'
WHERE id = $1 AND lease = $2
RETURNING status

-- name: release
UPDATE journal.jobs SET leased_until = '-infinity' WHERE id = $1 AND lease = $2

-- name: advance
-- A job that was cancelled meanwhile still counts what it has done.
UPDATE journal.jobs SET
    done = done + $3, failed = failed + $4, cursor = coalesce($5::jsonb, cursor)
WHERE id = $1 AND lease = $2

-- name: finish
-- What matched at the start and was not done has failed.
WITH ended AS (
    UPDATE journal.jobs SET
        status = $3, error = $4, finished_at = now(),
        failed = CASE $3 WHEN 'finished' THEN greatest(failed, matching - done) ELSE failed END
    WHERE id = $1 AND lease = $2 AND status = 'running'
    RETURNING *
)
INSERT INTO journal.audit (actor, client_id, action, object, detail, result)
SELECT actor, client_id, kind, queue,
    jsonb_build_object('job', id, 'matching', matching, 'done', done, 'failed', failed), status
FROM ended

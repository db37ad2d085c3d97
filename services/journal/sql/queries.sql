-- name: position
SELECT "offset", message_id FROM journal.position WHERE stream = $1

-- name: advance
-- Nothing changes if another process has stored in between.
UPDATE journal.position SET "offset" = $3, message_id = $4
WHERE stream = $1 AND "offset" = $2

-- name: report_lag
UPDATE journal.position SET lag = $2, checked_at = now() WHERE stream = $1

-- name: insert_gap
INSERT INTO journal.gaps (stream, first_offset, last_offset, messages, reason)
VALUES ($1, $2, $3, $4, $5)

-- name: add_minutes
-- The order of the keys prevents deadlocks.
INSERT INTO journal.minutes AS m (target, client_id, minute, delivered, failed, buckets)
SELECT target, client_id, minute, delivered, failed, string_to_array(buckets, ',')::bigint[]
FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::bigint[], $6::text[])
    AS u (target, client_id, minute, delivered, failed, buckets)
ORDER BY target, client_id, minute
ON CONFLICT (target, client_id, minute) DO UPDATE SET
    delivered = m.delivered + excluded.delivered,
    failed = m.failed + excluded.failed,
    buckets = ARRAY(
        SELECT coalesce(a, 0) + coalesce(b, 0)
        FROM unnest(m.buckets, excluded.buckets) WITH ORDINALITY AS t (a, b, place)
        ORDER BY place
    )

-- name: keep_requests
-- The first request of a callback is kept. Only one process inserts, so no other can be first.
-- Earlier ones are searched between $6 and $7, so that not every partition is read.
INSERT INTO journal.requests (callback_id, client_id, reference, at, sealed)
SELECT DISTINCT ON (callback_id, client_id, reference)
    callback_id, client_id, reference, at, sealed
FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::bytea[])
    AS u (callback_id, client_id, reference, at, sealed)
WHERE NOT EXISTS (
    SELECT FROM journal.requests r
    WHERE r.callback_id = u.callback_id AND r.client_id = u.client_id
        AND r.reference = u.reference AND r.at BETWEEN $6 AND $7
)
ORDER BY callback_id, client_id, reference, at

-- name: now
SELECT clock_timestamp() AS now

-- name: partitions
SELECT p.relname AS name FROM pg_inherits i
JOIN pg_class p ON p.oid = i.inhrelid
WHERE i.inhparent = $1::text::regclass
ORDER BY p.relname

-- name: delete_minutes
DELETE FROM journal.minutes WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM journal.minutes WHERE minute < $1 LIMIT $2
))

-- name: delete_audit
DELETE FROM journal.audit WHERE id IN (
    SELECT id FROM journal.audit WHERE at < $1 ORDER BY at LIMIT $2
)

-- name: delete_jobs
DELETE FROM journal.jobs WHERE id IN (
    SELECT id FROM journal.jobs WHERE finished_at < $1 LIMIT $2
)

-- name: delete_gaps
DELETE FROM journal.gaps WHERE id IN (SELECT id FROM journal.gaps WHERE at < $1 LIMIT $2)

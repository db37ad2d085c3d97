-- One statement, hence one transaction: an event's key and its commands are committed together.
-- Keys are inserted in order, so that two processes cannot deadlock.
-- name: accept
WITH new AS (
    INSERT INTO ingestion.seen_events (key)
    SELECT key FROM unnest($1::uuid[]) AS input(key) ORDER BY key
    ON CONFLICT DO NOTHING
    RETURNING key
), commands AS (
    INSERT INTO ingestion.outbox (id, kind, body, traceparent, created_at, leased_until)
    SELECT id, kind, body, traceparent, created_at, now() + make_interval(secs => $8)
    FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::bytea[], $6::text[], $7::timestamptz[])
        AS command(key, id, kind, body, traceparent, created_at)
    JOIN new USING (key)
    ON CONFLICT DO NOTHING  -- still in the outbox since before its key was deleted
)
SELECT key FROM new;

-- name: claim
WITH due AS (
    SELECT id FROM ingestion.outbox WHERE leased_until <= now()
    ORDER BY leased_until LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE ingestion.outbox AS command SET leased_until = now() + make_interval(secs => $2)
FROM due WHERE command.id = due.id
RETURNING command.id, kind, body, traceparent, created_at;

-- name: delete
DELETE FROM ingestion.outbox WHERE id = ANY ($1::uuid[]);

-- name: release
UPDATE ingestion.outbox SET leased_until = now() + make_interval(secs => $2)
WHERE id = ANY ($1::uuid[]);

-- name: prune
DELETE FROM ingestion.seen_events WHERE key IN (
    SELECT key FROM ingestion.seen_events WHERE seen_at < now() - make_interval(secs => $1)
    ORDER BY seen_at LIMIT $2 FOR UPDATE SKIP LOCKED
);

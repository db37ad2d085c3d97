-- name: create
INSERT INTO subscriptions.endpoints (
    id, client_id, url, event_types, description, headers, rate_limit, ordered, fingerprint, secret
)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10
WHERE $11 > (
    SELECT count(*) FROM subscriptions.endpoints WHERE client_id = $2 AND status <> 'deleted'
)
ON CONFLICT (id) DO NOTHING
RETURNING *;

-- name: find
SELECT * FROM subscriptions.endpoints WHERE client_id = $1 AND id = $2 AND status <> 'deleted';

-- name: exists
SELECT FROM subscriptions.endpoints WHERE id = $1;

-- Newest first, after the cursor ($2, $3): at most $5, and those that begin in the first $6 bytes.
-- name: page
SELECT * FROM (
    SELECT *, sum(size) OVER (ORDER BY created_at DESC, id DESC) - size AS earlier FROM (
        SELECT
            *, count(*) OVER () AS found,
            octet_length(url) + coalesce(octet_length(headers), 0)
            + octet_length(concat(description, event_types::text)) AS size
        FROM (
            SELECT * FROM subscriptions.endpoints
            WHERE client_id = $1 AND status <> 'deleted' AND (created_at, id) < ($2, $3)
            AND ($4::text IS NULL OR status = $4)
            ORDER BY created_at DESC, id DESC LIMIT $5
        ) AS listed
    ) AS sized
) AS page
WHERE earlier < $6 ORDER BY created_at DESC, id DESC;

-- name: lock
SELECT * FROM subscriptions.endpoints
WHERE client_id = $1 AND id = $2 AND status <> 'deleted' FOR NO KEY UPDATE;

-- A sweep follows if the order or the status changes. It sets new due times for waiting deliveries,
-- unless they are in order. So the first one after a pause is due after one interval of the rate.
-- name: change
UPDATE subscriptions.endpoints SET
    url = $2, event_types = $3, description = $4, headers = $5, rate_limit = $6, ordered = $7,
    fingerprint = $8, status = $9, version = version + 1, updated_at = now(),
    sweeping = sweeping OR ordered <> $7 OR status <> $9,
    failing_since = CASE WHEN status = $9 THEN failing_since END,
    next_free_at = CASE
        WHEN rate_limit IS DISTINCT FROM $6 THEN now()
        WHEN status <> 'active' AND $9 = 'active' AND NOT sweeping AND NOT $7
            THEN least(next_free_at, now() + interval '1 second' / rate_limit)
        ELSE next_free_at
    END
WHERE id = $1
RETURNING *;

-- name: rotate
UPDATE subscriptions.endpoints SET
    old_secret = secret, old_secret_until = now() + make_interval(secs => $3), secret = $2,
    rotation = $4, version = version + 1, updated_at = now()
WHERE id = $1
RETURNING *;

-- Retention deletes the row after the last delivery. Until then, its messages list them.
-- name: delete
UPDATE subscriptions.endpoints
SET status = 'deleted', sweeping = true, headers = NULL, old_secret = NULL, updated_at = now()
WHERE id = $1;

-- name: add_replay
INSERT INTO subscriptions.replays (id, endpoint_id, since, until, cursor)
VALUES ($1, $2, $3, least($4, now()), 0)
ON CONFLICT (id) DO NOTHING;

-- Newest first.
-- name: replays
SELECT id, since, until, replayed, created_at, finished_at FROM subscriptions.replays
WHERE endpoint_id = $1 AND (created_at, id) < ($2, $3)
ORDER BY created_at DESC, id DESC LIMIT $4;

-- name: sweeping
SELECT id FROM subscriptions.endpoints WHERE sweeping AND id > $1 ORDER BY id LIMIT 1;

-- This waits for the lock, so that endpoints that are locked most of the time are also swept.
-- name: lock_sweeping
SELECT id, client_id, status, ordered, failing_since, description, version
FROM subscriptions.endpoints
WHERE id = $1 AND sweeping FOR NO KEY UPDATE;

-- name: swept
UPDATE subscriptions.endpoints SET sweeping = false WHERE id = $1;

-- Unless it was resumed, and perhaps disabled again, in the meantime.
-- name: reported
UPDATE subscriptions.endpoints SET sweeping = false
WHERE id = $1 AND status = 'disabled' AND failing_since = $2;

-- Each batch of a sweep first locks its rows, in the same order as settlements, which prevents
-- deadlocks. So a batch with fewer rows than the limit is the last one. A batch begins after the last
-- delivery of the one before ($3). Otherwise it would read all waiting deliveries again.
-- name: hold
WITH batch AS MATERIALIZED (
    SELECT id FROM subscriptions.deliveries
    WHERE endpoint_id = $1 AND finished_at IS NULL AND status = 'pending' AND id > $3
    ORDER BY id LIMIT $2 FOR NO KEY UPDATE
), held AS (
    UPDATE subscriptions.deliveries SET status = 'waiting' WHERE id IN (SELECT id FROM batch)
)
SELECT count(*) AS count, max(id) AS last FROM batch;

-- In the order of creation, and at the rate of the endpoint.
-- name: release
WITH oldest AS MATERIALIZED (
    SELECT id FROM subscriptions.deliveries
    WHERE endpoint_id = $1 AND status = 'waiting' ORDER BY id LIMIT $2 FOR NO KEY UPDATE
), batch AS (
    SELECT id, row_number() OVER (ORDER BY id) AS number FROM oldest
), start AS (
    SELECT
        CASE WHEN rate_limit IS NULL THEN now() ELSE greatest(now(), next_free_at) END AS at,
        CASE
            WHEN rate_limit IS NULL THEN interval '1 microsecond'
            ELSE make_interval(secs => 1 / rate_limit)
        END AS step
    FROM subscriptions.endpoints WHERE id = $1
), advanced AS (
    UPDATE subscriptions.endpoints SET next_free_at = at + step * (SELECT count(*) FROM batch)
    FROM start WHERE id = $1 AND rate_limit IS NOT NULL
)
UPDATE subscriptions.deliveries AS delivery
SET status = 'pending', due_at = at + step * (number - 1)
FROM batch, start WHERE delivery.id = batch.id;

-- name: fail
WITH batch AS MATERIALIZED (
    SELECT id FROM subscriptions.deliveries
    WHERE endpoint_id = $1 AND finished_at IS NULL AND status IN ('pending', 'waiting')
    ORDER BY id LIMIT $2 FOR NO KEY UPDATE
)
UPDATE subscriptions.deliveries
SET status = 'failed', last_error = 'endpoint_disabled', finished_at = now()
WHERE id IN (SELECT id FROM batch);

-- name: cancel
WITH batch AS MATERIALIZED (
    SELECT id FROM subscriptions.deliveries
    WHERE endpoint_id = $1 AND finished_at IS NULL ORDER BY id LIMIT $2 FOR NO KEY UPDATE
)
UPDATE subscriptions.deliveries SET status = 'cancelled', finished_at = now()
WHERE id IN (SELECT id FROM batch);

-- The replays of an endpoint follow each other, so that together they keep the rate.
-- name: due_replays
SELECT id FROM (
    SELECT DISTINCT ON (endpoint_id) id, next_at FROM subscriptions.replays
    WHERE finished_at IS NULL ORDER BY endpoint_id, id
) AS first
WHERE next_at <= now() ORDER BY next_at;

-- name: next_replay
SELECT extract(epoch FROM min(next_at) - now())::float8 FROM (
    SELECT DISTINCT ON (endpoint_id) next_at FROM subscriptions.replays
    WHERE finished_at IS NULL ORDER BY endpoint_id, id
) AS first;

-- name: lock_replay
SELECT endpoint_id, since, until, cursor FROM subscriptions.replays
WHERE id = $1 AND finished_at IS NULL AND next_at <= now() FOR NO KEY UPDATE SKIP LOCKED;

-- name: lock_endpoint
SELECT status FROM subscriptions.endpoints WHERE id = $1 FOR NO KEY UPDATE;

-- name: failed
SELECT id FROM subscriptions.deliveries
WHERE endpoint_id = $1 AND status = 'failed' AND finished_at >= $2 AND finished_at < $3 AND id > $4
ORDER BY id LIMIT $5;

-- name: replayed
UPDATE subscriptions.replays
SET cursor = $2, replayed = replayed + $3, next_at = now() + make_interval(secs => $4)
WHERE id = $1;

-- name: end_replay
UPDATE subscriptions.replays SET finished_at = now() WHERE id = $1;

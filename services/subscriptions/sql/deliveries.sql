-- Endpoints whose deliveries need more than a row: in order, at a rate, paused or disabled. The
-- lock serialises additions, claims of waiting deliveries and changes of these endpoints.
-- name: lock_special
SELECT id FROM subscriptions.endpoints
WHERE id = ANY ($1::uuid[]) AND (ordered OR rate_limit IS NOT NULL OR status <> 'active')
ORDER BY id FOR NO KEY UPDATE;

-- Endpoints that are not in $9 are treated as active. If one is not, its claim finds out.
-- name: add
WITH input AS (
    SELECT *
    FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bytea[], $7::text[],
        $8::boolean[]
    ) WITH ORDINALITY AS input (
        endpoint_id, client_id, message_id, sequence, payload, destination, webhook_id, at_once, number
    )
), special AS (
    SELECT
        id, status, ordered, interval '1 second' / rate_limit AS pause,
        greatest(next_free_at, now()) AS free_at,
        ordered AND EXISTS (
            SELECT FROM subscriptions.deliveries d
            WHERE d.endpoint_id = e.id AND d.in_order AND d.finished_at IS NULL
        ) AS busy
    FROM subscriptions.endpoints e WHERE id = ANY ($9::uuid[])
), placed AS (
    SELECT
        input.*, status, pause, free_at, busy, coalesce(ordered AND NOT at_once, false) AS in_order,
        row_number() OVER (PARTITION BY endpoint_id ORDER BY number) - 1 AS before,
        row_number() OVER (PARTITION BY endpoint_id, at_once ORDER BY number) - 1 AS before_in_order
    FROM input LEFT JOIN special ON id = endpoint_id
), moved AS (
    UPDATE subscriptions.endpoints e SET next_free_at = used.free_at + used.count * used.pause
    FROM (
        SELECT endpoint_id, count(*) AS count, min(free_at) AS free_at, min(pause) AS pause
        FROM placed WHERE pause IS NOT NULL AND status IN ('active', 'paused') GROUP BY endpoint_id
    ) AS used
    WHERE e.id = used.endpoint_id
)
INSERT INTO subscriptions.deliveries (
    endpoint_id, client_id, message_id, sequence, payload, destination, webhook_id, in_order,
    status, due_at, last_error, finished_at
)
SELECT
    endpoint_id, client_id, message_id, sequence, payload, destination, webhook_id, in_order,
    CASE
        WHEN status = 'disabled' THEN 'failed'
        WHEN status = 'deleted' THEN 'cancelled'
        WHEN status = 'paused' THEN 'waiting'
        WHEN in_order AND (busy OR before_in_order > 0) THEN 'waiting'
        ELSE 'pending'
    END,
    coalesce(free_at + before * pause, now()),
    CASE WHEN status = 'disabled' THEN 'endpoint_disabled' END,
    CASE WHEN status IN ('disabled', 'deleted') THEN now() END
FROM placed ORDER BY number;

-- name: endpoints_of_users
SELECT id, user_id FROM subscriptions.endpoints
WHERE user_id = ANY ($1::bigint[]) AND status <> 'deleted';

-- Deliver finished deliveries of an endpoint, which is locked, again: at most $3 a second.
-- name: redeliver
WITH endpoint AS (
    SELECT
        id, status, rate_limit, interval '1 second' / least(rate_limit, $3::float8) AS pause,
        greatest(next_free_at, now()) AS free_at
    FROM subscriptions.endpoints WHERE id = $1 AND status IN ('active', 'paused')
), again AS (
    SELECT d.id, row_number() OVER (ORDER BY d.id) - 1 AS before
    FROM subscriptions.deliveries d
    WHERE d.id = ANY ($2::bigint[]) AND d.endpoint_id = $1 AND d.finished_at IS NOT NULL
), moved AS (
    UPDATE subscriptions.endpoints e
    SET next_free_at = endpoint.free_at + (SELECT count(*) FROM again) * endpoint.pause
    FROM endpoint WHERE e.id = endpoint.id AND e.rate_limit IS NOT NULL
)
UPDATE subscriptions.deliveries d SET
    status = CASE WHEN d.in_order OR endpoint.status = 'paused' THEN 'waiting' ELSE 'pending' END,
    due_at = endpoint.free_at + again.before * coalesce(endpoint.pause, interval '0'),
    first_dispatch = d.dispatch + 1, failures = 0, finished_at = NULL
FROM endpoint, again WHERE d.id = again.id
RETURNING d.id;

-- name: lock_endpoint
SELECT id FROM subscriptions.endpoints WHERE id = $1 FOR NO KEY UPDATE;

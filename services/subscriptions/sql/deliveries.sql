-- Endpoints with an order, a rate, another status than active, or a sweep. The lock serialises new
-- deliveries, claims of waiting deliveries, and changes of these endpoints.
-- name: lock_special
SELECT id FROM subscriptions.endpoints
WHERE id = ANY ($1::uuid[]) AND (
    ordered OR rate_limit IS NOT NULL OR status <> 'active' OR sweeping
)
ORDER BY id FOR NO KEY UPDATE;

-- Endpoints that are not in $9 are treated as active. If one is not, the claim corrects its delivery.
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
        id, status, sweeping, ordered, interval '1 second' / rate_limit AS pause,
        greatest(next_free_at, now()) AS free_at,
        ordered AND EXISTS (
            SELECT FROM subscriptions.deliveries d
            WHERE d.endpoint_id = e.id AND d.in_order AND d.finished_at IS NULL
        ) AS busy
    FROM subscriptions.endpoints e WHERE id = ANY ($9::uuid[])
), placed AS (
    SELECT
        input.*, status, sweeping, pause, free_at, busy, coalesce(ordered AND NOT at_once, false) AS in_order,
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
        WHEN status = 'paused' OR sweeping AND NOT at_once THEN 'waiting'
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

-- Claim at most $1 deliveries that are due, or whose lease has expired, for $2 seconds.
-- name: claim
WITH due AS MATERIALIZED (
    SELECT id FROM subscriptions.deliveries
    WHERE status IN ('pending', 'dispatched') AND due_at <= now()
    ORDER BY due_at, id LIMIT $1 FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE subscriptions.deliveries d SET
        status = 'dispatched', dispatch = d.dispatch + 1, earlier_attempts = d.attempts,
        due_at = now() + make_interval(secs => $2)
    FROM due WHERE d.id = due.id
    RETURNING
        d.id, d.endpoint_id, d.dispatch, d.client_id, d.message_id, d.sequence, d.payload,
        d.destination, d.webhook_id
)
SELECT
    c.id, c.dispatch, c.webhook_id, c.sequence, c.destination, e.client_id, e.status, e.url,
    e.headers, e.secret, CASE WHEN e.old_secret_until > now() THEN e.old_secret END AS old_secret,
    e.fingerprint, coalesce(c.payload, m.payload) AS payload, u.type, u.event, now() AS now
FROM claimed c
LEFT JOIN subscriptions.endpoints e ON e.id = c.endpoint_id
LEFT JOIN subscriptions.endpoint_messages m
    ON m.client_id = c.client_id AND m.id = c.message_id
LEFT JOIN subscriptions.user_events u
    ON u.user_id = e.user_id AND u.sequence = c.sequence
ORDER BY c.id;

-- Seconds until the next delivery is due.
-- name: next_due
SELECT extract(epoch FROM min(due_at) - now())::float8 AS seconds
FROM subscriptions.deliveries WHERE status IN ('pending', 'dispatched');

-- Claims that the broker has confirmed, unless they have a result. The order of the locks prevents
-- deadlocks with settlements.
-- name: extend
WITH locked AS MATERIALIZED (
    SELECT id FROM subscriptions.deliveries WHERE id = ANY ($1::bigint[]) ORDER BY id FOR UPDATE
)
UPDATE subscriptions.deliveries d SET due_at = now() + make_interval(secs => $3)
FROM unnest($1::bigint[], $2::integer[]) AS input (id, dispatch) JOIN locked USING (id)
WHERE d.id = input.id AND d.dispatch = input.dispatch AND d.status = 'dispatched';

-- Claims that were not published: due again in $3 seconds.
-- name: release
WITH locked AS MATERIALIZED (
    SELECT id FROM subscriptions.deliveries WHERE id = ANY ($1::bigint[]) ORDER BY id FOR UPDATE
)
UPDATE subscriptions.deliveries d SET
    status = 'pending', due_at = now() + make_interval(secs => $3),
    last_error = coalesce($4, d.last_error)
FROM unnest($1::bigint[], $2::integer[]) AS input (id, dispatch) JOIN locked USING (id)
WHERE d.id = input.id AND d.dispatch = input.dispatch AND d.status = 'dispatched';

-- name: lock_endpoints_of
SELECT id FROM subscriptions.endpoints WHERE id IN (
    SELECT endpoint_id FROM subscriptions.deliveries WHERE id = ANY ($1::bigint[])
) ORDER BY id FOR NO KEY UPDATE;

-- Claims whose endpoint was not active, and is locked now.
-- name: hold
WITH stored AS MATERIALIZED (
    SELECT id, endpoint_id FROM subscriptions.deliveries WHERE id = ANY ($1::bigint[])
    ORDER BY id FOR UPDATE
)
UPDATE subscriptions.deliveries d SET
    status = CASE e.status
        WHEN 'active' THEN 'pending'
        WHEN 'paused' THEN 'waiting'
        WHEN 'disabled' THEN 'failed'
        ELSE 'cancelled'
    END,
    last_error = CASE e.status WHEN 'disabled' THEN 'endpoint_disabled' ELSE d.last_error END,
    finished_at = CASE WHEN e.status IN ('active', 'paused') THEN NULL ELSE now() END,
    due_at = now()
FROM unnest($1::bigint[], $2::integer[]) AS input (id, dispatch)
JOIN stored USING (id)
LEFT JOIN subscriptions.endpoints e ON e.id = stored.endpoint_id
WHERE d.id = input.id AND d.dispatch = input.dispatch AND d.status = 'dispatched';

-- Endpoints whose state can depend on facts: those of deliveries in order or with a failed
-- attempt ($2), those that fail, and those that share a position with a token.
-- name: lock_settled
SELECT id FROM subscriptions.endpoints WHERE id IN (
    SELECT d.endpoint_id FROM subscriptions.deliveries d
    JOIN subscriptions.endpoints e ON e.id = d.endpoint_id
    WHERE d.id = ANY ($1::bigint[]) AND (
        d.in_order OR d.id = ANY ($2::bigint[]) OR e.failing_since IS NOT NULL
        OR e.ack_token IS NOT NULL
    )
) ORDER BY id FOR NO KEY UPDATE;

-- name: lock
SELECT
    id, endpoint_id, status, dispatch, first_dispatch, failures, earlier_attempts, attempts,
    last_error, in_order, destination IS NULL AS is_own
FROM subscriptions.deliveries WHERE id = ANY ($1::bigint[]) ORDER BY id FOR NO KEY UPDATE;

-- name: save
UPDATE subscriptions.deliveries d SET
    status = input.status, failures = input.failures, attempts = input.attempts,
    last_error = input.last_error,
    due_at = CASE
        WHEN input.status = 'pending' THEN now() + make_interval(secs => input.delay)
        ELSE d.due_at
    END,
    finished_at = CASE WHEN input.finished THEN now() END
FROM unnest(
    $1::bigint[], $2::text[], $3::integer[], $4::integer[], $5::text[], $6::float8[], $7::boolean[]
) AS input (id, status, failures, attempts, last_error, delay, finished)
WHERE d.id = input.id;

-- name: add_attempts
INSERT INTO subscriptions.attempts (delivery_id, attempt, at, status_code, duration, error)
SELECT * FROM unnest(
    $1::bigint[], $2::integer[], $3::timestamptz[], $4::integer[], $5::float8[], $6::text[]
)
ON CONFLICT DO NOTHING;

-- name: urls
SELECT id, url FROM subscriptions.endpoints WHERE id = ANY ($1::uuid[]);

-- Endpoints ($1) that accepted a delivery ($2), failed, or are gone ($3). Disables those that have
-- failed for $4 seconds or are gone, and returns them. Endpoints that are already disabled keep
-- `failing_since`, because their report needs it.
-- name: update_health
UPDATE subscriptions.endpoints e SET
    failing_since = CASE
        WHEN input.disabled OR NOT input.accepted THEN coalesce(e.failing_since, now())
    END,
    status = CASE WHEN input.disabled THEN 'disabled' ELSE e.status END,
    sweeping = e.sweeping OR input.disabled,
    version = e.version + input.disabled::integer,
    updated_at = CASE WHEN input.disabled THEN now() ELSE e.updated_at END
FROM (
    SELECT
        stored.id, accepted,
        stored.status = 'active' AND (gone OR NOT accepted
            AND stored.failing_since <= now() - make_interval(secs => $4)) IS TRUE AS disabled
    FROM unnest($1::uuid[], $2::boolean[], $3::boolean[]) AS given (id, accepted, gone)
    JOIN subscriptions.endpoints stored USING (id)
    WHERE stored.status <> 'disabled'
        AND (gone OR NOT accepted OR stored.failing_since IS NOT NULL)
) AS input
WHERE e.id = input.id
RETURNING e.id, input.disabled;

-- Make the next delivery in order of each endpoint pending. The endpoints are locked. It can also be
-- one that waited in a pause from before the endpoint was ordered.
-- name: promote
UPDATE subscriptions.deliveries d SET
    status = 'pending', in_order = true, due_at = greatest(d.due_at, now())
FROM (
    SELECT (
        SELECT first.id FROM subscriptions.deliveries first
        WHERE first.endpoint_id = e.id AND first.finished_at IS NULL
            AND first.status = 'waiting' AND (first.in_order OR e.ordered)
        ORDER BY first.id LIMIT 1
    ) AS id
    FROM subscriptions.endpoints e
    WHERE e.id = ANY ($1::uuid[]) AND e.status = 'active' AND NOT EXISTS (
        SELECT FROM subscriptions.deliveries active
        WHERE active.endpoint_id = e.id AND active.in_order
            AND active.status IN ('pending', 'dispatched')
    )
) AS next
WHERE d.id = next.id;

-- Move the position of each token that shares it with an endpoint, up to the first event that is not
-- delivered.
-- name: acknowledge
UPDATE subscriptions.tokens t SET position = greatest(t.position, seen.position)
FROM (
    SELECT e.ack_token, coalesce(
        (
            SELECT u.sequence - 1 FROM subscriptions.user_events u
            WHERE u.user_id = e.user_id AND u.sequence > owner.position AND NOT EXISTS (
                SELECT FROM subscriptions.deliveries d
                WHERE d.endpoint_id = e.id AND d.sequence = u.sequence AND d.status = 'delivered'
            )
            ORDER BY u.sequence LIMIT 1
        ),
        (SELECT max(u.sequence) FROM subscriptions.user_events u WHERE u.user_id = e.user_id)
    ) AS position
    FROM subscriptions.endpoints e
    JOIN subscriptions.tokens owner ON owner.hash = e.ack_token
    WHERE e.id = ANY ($1::uuid[])
) AS seen
WHERE t.hash = seen.ack_token AND t.position < seen.position;

-- name: lock_sharing
SELECT id FROM subscriptions.endpoints WHERE ack_token = $1 ORDER BY id FOR NO KEY UPDATE;

-- name: cancel_read
UPDATE subscriptions.deliveries SET status = 'cancelled', finished_at = now()
WHERE id IN (
    SELECT id FROM subscriptions.deliveries
    WHERE endpoint_id = ANY ($1::uuid[]) AND finished_at IS NULL AND sequence <= $2
        AND status IN ('pending', 'waiting')
    ORDER BY id FOR NO KEY UPDATE
);

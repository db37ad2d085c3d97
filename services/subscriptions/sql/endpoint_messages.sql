-- name: matching
SELECT id FROM subscriptions.endpoints
WHERE client_id = $1 AND status <> 'deleted' AND event_types && $2::text[]
ORDER BY id;

-- name: add
INSERT INTO subscriptions.endpoint_messages (client_id, id, event_type, payload, endpoints)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (client_id, id) DO NOTHING
RETURNING endpoints;

-- name: find
SELECT event_type, payload, endpoints, created_at FROM subscriptions.endpoint_messages
WHERE client_id = $1 AND id = $2;

-- name: deliveries_of_message
SELECT *, $3::text AS event_type FROM subscriptions.deliveries
WHERE client_id = $1 AND message_id = $2 ORDER BY id LIMIT $4;

-- name: delivery_of_message
SELECT id FROM subscriptions.deliveries
WHERE client_id = $1 AND message_id = $2 AND endpoint_id = $3
ORDER BY id LIMIT 1;

-- Newest first.
-- name: deliveries_of_endpoint
SELECT delivery.*, event_type
FROM subscriptions.deliveries AS delivery
JOIN subscriptions.endpoint_messages AS message
    ON message.client_id = delivery.client_id AND message.id = message_id
WHERE delivery.client_id = $1 AND endpoint_id = $2 AND delivery.id < $3 AND ($4::text IS NULL OR status = $4)
ORDER BY delivery.id DESC LIMIT $5;

-- Newest first, of all endpoints of a client: at most $3 that are older than $2. They belong to the
-- $3 endpoints that failed last, and none is older than the oldest of the last failures of these.
-- So most endpoints cost one entry of the index.
-- name: failed_of_client
WITH latest AS MATERIALIZED (
    SELECT endpoint.id AS endpoint_id, last.id
    FROM subscriptions.endpoints AS endpoint
    CROSS JOIN LATERAL (
        SELECT id FROM subscriptions.deliveries
        WHERE endpoint_id = endpoint.id AND status = 'failed' AND id < $2
        ORDER BY id DESC LIMIT 1
    ) AS last
    WHERE endpoint.client_id = $1 AND endpoint.status <> 'deleted'
    ORDER BY last.id DESC LIMIT $3
)
SELECT delivery.*, event_type
FROM (
    SELECT found.*
    FROM latest
    CROSS JOIN LATERAL (
        SELECT * FROM subscriptions.deliveries
        WHERE endpoint_id = latest.endpoint_id AND status = 'failed' AND id <= latest.id
            AND id >= (SELECT CASE count(*) WHEN $3 THEN min(each.id) ELSE 0 END FROM latest AS each)
        ORDER BY id DESC LIMIT $3
    ) AS found
    ORDER BY found.id DESC LIMIT $3
) AS delivery
JOIN subscriptions.endpoint_messages AS message
    ON message.client_id = delivery.client_id AND message.id = message_id
ORDER BY delivery.id DESC;

-- name: attempts
SELECT delivery_id, endpoint_id, attempt, at, status_code, duration, error
FROM subscriptions.deliveries AS delivery
JOIN subscriptions.attempts ON delivery_id = delivery.id
WHERE client_id = $1 AND message_id = $2 AND (at, delivery_id) > ($3, $4)
ORDER BY at, delivery_id LIMIT $5;

-- name: prune_attempts
DELETE FROM subscriptions.attempts WHERE (delivery_id, attempt) IN (
    SELECT delivery_id, attempt FROM subscriptions.attempts
    WHERE at < now() - make_interval(secs => $1) ORDER BY at LIMIT $2
);

-- name: prune_deliveries
DELETE FROM subscriptions.deliveries WHERE id IN (
    SELECT id FROM subscriptions.deliveries
    WHERE finished_at < now() - make_interval(secs => $1) ORDER BY finished_at LIMIT $2
    FOR UPDATE SKIP LOCKED
);

-- A message is kept while it has deliveries. Many can be kept, so this checks $2 messages after a
-- position, and returns the next position.
-- name: prune_messages
WITH page AS MATERIALIZED (
    SELECT created_at, client_id, id FROM subscriptions.endpoint_messages
    WHERE created_at < now() - make_interval(secs => $1)
        AND created_at >= $3 AND (created_at, client_id, id) > ($3, $4, $5)
    ORDER BY created_at, client_id, id LIMIT $2
), deleted AS (
    DELETE FROM subscriptions.endpoint_messages AS message USING page
    WHERE message.client_id = page.client_id AND message.id = page.id AND NOT EXISTS (
        SELECT FROM subscriptions.deliveries AS delivery
        WHERE delivery.client_id = page.client_id AND delivery.message_id = page.id
    )
    RETURNING 1
)
SELECT created_at, client_id, id, (SELECT count(*) FROM deleted) AS deleted
FROM page ORDER BY created_at DESC, client_id DESC, id DESC LIMIT 1;

-- name: prune_endpoints
DELETE FROM subscriptions.endpoints WHERE id IN (
    SELECT id FROM subscriptions.endpoints AS endpoint
    WHERE status = 'deleted' AND NOT sweeping
    AND NOT EXISTS (SELECT FROM subscriptions.deliveries WHERE endpoint_id = endpoint.id)
    LIMIT $1
);

-- name: prune_replays
DELETE FROM subscriptions.replays WHERE id IN (
    SELECT id FROM subscriptions.replays
    WHERE finished_at < now() - make_interval(secs => $1) LIMIT $2
);

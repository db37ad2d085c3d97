-- name: user_of_token
SELECT user_id FROM subscriptions.tokens WHERE hash = $1 AND expires_at > now();

-- name: lock_user
SELECT id FROM subscriptions.users WHERE id = $1 FOR NO KEY UPDATE;

-- name: registration
SELECT id, url, secret, fingerprint, rotation, status FROM subscriptions.endpoints
WHERE user_id = $1 AND status <> 'deleted' FOR NO KEY UPDATE;

-- name: register
INSERT INTO subscriptions.endpoints (
    id, user_id, url, secret, fingerprint, ordered, ack_token, rotation
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8);

-- A sweep follows if it was not active.
-- name: change
UPDATE subscriptions.endpoints SET
    url = $2, secret = $3, fingerprint = $4, ordered = $5, ack_token = $6, rotation = $7,
    sweeping = sweeping OR status <> 'active', status = 'active', failing_since = NULL,
    version = version + 1, updated_at = now()
WHERE id = $1;

-- Deliveries that failed at the old URL are due at once at the new one, $2 of them at most. More keep
-- their due times.
-- name: make_due
UPDATE subscriptions.deliveries SET status = 'pending', due_at = now()
WHERE id IN (
    SELECT id FROM subscriptions.deliveries
    WHERE endpoint_id = $1 AND finished_at IS NULL AND destination IS NULL AND attempts > 0
        AND status IN ('pending', 'dispatched')
    ORDER BY id LIMIT $2 FOR NO KEY UPDATE
);

-- name: stop
UPDATE subscriptions.endpoints SET
    status = 'deleted', sweeping = true, ack_token = NULL, updated_at = now()
WHERE user_id = $1 AND status <> 'deleted'
RETURNING id;

-- More than $2 are left for the sweep.
-- name: cancel
UPDATE subscriptions.deliveries SET status = 'cancelled', finished_at = now() WHERE id IN (
    SELECT id FROM subscriptions.deliveries WHERE endpoint_id = $1 AND finished_at IS NULL
    ORDER BY id LIMIT $2 FOR NO KEY UPDATE
);

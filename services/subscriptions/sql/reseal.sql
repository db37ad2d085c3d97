-- Endpoints after an id ($1): their secrets are returned if one of them does not begin with $3.
-- name: endpoints
SELECT id, outdated, CASE WHEN outdated THEN ARRAY[url, headers, secret, old_secret] END AS secrets
FROM (
    SELECT *, EXISTS (
        SELECT FROM unnest(ARRAY[url, headers, secret, old_secret]) AS encrypted
        WHERE substring(encrypted FOR length($3::bytea)) <> $3
    ) AS outdated
    FROM subscriptions.endpoints WHERE id > $1 ORDER BY id LIMIT $2
) AS page ORDER BY id;

-- Rows that are locked, or changed since they were read, are skipped, so this waits for nobody.
-- name: reseal_endpoint
UPDATE subscriptions.endpoints SET url = $3, headers = $4, secret = $5, old_secret = $6
WHERE id = (
    SELECT id FROM subscriptions.endpoints
    WHERE id = $1 AND ARRAY[url, headers, secret, old_secret] IS NOT DISTINCT FROM $2::bytea[]
    FOR NO KEY UPDATE SKIP LOCKED
)
RETURNING 1;

-- Finished deliveries are not sent again.
-- name: destinations
SELECT id, destination FROM subscriptions.deliveries
WHERE finished_at IS NULL AND destination IS NOT NULL
    AND substring(destination FOR length($1::bytea)) <> $1;

-- name: reseal_delivery
UPDATE subscriptions.deliveries SET destination = $3 WHERE id = (
    SELECT id FROM subscriptions.deliveries WHERE id = $1 AND destination = $2 FOR UPDATE SKIP LOCKED
)
RETURNING 1;

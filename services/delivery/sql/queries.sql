-- name: register
INSERT INTO delivery.processes (providers, alive_until)
VALUES ($1, now() + make_interval(secs => $2)) RETURNING id;

-- name: renew
UPDATE delivery.processes SET alive_until = now() + make_interval(secs => $2)
WHERE id = $1 AND alive_until > now() RETURNING id;

-- name: alive
SELECT provider, count(*) AS processes
FROM delivery.processes CROSS JOIN unnest(providers) AS provider
WHERE alive_until > now() GROUP BY provider;

-- name: unregister
DELETE FROM delivery.processes WHERE id = $1;

-- name: delete_processes
DELETE FROM delivery.processes WHERE alive_until < now() - interval '1 day';

-- Claims messages for a process: new ones, and those that no live process is sending. Returns the
-- others; without a duration, another process is sending them.
-- name: claim
WITH input AS (SELECT unnest($2::uuid[]) AS id),
claimed AS (
    INSERT INTO delivery.messages AS message (id, process)
    SELECT id, $1 FROM input
    ON CONFLICT (id) DO UPDATE SET process = $1
    WHERE message.duration IS NULL AND (message.process = $1 OR NOT EXISTS (
        SELECT FROM delivery.processes
        WHERE processes.id = message.process AND alive_until > now()
    ))
    RETURNING id
)
SELECT id, (SELECT duration FROM delivery.messages AS message WHERE message.id = input.id)
FROM input WHERE NOT EXISTS (SELECT FROM claimed WHERE claimed.id = input.id);

-- The second condition makes PostgreSQL use the index. With the first one alone, it reads the table.
-- name: record
UPDATE delivery.messages AS message SET duration = input.duration
FROM unnest($1::uuid[], $2::real[]) AS input(id, duration)
WHERE message.id = input.id AND message.id = ANY ($1);

-- name: release
DELETE FROM delivery.messages
WHERE id = ANY ($2::uuid[]) AND process = $1 AND duration IS NULL;

-- name: delete_messages
DELETE FROM delivery.messages WHERE id IN (
    SELECT id FROM delivery.messages WHERE claimed_at < now() - make_interval(secs => $1)
    ORDER BY claimed_at LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: add_provider
INSERT INTO delivery.providers (id, tokens, refilled_at) VALUES ($1, $2, now())
ON CONFLICT DO NOTHING;

-- name: lock_provider
SELECT tokens, refilled_at FROM delivery.providers WHERE id = $1 FOR UPDATE;

-- name: now
SELECT clock_timestamp();

-- name: refill_provider
UPDATE delivery.providers SET tokens = $2, refilled_at = $3 WHERE id = $1;

-- name: stop
INSERT INTO delivery.stops AS stop (mailing_id, version, stopped_at)
VALUES ($1, $2, coalesce($3::timestamptz, '-infinity'))
ON CONFLICT (mailing_id) DO UPDATE
SET version = excluded.version, stopped_at = excluded.stopped_at, requested_at = now()
WHERE stop.version < excluded.version;

-- name: stops
SELECT mailing_id, CASE WHEN stopped_at > now()
    THEN extract(epoch FROM stopped_at - now()) ELSE 0 END::float8 AS remaining
FROM delivery.stops WHERE mailing_id = ANY ($1::text[]);

-- name: delete_stops
DELETE FROM delivery.stops WHERE requested_at < now() - make_interval(secs => $1);

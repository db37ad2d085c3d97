-- What the scheduler asks of its schema. Time is the database's: now() in every statement.

-- name: create
-- What is due already is inserted as dispatched, for the caller to publish after the commit.
-- Sorted, so that two batches with the same keys do not wait for each other.
WITH given AS (
    SELECT g.*, coalesce(g.at, now() + g.delay * interval '1 second') AS due
    FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::text[],
        $8::text[], $9::bytea[], $10::text[], $11::text[], $12::text[], $13::float8[],
        $14::float8[], $15::text[], $16::text[], $17::timestamptz[], $18::float8[]
    ) AS g (
        id, client_id, group_key, event_key, fingerprint, context, message,
        headers, secret, exchange, routing_key, format, lease,
        stop_after, rules, traceparent, at, delay
    )
), fresh AS (
    INSERT INTO scheduler.orders (
        id, client_id, group_key, event_key, created_at, fingerprint, context, message,
        headers, secret, exchange, routing_key, format, lease, stop_after, rules, traceparent
    )
    SELECT
        id, client_id, group_key, event_key, now(), fingerprint, context, message,
        headers, secret, exchange, routing_key, format, lease, stop_after, rules, traceparent
    FROM given
    ORDER BY id
    ON CONFLICT DO NOTHING
    RETURNING id
)
INSERT INTO scheduler.events (
    id, run_at, next_at, occurrence, status, in_flight, cancelled, dispatch, first_dispatch,
    retries, attempts, tries, stop_at
)
SELECT
    id,
    due,
    CASE WHEN due <= now() THEN now() + lease * interval '1 second' ELSE due END,
    1,
    CASE WHEN due <= now() THEN 'dispatched' ELSE 'scheduled' END,
    due <= now(),
    false,
    (due <= now())::integer,
    1, 0, 0, 0,
    CASE WHEN due <= now() THEN now() + stop_after * interval '1 second' END
FROM given
WHERE id IN (SELECT id FROM fresh)
RETURNING id, run_at, next_at, in_flight, stop_at, now() AS now

-- name: known
-- Where events are that were created before.
SELECT
    o.id, o.fingerprint,
    coalesce(e.status, h.status) AS status,
    coalesce(e.run_at, h.run_at) AS run_at
FROM scheduler.orders o
LEFT JOIN scheduler.events e USING (id)
LEFT JOIN scheduler.history h USING (id)
WHERE o.id = ANY($1::uuid[])

-- name: claim
-- The oldest due events, leased. $1: nothing due before it is looked at, since the index's dead
-- entries below can't be cleaned away while a transaction idles.
WITH due AS MATERIALIZED (
    SELECT id FROM scheduler.events
    WHERE next_at <= now() AND next_at > $1
    ORDER BY next_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
UPDATE scheduler.events e SET
    in_flight = true,
    next_at = now() + o.lease * interval '1 second',
    dispatch = e.dispatch + 1,
    status = CASE WHEN e.attempts + e.tries > 0 THEN 'retrying' ELSE 'dispatched' END,
    attempts = e.attempts + e.tries,
    tries = 0,
    try_at = NULL,
    -- What may never have got out is not stale.
    stop_at = CASE
        WHEN e.stop_at IS NULL OR (e.in_flight AND e.attempts + e.tries = 0 AND e.stop_at <= now())
        THEN now() + o.stop_after * interval '1 second'
        ELSE e.stop_at
    END
FROM scheduler.orders o
WHERE e.id = ANY(ARRAY(SELECT id FROM due)) AND o.id = e.id
RETURNING
    e.id, o.client_id, o.group_key, o.event_key, e.run_at, e.next_at, e.occurrence, e.status,
    e.in_flight, e.cancelled, e.dispatch, e.first_dispatch, e.retries, e.attempts, e.tries,
    e.try_at, e.stop_at, e.last_error, o.rules,
    o.context, o.message, o.headers, o.secret, o.exchange, o.routing_key, o.format,
    o.traceparent, now() AS now

-- name: next_due
-- Within $2 seconds only: beyond may lie no end of dead entries of leases.
SELECT min(next_at) AS next_at, clock_timestamp() AS now
FROM scheduler.events
WHERE next_at > $1 AND next_at <= now() + $2 * interval '1 second'

-- name: release
-- Claimed, but not published: due again in $3 seconds, if nothing else has happened to them.
UPDATE scheduler.events e SET
    in_flight = false,
    next_at = now() + $3 * interval '1 second',
    status = CASE WHEN e.attempts > 0 THEN 'retrying' ELSE 'scheduled' END
FROM unnest($1::uuid[], $2::integer[]) AS u (id, dispatch)
WHERE e.id = u.id AND e.dispatch = u.dispatch AND e.in_flight AND NOT e.cancelled

-- name: lock
-- Live events, locked until the end of the transaction; in one order, so that nobody deadlocks.
SELECT
    e.id, o.client_id, o.group_key, o.event_key, e.run_at, e.next_at, e.occurrence, e.status,
    e.in_flight, e.cancelled, e.dispatch, e.first_dispatch, e.retries, e.attempts, e.tries,
    e.try_at, e.stop_at, e.last_error, o.rules, now() AS now
FROM scheduler.events e
JOIN scheduler.orders o USING (id)
WHERE e.id = ANY($1::uuid[])
ORDER BY e.id
FOR UPDATE OF e

-- name: save
UPDATE scheduler.events e SET
    run_at = u.run_at, next_at = u.next_at, occurrence = u.occurrence, status = u.status,
    in_flight = u.in_flight, cancelled = u.cancelled, dispatch = u.dispatch,
    first_dispatch = u.first_dispatch, retries = u.retries, attempts = u.attempts,
    tries = u.tries, try_at = u.try_at, stop_at = u.stop_at, last_error = u.last_error
FROM unnest(
    $1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::integer[], $5::text[], $6::boolean[],
    $7::boolean[], $8::integer[], $9::integer[], $10::integer[], $11::integer[], $12::integer[],
    $13::timestamptz[], $14::timestamptz[], $15::text[]
) AS u (
    id, run_at, next_at, occurrence, status, in_flight,
    cancelled, dispatch, first_dispatch, retries, attempts, tries,
    try_at, stop_at, last_error
)
WHERE e.id = u.id

-- name: finish
WITH ended AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::integer[], $5::text[]
    ) AS u (id, client_id, status, attempts, last_error)
), gone AS (
    DELETE FROM scheduler.events e USING ended
    WHERE e.id = ended.id
    RETURNING e.id, e.run_at, e.occurrence, e.dispatch
)
INSERT INTO scheduler.history (
    id, client_id, finished_at, run_at, occurrence, status, dispatch, attempts, last_error
)
SELECT
    gone.id, ended.client_id, now(), gone.run_at, gone.occurrence, ended.status, gone.dispatch,
    ended.attempts, ended.last_error
FROM gone
JOIN ended USING (id)

-- name: past
-- How events ended.
SELECT
    h.id, h.client_id, o.group_key, o.event_key, h.run_at, h.occurrence, h.status, h.dispatch,
    h.attempts, h.last_error, h.finished_at, o.rules
FROM scheduler.history h
JOIN scheduler.orders o USING (id)
WHERE h.id = ANY($1::uuid[])

-- name: id_of_keys
SELECT id FROM scheduler.orders
WHERE client_id = $1 AND coalesce(group_key, '') = coalesce($2, '') AND event_key = $3

-- name: id_of_client
SELECT id FROM scheduler.orders WHERE client_id = $1 AND id = $2

-- name: group_ids
SELECT id, created_at FROM scheduler.orders
WHERE client_id = $1 AND group_key = $2 AND (created_at, id) > ($3, $4)
ORDER BY created_at, id
LIMIT $5

-- name: status
SELECT
    o.id, coalesce(e.status, h.status) AS status, coalesce(e.run_at, h.run_at) AS run_at,
    CASE WHEN e.in_flight THEN e.try_at ELSE e.next_at END AS next_at,
    coalesce(e.attempts + e.tries, h.attempts) AS attempts,
    coalesce(e.last_error, h.last_error) AS last_error, o.group_key, o.event_key, o.context,
    coalesce(e.occurrence, h.occurrence) AS occurrence, o.rules, o.created_at, h.finished_at
FROM scheduler.orders o
LEFT JOIN scheduler.events e USING (id)
LEFT JOIN scheduler.history h USING (id)
WHERE o.id = ANY($1::uuid[])

-- name: client_page
SELECT id, created_at AS position FROM scheduler.orders
WHERE client_id = $1 AND (created_at, id) < ($2, $3)
ORDER BY created_at DESC, id DESC
LIMIT $4

-- name: group_page
SELECT id, created_at AS position FROM scheduler.orders
WHERE client_id = $1 AND (created_at, id) < ($2, $3) AND group_key = $5
ORDER BY created_at DESC, id DESC
LIMIT $4

-- name: failed_page
SELECT id, finished_at AS position FROM scheduler.history
WHERE client_id = $1 AND (finished_at, id) < ($2, $3) AND status = 'failed'
ORDER BY finished_at DESC, id DESC
LIMIT $4

-- name: failed
SELECT h.id FROM scheduler.history h
JOIN scheduler.orders o USING (id)
WHERE h.client_id = $1 AND h.status = 'failed'
    AND ($2::uuid IS NULL OR h.id = $2)
    AND ($3::text IS NULL OR o.group_key = $3)
    AND h.finished_at > coalesce($4::timestamptz, '-infinity')
    AND h.finished_at < coalesce($5::timestamptz, 'infinity')
ORDER BY h.finished_at, h.id
LIMIT $6

-- name: restart
-- Failed events begin again, due now.
WITH gone AS (
    DELETE FROM scheduler.history
    WHERE id = ANY($1::uuid[]) AND status = 'failed'
    RETURNING id, occurrence, dispatch
)
INSERT INTO scheduler.events (
    id, run_at, next_at, occurrence, status, in_flight, cancelled, dispatch, first_dispatch,
    retries, attempts, tries
)
SELECT
    id, now(), now(), occurrence, 'scheduled', false, false, dispatch, dispatch + 1, 0, 0, 0
FROM gone
RETURNING id

-- name: partitions
SELECT c.relname AS name FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'scheduler.history'::regclass
ORDER BY c.relname

-- name: now
SELECT clock_timestamp() AS now

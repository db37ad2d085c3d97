-- The queries of the scheduler. Every statement uses the database's clock, now().

-- name: insert
-- If $18, callbacks that are already due are inserted as dispatched, with a claim lease of $17
-- seconds. The caller publishes them after the commit. Rows are inserted in the order of their
-- keys, so concurrent batches cannot deadlock. Rows with the same id have the same keys, unless an id is misused.
WITH input AS (
    SELECT g.*, t.due, t.due <= now() AND $18 AS claimed
    FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::bytea[],
        $8::text[], $9::text[], $10::text[], $11::float8[], $12::float8[], $13::text[],
        $14::text[], $15::timestamptz[], $16::float8[]
    ) AS g (
        id, client_id, group_key, event_key, fingerprint, context, message,
        exchange, routing_key, format, lease, stop_after, rules,
        traceparent, at, delay
    )
    CROSS JOIN LATERAL (SELECT coalesce(g.at, now() + g.delay * interval '1 second') AS due) t
), inserted AS (
    INSERT INTO scheduler.callback_requests (
        id, client_id, group_key, event_key, created_at, fingerprint, context, message,
        exchange, routing_key, format, lease, stop_after, rules, traceparent
    )
    SELECT
        id, client_id, group_key, event_key, now(), fingerprint, context, message,
        exchange, routing_key, format, lease, stop_after, rules, traceparent
    FROM input
    ORDER BY event_key, group_key, client_id, id
    ON CONFLICT DO NOTHING
    RETURNING id
)
INSERT INTO scheduler.scheduled_callbacks (
    id, client_id, run_at, next_at, occurrence, status, in_flight, cancel_requested, dispatch,
    first_dispatch, main_retries, earlier_attempts, dispatch_attempts, stop_at
)
SELECT
    id,
    client_id,
    due,
    CASE WHEN claimed THEN now() + $17 * interval '1 second' ELSE greatest(due, now()) END,
    1,
    CASE WHEN claimed THEN 'dispatched' ELSE 'scheduled' END,
    claimed,
    false,
    claimed::integer,
    1, 0, 0, 0,
    CASE WHEN claimed THEN now() + stop_after * interval '1 second' END
FROM input
WHERE id IN (SELECT id FROM inserted)
RETURNING id, run_at, next_at, in_flight, stop_at, now() AS now

-- name: replace
-- Replace a request whose callback waits and is locked.
UPDATE scheduler.callback_requests SET
    context = $2, message = $3, exchange = $4, routing_key = $5, format = $6, lease = $7,
    stop_after = $8, rules = $9, traceparent = $10
WHERE id = $1

-- name: content
SELECT context, message, exchange, routing_key, format FROM scheduler.callback_requests
WHERE id = $1

-- name: change
-- Change the content of a callback that waits and is locked.
UPDATE scheduler.callback_requests SET context = $2, message = $3 WHERE id = $1

-- name: existing
-- Callbacks that were created before. Here and below, the time of the request excludes the partitions
-- before it; the day is for clocks that are set back.
SELECT
    r.id, r.fingerprint,
    coalesce(c.status, f.status) AS status,
    coalesce(c.run_at, f.run_at) AS run_at
FROM scheduler.callback_requests r
LEFT JOIN scheduler.scheduled_callbacks c USING (id)
LEFT JOIN LATERAL (
    SELECT * FROM scheduler.finished_callbacks f
    WHERE f.id = r.id AND f.finished_at > r.created_at - interval '1 day'
) f ON true
WHERE r.id = ANY($1::uuid[])

-- name: due
-- The callbacks that have been due longest, and those whose leases have expired. The scans start
-- after $1: while a transaction is idle, vacuum cannot remove the dead index entries of earlier
-- claims, and the scans must skip them.
WITH waiting AS MATERIALIZED (
    SELECT id, next_at FROM scheduler.scheduled_callbacks
    WHERE NOT in_flight AND next_at <= now() AND next_at > $1
    ORDER BY next_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
), expired AS MATERIALIZED (
    SELECT id, next_at FROM scheduler.scheduled_callbacks
    WHERE in_flight AND next_at <= now() AND next_at > $1
    ORDER BY next_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
SELECT id, next_at FROM waiting
UNION ALL
SELECT id, next_at FROM expired

-- name: due_shared
-- The same number $2 of due callbacks of each of the clients $1. The order allows only the index of
-- clients: in the index of due times, the callbacks of one client can be behind a million of another.
-- ANY instead of = keeps the client in the order, and unlike a comparison of rows it ends the scan at
-- the last one that is due.
SELECT due.id, due.next_at
FROM unnest($1::text[]) AS u (client_id)
CROSS JOIN LATERAL (
    SELECT id, next_at FROM scheduler.scheduled_callbacks c
    WHERE NOT in_flight
        AND c.client_id = ANY(ARRAY[u.client_id]) AND next_at <= now()
    ORDER BY c.client_id, next_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
) due

-- name: due_clients
-- The first $2 clients from $1 on with callbacks that wait, and whether one is due. Each step of the
-- recursion finds the next client in the index, so the cost depends on $2 and not on the callbacks.
WITH RECURSIVE clients AS (
    (
        SELECT client_id, next_at FROM scheduler.scheduled_callbacks
        WHERE NOT in_flight AND client_id >= $1
        ORDER BY client_id, next_at
        LIMIT 1
    )
    UNION ALL
    SELECT following.client_id, following.next_at
    FROM clients
    CROSS JOIN LATERAL (
        SELECT c.client_id, c.next_at FROM scheduler.scheduled_callbacks c
        WHERE NOT c.in_flight AND c.client_id > clients.client_id
        ORDER BY c.client_id, c.next_at
        LIMIT 1
    ) following
)
SELECT client_id, next_at <= now() AS due FROM clients
LIMIT $2

-- name: claim
-- Claim the callbacks of `due`, which is `due` or `due_shared`, for $3 seconds. A callback without its
-- request is claimed as well: the scan would otherwise find it first each time.
UPDATE scheduler.scheduled_callbacks c SET
    in_flight = true,
    next_at = now() + $3 * interval '1 second',
    dispatch = c.dispatch + 1,
    status = CASE
        WHEN c.earlier_attempts + c.dispatch_attempts > 0 THEN 'retrying'
        ELSE 'dispatched'
    END,
    earlier_attempts = c.earlier_attempts + c.dispatch_attempts,
    dispatch_attempts = 0,
    next_attempt_at = NULL,
    -- A callback without any attempt has not timed out: it may never have been published.
    stop_at = CASE
        WHEN c.stop_at IS NULL OR c.earlier_attempts + c.dispatch_attempts = 0
        THEN now() + r.stop_after * interval '1 second'
        ELSE c.stop_at
    END
FROM due
LEFT JOIN scheduler.callback_requests r USING (id)
WHERE c.id = due.id
RETURNING
    c.id, r.client_id, r.group_key, r.event_key, c.run_at, c.next_at, c.occurrence, c.status,
    c.in_flight, c.cancel_requested, c.dispatch, c.first_dispatch, c.main_retries,
    c.earlier_attempts, c.dispatch_attempts, c.next_attempt_at, c.stop_at, c.last_error, r.rules,
    r.context, r.message, r.exchange, r.routing_key, r.format, r.lease, r.traceparent,
    due.next_at AS due_at, now() AS now

-- name: extend
-- Extend claims whose dispatch the broker has confirmed, unless they have a result. The order of the
-- locks prevents deadlocks with settlements.
WITH locked AS MATERIALIZED (
    SELECT id FROM scheduler.scheduled_callbacks
    WHERE id = ANY($1::uuid[])
    ORDER BY id
    FOR UPDATE
)
UPDATE scheduler.scheduled_callbacks c SET
    next_at = now() + u.lease * interval '1 second'
FROM unnest($1::uuid[], $2::integer[], $3::float8[]) AS u (id, dispatch, lease)
JOIN locked USING (id)
WHERE c.id = u.id AND c.dispatch = u.dispatch AND c.in_flight

-- name: next_due
-- Only within $2 seconds: beyond that, the scan could meet many dead index entries of leases.
SELECT
    least(
        (
            SELECT min(next_at) FROM scheduler.scheduled_callbacks
            WHERE NOT in_flight
                AND next_at > $1 AND next_at <= now() + $2 * interval '1 second'
        ),
        (
            SELECT min(next_at) FROM scheduler.scheduled_callbacks
            WHERE in_flight AND next_at > $1 AND next_at <= now() + $2 * interval '1 second'
        )
    ) AS next_at,
    clock_timestamp() AS now

-- name: backlog
-- Counts end at $1, so they stay cheap. The estimate is vacuum's, for more than that.
SELECT
    (
        SELECT count(*)
        FROM (SELECT FROM scheduler.scheduled_callbacks WHERE NOT in_flight LIMIT $1) few
    ) AS waiting,
    (
        SELECT reltuples FROM pg_class
        WHERE oid = 'scheduler.scheduled_callbacks_next_at'::regclass
    ) AS estimate,
    (
        SELECT count(*)
        FROM (
            SELECT FROM scheduler.scheduled_callbacks
            WHERE NOT in_flight AND next_at <= now()
            LIMIT $1
        ) few
    ) AS due,
    (
        SELECT extract(epoch FROM now() - min(next_at))::float8
        FROM scheduler.scheduled_callbacks
        WHERE NOT in_flight AND next_at <= now()
    ) AS oldest

-- name: release
-- Release claims that were not published: due again in $3 seconds, unless they have changed since.
-- The order of the locks prevents deadlocks with settlements.
WITH locked AS MATERIALIZED (
    SELECT id FROM scheduler.scheduled_callbacks
    WHERE id = ANY($1::uuid[])
    ORDER BY id
    FOR UPDATE
)
UPDATE scheduler.scheduled_callbacks c SET
    in_flight = false,
    next_at = now() + $3 * interval '1 second',
    status = CASE WHEN c.earlier_attempts > 0 THEN 'retrying' ELSE 'scheduled' END
FROM unnest($1::uuid[], $2::integer[]) AS u (id, dispatch)
JOIN locked USING (id)
WHERE c.id = u.id AND c.dispatch = u.dispatch AND c.in_flight AND NOT c.cancel_requested

-- name: lock
-- Lock unfinished callbacks until the end of the transaction. The order prevents deadlocks.
SELECT
    c.id, r.client_id, r.group_key, r.event_key, c.run_at, c.next_at, c.occurrence, c.status,
    c.in_flight, c.cancel_requested, c.dispatch, c.first_dispatch, c.main_retries,
    c.earlier_attempts, c.dispatch_attempts, c.next_attempt_at, c.stop_at, c.last_error, r.rules,
    now() AS now
FROM scheduler.scheduled_callbacks c
JOIN scheduler.callback_requests r USING (id)
WHERE c.id = ANY($1::uuid[])
ORDER BY c.id
FOR UPDATE OF c

-- name: save
UPDATE scheduler.scheduled_callbacks c SET
    run_at = u.run_at, next_at = u.next_at, occurrence = u.occurrence, status = u.status,
    in_flight = u.in_flight, cancel_requested = u.cancel_requested, dispatch = u.dispatch,
    first_dispatch = u.first_dispatch, main_retries = u.main_retries,
    earlier_attempts = u.earlier_attempts, dispatch_attempts = u.dispatch_attempts,
    next_attempt_at = u.next_attempt_at, stop_at = u.stop_at, last_error = u.last_error
FROM unnest(
    $1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::integer[], $5::text[], $6::boolean[],
    $7::boolean[], $8::integer[], $9::integer[], $10::integer[], $11::integer[], $12::integer[],
    $13::timestamptz[], $14::timestamptz[], $15::text[]
) AS u (
    id, run_at, next_at, occurrence, status, in_flight,
    cancel_requested, dispatch, first_dispatch, main_retries, earlier_attempts, dispatch_attempts,
    next_attempt_at, stop_at, last_error
)
WHERE c.id = u.id

-- name: remove
-- Remove callbacks that cannot be dispatched, because they have no request.
DELETE FROM scheduler.scheduled_callbacks WHERE id = ANY($1::uuid[])

-- name: finish
-- Move finished callbacks out of the hot table.
WITH finished AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::text[], $3::text[], $4::integer[], $5::text[]
    ) AS u (id, client_id, status, attempts, last_error)
), removed AS (
    DELETE FROM scheduler.scheduled_callbacks c USING finished
    WHERE c.id = finished.id
    RETURNING c.id, c.run_at, c.occurrence, c.dispatch, c.first_dispatch
)
INSERT INTO scheduler.finished_callbacks (
    id, client_id, finished_at, run_at, occurrence, status, dispatch, first_dispatch, attempts,
    last_error
)
SELECT
    removed.id, finished.client_id, now(), removed.run_at, removed.occurrence, finished.status,
    removed.dispatch, removed.first_dispatch, finished.attempts, finished.last_error
FROM removed
JOIN finished USING (id)

-- name: finished
SELECT
    f.id, f.client_id, r.group_key, r.event_key, f.run_at, f.occurrence, f.status, f.dispatch,
    f.first_dispatch, f.attempts, f.last_error, r.rules
FROM scheduler.finished_callbacks f
JOIN scheduler.callback_requests r USING (id)
WHERE f.id = ANY($1::uuid[])

-- name: correct
-- Make failed callbacks notified, because a delivery was reported after they failed.
UPDATE scheduler.finished_callbacks SET status = 'notified', attempts = greatest(attempts, 1)
WHERE id = ANY($1::uuid[]) AND status = 'failed'
RETURNING id

-- name: id_by_keys
SELECT id FROM scheduler.callback_requests
WHERE client_id = $1 AND event_key = $3 AND coalesce(group_key, '') = coalesce($2, '')

-- name: id_of_client
SELECT id FROM scheduler.callback_requests WHERE client_id = $1 AND id = $2

-- name: group_members
WITH page AS (
    SELECT id, created_at FROM scheduler.callback_requests
    WHERE client_id = $1 AND group_key = $2 AND (created_at, id) > ($3, $4)
    ORDER BY created_at, id
    LIMIT $5
)
SELECT
    r.id, r.created_at, coalesce(c.status, f.status) AS status,
    c.id IS NOT NULL AS unfinished
FROM page r
LEFT JOIN scheduler.scheduled_callbacks c USING (id)
LEFT JOIN LATERAL (
    SELECT * FROM scheduler.finished_callbacks f
    WHERE f.id = r.id AND f.finished_at > r.created_at - interval '1 day'
) f ON true
ORDER BY r.created_at, r.id

-- name: statuses
SELECT
    r.id, coalesce(c.status, f.status) AS status, coalesce(c.run_at, f.run_at) AS run_at,
    CASE WHEN c.in_flight THEN c.next_attempt_at ELSE c.next_at END AS next_at,
    coalesce(c.earlier_attempts + c.dispatch_attempts, f.attempts) AS attempts,
    coalesce(c.last_error, f.last_error) AS last_error, r.group_key, r.event_key, r.context,
    coalesce(c.occurrence, f.occurrence) AS occurrence, r.rules, r.created_at, f.finished_at,
    coalesce(c.dispatch, f.dispatch) AS dispatch,
    coalesce(c.cancel_requested, false) AS cancel_requested
FROM scheduler.callback_requests r
LEFT JOIN scheduler.scheduled_callbacks c USING (id)
LEFT JOIN LATERAL (
    SELECT * FROM scheduler.finished_callbacks f
    WHERE f.id = r.id AND f.finished_at > r.created_at - interval '1 day'
) f ON true
WHERE r.id = ANY($1::uuid[])

-- name: states
SELECT r.id, coalesce(c.status, f.status) AS status, r.group_key
FROM scheduler.callback_requests r
LEFT JOIN scheduler.scheduled_callbacks c USING (id)
LEFT JOIN LATERAL (
    SELECT * FROM scheduler.finished_callbacks f
    WHERE f.id = r.id AND f.finished_at > r.created_at - interval '1 day'
) f ON true
WHERE r.id = ANY($1::uuid[])

-- name: client_page
SELECT id, created_at AS at, octet_length(context) AS size FROM scheduler.callback_requests
WHERE client_id = $1 AND (created_at, id) < ($2, $3)
ORDER BY created_at DESC, id DESC
LIMIT $4

-- name: group_page
SELECT id, created_at AS at, octet_length(context) AS size FROM scheduler.callback_requests
WHERE client_id = $1 AND (created_at, id) < ($2, $3) AND group_key = $5
ORDER BY created_at DESC, id DESC
LIMIT $4

-- name: key_page
SELECT id, created_at AS at, octet_length(context) AS size FROM scheduler.callback_requests
WHERE client_id = $1 AND (created_at, id) < ($2, $3)
    AND event_key = $6 AND ($5::text IS NULL OR group_key = $5)
ORDER BY created_at DESC, id DESC
LIMIT $4

-- name: failed_page
WITH page AS (
    SELECT id, finished_at AS at FROM scheduler.finished_callbacks
    WHERE client_id = $1 AND (finished_at, id) < ($2, $3) AND status = 'failed'
    ORDER BY finished_at DESC, id DESC
    LIMIT $4
)
SELECT page.id, page.at, octet_length(r.context) AS size
FROM page
JOIN scheduler.callback_requests r USING (id)
ORDER BY page.at DESC, page.id DESC

-- name: failed_ids
SELECT f.id FROM scheduler.finished_callbacks f
JOIN scheduler.callback_requests r USING (id)
WHERE f.client_id = $1 AND f.status = 'failed'
    AND ($2::uuid IS NULL OR f.id = $2)
    AND ($3::text IS NULL OR r.group_key = $3)
    AND f.finished_at > coalesce($4::timestamptz, '-infinity')
    AND f.finished_at < coalesce($5::timestamptz, 'infinity')
ORDER BY f.finished_at, f.id
LIMIT $6

-- name: restart
-- Make failed callbacks due now, with no attempts counted.
WITH removed AS (
    DELETE FROM scheduler.finished_callbacks
    WHERE id = ANY($1::uuid[]) AND status = 'failed'
    RETURNING id, client_id, occurrence, dispatch
)
INSERT INTO scheduler.scheduled_callbacks (
    id, client_id, run_at, next_at, occurrence, status, in_flight, cancel_requested, dispatch,
    first_dispatch, main_retries, earlier_attempts, dispatch_attempts
)
SELECT
    id, client_id, now(), now(), occurrence, 'scheduled', false, false, dispatch, dispatch + 1, 0, 0, 0
FROM removed
RETURNING id

-- name: secrets
-- The next $2 requests by id. Their secrets are returned if one of them does not begin with $3.
SELECT id, outdated, CASE WHEN outdated THEN message END AS message,
    CASE WHEN outdated THEN fingerprint END AS fingerprint
FROM (
    SELECT id, message, fingerprint,
        coalesce(substring(message FOR length($3::bytea)) <> $3, false)
            OR coalesce(substring(fingerprint FOR length($3::bytea)) <> $3, false) AS outdated
    FROM scheduler.callback_requests
    WHERE id > $1
    ORDER BY id
    LIMIT $2
) page
ORDER BY id

-- name: reseal
-- Replace secrets that are still those that were read ($2). Rows that are locked are skipped, so this
-- waits for nobody.
WITH unlocked AS MATERIALIZED (
    SELECT id FROM scheduler.callback_requests
    WHERE id = ANY($1::uuid[])
    FOR UPDATE SKIP LOCKED
), changed AS (
    UPDATE scheduler.callback_requests r SET message = u.message, fingerprint = u.fingerprint
    FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::bytea[])
        AS u (id, old_message, message, fingerprint)
    JOIN unlocked USING (id)
    WHERE r.id = u.id AND r.message IS NOT DISTINCT FROM u.old_message
    RETURNING 1
)
SELECT count(*) FROM changed

-- name: estimated_requests
SELECT greatest(reltuples, 0)::bigint FROM pg_class
WHERE oid = 'scheduler.callback_requests'::regclass

-- name: store_facts
INSERT INTO scheduler.unpublished_facts (id, leased_until, facts)
VALUES ($1, now() + $3 * interval '1 second', $2::text[])

-- name: claim_facts
UPDATE scheduler.unpublished_facts SET leased_until = now() + $1 * interval '1 second'
WHERE id = (
    SELECT id FROM scheduler.unpublished_facts
    WHERE leased_until <= now()
    ORDER BY leased_until
    LIMIT 1
    FOR UPDATE SKIP LOCKED
)
RETURNING id, facts

-- name: delete_facts
DELETE FROM scheduler.unpublished_facts WHERE id = $1

-- name: partitions
SELECT p.relname AS name FROM pg_inherits i
JOIN pg_class p ON p.oid = i.inhrelid
WHERE i.inhparent = 'scheduler.finished_callbacks'::regclass
ORDER BY p.relname

-- name: now
SELECT clock_timestamp() AS now

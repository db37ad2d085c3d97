-- Counts of callbacks by time, for people.

-- name: counts
-- Count the callbacks of a client that wait, from each time of $2 until that of $3, up to $4 of them.
-- The row comparison and the order allow only the index of clients, as in `due_shared`. The end of
-- the span is outside of the scan: a scan does not end at the second column of a row comparison.
SELECT (
    SELECT count(*)
    FROM (
        SELECT c.next_at
        FROM scheduler.scheduled_callbacks c
        WHERE NOT in_flight
            AND (c.client_id, next_at) >= ($1::text, span.since)
            AND c.client_id <= $1::text
        ORDER BY c.client_id, next_at
        LIMIT $4
    ) next
    WHERE next.next_at < span.until
) AS callbacks
FROM unnest($2::timestamptz[], $3::timestamptz[]) WITH ORDINALITY AS span (since, until, number)
ORDER BY number

-- name: estimate
-- The planner estimates the number of these rows from the statistics of the last ANALYZE.
EXPLAIN (FORMAT JSON)
SELECT FROM scheduler.scheduled_callbacks
WHERE NOT in_flight AND client_id = $1::text AND next_at >= $2::timestamptz AND next_at < $3::timestamptz

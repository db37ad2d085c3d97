-- The reads of entries. `(key, at, seq)` is compared as a row, and orders the rows. Only the index
-- on these columns can do that, so no search depends on statistics, and the cost of a page does not
-- grow with its depth. The condition on `at` alone excludes partitions.

-- name: search
-- The attempts before a position, the latest first, among the next $3 entries with a key. The last
-- entry that was looked at is a row as well, so that the next search continues after it.
-- {key} is an expression of columns, {value} its parameter, and {where} the predicate of the index.
SELECT w.*, m.matches, w.place = $3 AS last
FROM (
    SELECT *, row_number() OVER () AS place
    FROM (
        SELECT *
        FROM journal.entries
        WHERE ({key}at, seq) < ({value}$1, $2) AND ({key}at, seq) >= ({value}$4, 0)
            AND at BETWEEN $4 AND $1 {where}
        ORDER BY {order}at DESC, seq DESC
        LIMIT $3
    ) e
) w
CROSS JOIN LATERAL (
    SELECT kind = 'attempt'
        AND ($6::text IS NULL OR client_id = $6)
        AND ($7::text IS NULL OR target = $7)
        AND ($8::text IS NULL OR outcome = $8)
        AND (NOT $9::boolean OR outcome <> 'delivered')
        AND ($10::integer IS NULL OR status_code = $10)
        AND ($11::text IS NULL OR strpos(reason, $11) > 0)
        AND ($12::text IS NULL OR trace_id = $12) AS matches
) m
WHERE m.matches OR w.place = $3
LIMIT $5

-- name: keyed
-- The scheduled callbacks of the latest $5 entries with a group key or an event key.
SELECT DISTINCT schedule_id
FROM (
    SELECT schedule_id, group_key, event_key
    FROM journal.entries
    WHERE {key} >= $1 AND ({key}, at, seq) < ($1, $2, $3) AND {key} IS NOT NULL
        AND at <= $2 AND ($4::text IS NULL OR client_id = $4)
        AND ($6::text IS NULL OR group_key = $6) AND ($7::text IS NULL OR event_key = $7)
    ORDER BY {key} DESC, at DESC, seq DESC
    LIMIT $5
) latest
WHERE schedule_id IS NOT NULL

-- name: of_schedules
-- The attempts of scheduled callbacks before a position, the latest first.
SELECT e.*, true AS matches, false AS last
FROM unnest($1::uuid[]) AS s (id)
CROSS JOIN LATERAL (
    SELECT *
    FROM journal.entries
    WHERE (schedule_id, at, seq) < (s.id, $2, $3) AND (schedule_id, at, seq) >= (s.id, $4, 0)
        AND at BETWEEN $4 AND $2 AND schedule_id IS NOT NULL
        AND kind = 'attempt'
        AND ($6::text IS NULL OR client_id = $6)
        AND ($7::text IS NULL OR target = $7)
        AND ($8::text IS NULL OR outcome = $8)
        AND (NOT $9::boolean OR outcome <> 'delivered')
        AND ($10::integer IS NULL OR status_code = $10)
        AND ($11::text IS NULL OR strpos(reason, $11) > 0)
        AND ($12::text IS NULL OR trace_id = $12)
    ORDER BY schedule_id DESC, at DESC, seq DESC
    LIMIT $5
) e
ORDER BY at DESC, seq DESC
LIMIT $5

-- name: story_before
-- The entries of a callback before a position, the latest first. Some rows can be there twice.
-- Operators also find those of an e-mail or SMS.
(
    SELECT *
    FROM journal.entries
    WHERE (callback_id, at, seq) < ($1, $2, $3) AND callback_id >= $1 AND callback_id IS NOT NULL
        AND at <= $2 AND ($5::text IS NULL OR client_id = $5 OR client_id IS NULL)
    ORDER BY callback_id DESC, at DESC, seq DESC
    LIMIT $4
)
UNION ALL
(
    SELECT *
    FROM journal.entries
    WHERE (schedule_id, at, seq) < ($6::uuid, $2, $3) AND schedule_id >= $6::uuid
        AND schedule_id IS NOT NULL
        AND at <= $2 AND ($5::text IS NULL OR client_id = $5)
    ORDER BY schedule_id DESC, at DESC, seq DESC
    LIMIT $4
)
UNION ALL
(
    SELECT *
    FROM journal.entries
    WHERE (message_id, at, seq) < ($1, $2, $3) AND message_id >= $1 AND message_id IS NOT NULL
        AND at <= $2 AND $5::text IS NULL
    ORDER BY message_id DESC, at DESC, seq DESC
    LIMIT $4
)

-- name: of_occurrence
-- The scheduler's entries about one occurrence of a recurring callback before a position, among the
-- latest $6 entries of the callback.
SELECT *
FROM (
    SELECT *
    FROM journal.entries
    WHERE (schedule_id, at, seq) < ($1::uuid, $2, $3) AND schedule_id >= $1::uuid
        AND schedule_id IS NOT NULL
        AND at <= $2 AND ($5::text IS NULL OR client_id = $5)
    ORDER BY schedule_id DESC, at DESC, seq DESC
    LIMIT $6
) scheduled
WHERE callback_id IS NULL AND coalesce((detail ->> 'occurrence')::integer, $4) = $4

-- name: attempts_after
-- The attempts of a callback after a position, the first one first. Some can be there twice.
(
    SELECT *
    FROM journal.entries
    WHERE (callback_id, at, seq) > ($1, $2, $3) AND callback_id <= $1 AND callback_id IS NOT NULL
        AND at >= $2 AND kind = 'attempt' AND ($5::text IS NULL OR client_id = $5)
    ORDER BY callback_id, at, seq
    LIMIT $4
)
UNION ALL
(
    SELECT *
    FROM journal.entries
    WHERE (schedule_id, at, seq) > ($6::uuid, $2, $3) AND schedule_id <= $6::uuid
        AND schedule_id IS NOT NULL
        AND at >= $2 AND kind = 'attempt' AND ($5::text IS NULL OR client_id = $5)
    ORDER BY schedule_id, at, seq
    LIMIT $4
)

-- name: kept
SELECT EXISTS (
    SELECT FROM journal.requests
    WHERE callback_id = ANY($1::text[]) AND ($2::text IS NULL OR client_id = $2)
) AS kept

-- name: gaps
SELECT at, first_offset, last_offset, messages, reason
FROM journal.gaps
WHERE at >= $1
ORDER BY at, id
LIMIT $2

-- name: tail
-- The next entries after a position that match, and the position of the last one looked at.
WITH next AS MATERIALIZED (
    SELECT * FROM journal.entries WHERE seq > $1 ORDER BY seq LIMIT $2
)
SELECT p.position, m.*
FROM (SELECT max(seq) AS position FROM next) p
LEFT JOIN LATERAL (
    SELECT *
    FROM next
    WHERE ($4::text IS NULL OR client_id = $4)
        AND ($5::text IS NULL OR target = $5)
        AND ($6::text IS NULL OR outcome = $6)
        AND ($7::text[] IS NULL OR kind = ANY($7))
    ORDER BY seq
    LIMIT $3
) m ON true

-- name: last_seq
SELECT coalesce(max(seq), 0) AS seq FROM journal.entries

-- name: clients
-- Each step goes to the next client id in the index.
WITH RECURSIVE found AS (
    (
        SELECT client_id FROM journal.entries
        WHERE client_id >= $1 AND client_id <> ''
        ORDER BY client_id
        LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT e.client_id FROM journal.entries e
        WHERE e.client_id > found.client_id
        ORDER BY e.client_id
        LIMIT 1
    )
    FROM found
    WHERE starts_with(found.client_id, $1)
)
SELECT client_id FROM found WHERE starts_with(client_id, $1) LIMIT $2

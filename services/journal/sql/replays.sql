-- name: kept
-- The kept requests of a callback, the latest first. Deliveries to endpoints can share an id; their
-- references differ.
SELECT callback_id, client_id, reference, at, sealed
FROM journal.requests
WHERE callback_id = $1 AND ($2::text IS NULL OR client_id = $2)
ORDER BY at DESC
LIMIT $3

-- name: known
SELECT EXISTS (
    SELECT FROM journal.entries
    WHERE callback_id = $1 AND ($2::text IS NULL OR client_id = $2)
) AS known

-- name: last_dispatched
-- The id that the receiver sees of the last dispatch of a scheduled callback.
SELECT callback_id FROM journal.entries
WHERE schedule_id = $1 AND callback_id IS NOT NULL AND ($2::text IS NULL OR client_id = $2)
ORDER BY at DESC, seq DESC
LIMIT 1

-- name: horizon
SELECT coalesce(max(seq), 0) AS seq FROM journal.entries

-- name: matching
-- The callbacks whose last attempt up to the entry $4 matches, among the next $5 entries. The last
-- entry that was looked at is a row as well, so that the next search continues after it.
-- The subquery of these entries replaces the braces.
SELECT w.at, w.seq, w.callback_id, w.client_id, w.reference, w.target, m.matches,
    w.place = $5 AS last, CASE WHEN m.matches THEN r.sealed END AS sealed
FROM (
    SELECT *, coalesce(detail ->> 'reference', '') AS reference, row_number() OVER () AS place
    FROM ({source}) e
) w
CROSS JOIN LATERAL (
    SELECT ($7::text IS NULL OR w.client_id = $7)
        AND ($8::text IS NULL OR w.target = $8)
        AND ($9::text IS NULL OR strpos(w.reason, $9) > 0)
        AND w.callback_id IS NOT NULL
        AND NOT EXISTS (
            SELECT FROM journal.entries l
            WHERE l.callback_id = w.callback_id AND (l.at, l.seq) > (w.at, w.seq)
                AND l.at >= w.at AND l.seq <= $4
                AND l.kind IN ('attempt', 'dead', 'dispatch_failed')
                AND l.client_id = w.client_id
                AND coalesce(l.detail ->> 'reference', '') = w.reference
        ) AS matches
    OFFSET 0 -- otherwise the condition is evaluated three times
) m
LEFT JOIN LATERAL (
    SELECT sealed FROM journal.requests r
    WHERE $10::boolean AND m.matches AND r.callback_id = w.callback_id AND r.client_id = w.client_id
        AND r.reference = w.reference
    ORDER BY r.at DESC
    LIMIT 1
) r ON true
WHERE m.matches OR w.place = $5
LIMIT $6

-- name: failed_entries
-- A condition on the client and the target replaces the braces.
SELECT * FROM (
    (
        SELECT * FROM journal.entries
        WHERE (at, seq) > ($1, $2) AND at BETWEEN $1 AND $3 AND seq <= $4
            AND outcome <> 'delivered' {conditions}
        ORDER BY at, seq LIMIT $5
    )
    UNION ALL
    (
        SELECT * FROM journal.entries
        WHERE (at, seq) > ($1, $2) AND at BETWEEN $1 AND $3 AND seq <= $4
            AND kind IN ('dead', 'dispatch_failed') AND outcome IS NULL {conditions}
        ORDER BY at, seq LIMIT $5
    )
) failed
ORDER BY at, seq LIMIT $5

-- name: delivered_entries
SELECT * FROM journal.entries
WHERE (at, seq) > ($1, $2) AND at BETWEEN $1 AND $3 AND seq <= $4 AND outcome = 'delivered'
    {conditions}
ORDER BY at, seq LIMIT $5

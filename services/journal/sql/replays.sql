-- name: kept
-- The kept requests of the client that has sent the callback last: the first one of each reference.
-- Deliveries to endpoints can share an id; their references differ. `clients` counts the clients
-- that have used the id.
SELECT DISTINCT ON (r.reference)
    r.callback_id, r.client_id, r.reference, r.at, r.sealed, owner.clients
FROM (
    SELECT client_id, count(*) OVER () AS clients
    FROM journal.requests
    WHERE callback_id = $1 AND ($2::text IS NULL OR client_id = $2)
    GROUP BY client_id
    ORDER BY max(at) DESC
    LIMIT 1
) owner
JOIN journal.requests r ON r.callback_id = $1 AND r.client_id = owner.client_id
ORDER BY r.reference, r.at
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
-- The entries of an id are read once, however many of them are in the window.
-- The subquery of these entries replaces the braces.
WITH w AS MATERIALIZED (
    SELECT *, coalesce(detail ->> 'reference', '') AS reference, row_number() OVER () AS place,
        ($7::text IS NULL OR client_id = $7)
            AND ($8::text IS NULL OR target = $8)
            AND ($9::text IS NULL OR strpos(reason, $9) > 0)
            AND callback_id IS NOT NULL AS chosen
    FROM ({source}) e
), latest AS MATERIALIZED (
    SELECT l.at, l.seq
    FROM (SELECT callback_id, min(at) AS at FROM w WHERE chosen GROUP BY callback_id) ids
    CROSS JOIN LATERAL (
        SELECT DISTINCT ON (client_id, coalesce(detail ->> 'reference', '')) at, seq
        FROM journal.entries
        WHERE callback_id = ids.callback_id AND at >= ids.at AND seq <= $4
            AND kind IN ('attempt', 'dead', 'dispatch_failed')
        ORDER BY client_id, coalesce(detail ->> 'reference', ''), at DESC, seq DESC
    ) l
), m AS (
    SELECT w.*, chosen AND (at, seq) IN (SELECT at, seq FROM latest) AS matches
    FROM w
    OFFSET 0 -- otherwise the condition is evaluated twice
), page AS (
    SELECT * FROM m WHERE matches OR place = $5 ORDER BY place LIMIT $6
)
SELECT p.at, p.seq, p.callback_id, p.client_id, p.reference, p.target, p.matches,
    p.place = $5 AS last, r.sealed
FROM page p
LEFT JOIN LATERAL (
    SELECT sealed FROM journal.requests r
    WHERE $10::boolean AND p.matches AND r.callback_id = p.callback_id AND r.client_id = p.client_id
        AND r.reference = p.reference
    ORDER BY r.at
    LIMIT 1
) r ON true
ORDER BY p.place

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

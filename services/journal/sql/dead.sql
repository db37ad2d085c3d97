-- name: add_letters
-- Letters that are known or were moved are left out. The order of the counts prevents deadlocks.
WITH added AS (
    INSERT INTO journal.letters
        (queue, letter_id, logical_id, client_id, target, reason, reason_key, trace_id, at)
    SELECT queue, letter_id, logical_id, client_id, target, reason, reason_key, trace_id, at
    FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
        $8::text[], $9::timestamptz[]
    ) AS u (queue, letter_id, logical_id, client_id, target, reason, reason_key, trace_id, at)
    WHERE NOT EXISTS (
        SELECT FROM journal.moved_letters m
        WHERE m.queue = u.queue AND m.letter_id = u.letter_id
    )
    ON CONFLICT (queue, letter_id) DO NOTHING
    RETURNING queue, reason_key, coalesce(target, '') AS target
)
INSERT INTO journal.letter_counts AS c (queue, reason_key, target, count)
SELECT queue, reason_key, target, count(*) FROM added
GROUP BY queue, reason_key, target ORDER BY queue, reason_key, target
ON CONFLICT (queue, reason_key, target) DO UPDATE SET count = c.count + excluded.count

-- name: remove_letters
-- $3: whether they were moved, which is remembered.
WITH gone AS (
    DELETE FROM journal.letters l USING unnest($1::text[], $2::text[]) AS u (queue, letter_id)
    WHERE l.queue = u.queue AND l.letter_id = u.letter_id
    RETURNING l.queue, l.reason_key, coalesce(l.target, '') AS target
), counted AS (
    INSERT INTO journal.letter_counts AS c (queue, reason_key, target, count)
    SELECT queue, reason_key, target, -count(*) FROM gone
    GROUP BY queue, reason_key, target ORDER BY queue, reason_key, target
    ON CONFLICT (queue, reason_key, target) DO UPDATE SET count = c.count + excluded.count
), moved AS (
    INSERT INTO journal.moved_letters (queue, letter_id)
    SELECT DISTINCT queue, letter_id FROM unnest($1::text[], $2::text[]) AS u (queue, letter_id)
    WHERE $3
    ON CONFLICT DO NOTHING
)
SELECT count(*) FROM gone

-- name: moved_letters
SELECT letter_id FROM journal.moved_letters WHERE queue = $1 AND letter_id = ANY($2::text[])

-- name: lock_letters
-- Waits for all letters that are being added, so that none before the last one follows.
LOCK TABLE journal.letters IN SHARE ROW EXCLUSIVE MODE

-- name: last_letter
SELECT coalesce(max(seq), 0) FROM journal.letters WHERE queue = $1

-- name: is_group
SELECT EXISTS (
    SELECT FROM journal.letter_counts WHERE queue = $1 AND reason_key = $2 AND count > 0
)

-- name: groups_by_reason
SELECT reason_key AS key, sum(count)::bigint AS count FROM journal.letter_counts
WHERE queue = $1 GROUP BY reason_key HAVING sum(count) > 0
ORDER BY count DESC, key LIMIT $2

-- name: groups_by_target
SELECT nullif(target, '') AS key, sum(count)::bigint AS count FROM journal.letter_counts
WHERE queue = $1 GROUP BY target HAVING sum(count) > 0
ORDER BY count DESC, key LIMIT $2

-- name: count_groups
SELECT coalesce(sum(count), 0)::bigint FROM journal.letter_counts
WHERE queue = $1
    AND ($2::text IS NULL OR reason_key = $2) AND ($3::text IS NULL OR target = $3)

-- name: count_window
-- The letters that match among the next $4 letters of a queue. A condition replaces the braces.
SELECT count(*) AS read, max(seq) AS last, count(*) FILTER (WHERE {where}) AS matching
FROM (
    SELECT * FROM journal.letters
    WHERE queue = $1 AND seq > $2 AND seq <= $3
    ORDER BY seq LIMIT $4
) w

-- name: page
-- The letters that match among the next $3 letters of an index, and the last one of these. The
-- condition of the index replaces {inner}, that of the filter {outer}.
SELECT *
FROM (
    SELECT *, {outer} AS matches, place = $3 AS last
    FROM (
        SELECT *, row_number() OVER () AS place
        FROM (
            SELECT * FROM journal.letters
            WHERE {inner} AND (at, seq) < ($1, $2)
            ORDER BY at DESC, seq DESC LIMIT $3
        ) e
    ) w
    OFFSET 0 -- otherwise the condition is evaluated twice
) m
WHERE matches OR last
LIMIT $4

-- name: count_by_queue
SELECT queue, sum(count)::bigint AS count FROM journal.letter_counts GROUP BY queue

-- name: total
SELECT coalesce(sum(count), 0)::bigint FROM journal.letter_counts WHERE queue = $1

-- name: delete_empty_counts
DELETE FROM journal.letter_counts WHERE count = 0

-- name: delete_moved
-- A day is longer than any ack is under way, and longer than facts are late.
DELETE FROM journal.moved_letters WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM journal.moved_letters m
    WHERE at < now() - interval '1 day'
        AND NOT EXISTS (
            SELECT FROM journal.jobs j WHERE j.queue = m.queue AND j.status = 'running'
        )
    LIMIT 20000
))

-- name: forget_moved
DELETE FROM journal.moved_letters WHERE queue = $1 AND letter_id = ANY($2::text[])

-- name: letters_after
-- The letters that a reading of their queue has to find, in the order of their numbers.
SELECT seq, letter_id FROM journal.letters
WHERE queue = $1 AND seq > $2 AND seq <= $3 ORDER BY seq LIMIT $4

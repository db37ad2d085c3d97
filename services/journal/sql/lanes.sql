-- name: full
INSERT INTO journal.full_lanes AS l (target, client_id, process, reason, in_flight, "limit", at)
SELECT * FROM unnest(
    $1::text[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::integer[], $7::timestamptz[]
)
ON CONFLICT (target, client_id, process) DO UPDATE SET
    reason = excluded.reason, in_flight = excluded.in_flight, "limit" = excluded."limit",
    at = greatest(l.at, excluded.at)

-- name: forget
DELETE FROM journal.full_lanes WHERE at < now() - interval '1 hour'

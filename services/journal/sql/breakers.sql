-- name: opened
-- A failed probe opens a breaker again for longer.
INSERT INTO journal.breakers AS b (target, client_id, process, opened_at, until)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[])
ON CONFLICT (target, client_id, process) DO UPDATE SET until = excluded.until

-- name: closed
DELETE FROM journal.breakers b
USING unnest($1::text[], $2::text[], $3::text[]) AS u (target, client_id, process)
WHERE (b.target, b.client_id, b.process) = (u.target, u.client_id, u.process)

-- name: forget
-- Those of processes that have ended.
DELETE FROM journal.breakers WHERE until < now() - interval '1 hour'

-- name: requests
-- Kept requests after a key ($1 to $4). The bytes are returned if they do not begin with $6.
SELECT callback_id, client_id, reference, at,
    CASE WHEN substring(sealed FOR length($6::bytea)) <> $6 THEN sealed END AS sealed
FROM journal.requests
WHERE callback_id >= $1 AND (callback_id, client_id, reference, at) > ($1, $2, $3, $4)
ORDER BY callback_id, client_id, reference, at
LIMIT $5

-- name: reseal_request
UPDATE journal.requests SET sealed = $6
WHERE callback_id = $1 AND client_id = $2 AND reference = $3 AND at = $4 AND sealed = $5
RETURNING 1

-- name: jobs
SELECT id, url FROM journal.jobs
WHERE status = 'running' AND url IS NOT NULL AND substring(url FOR length($1::bytea)) <> $1

-- name: reseal_job
UPDATE journal.jobs SET url = $3 WHERE id = $1 AND url = $2 RETURNING 1

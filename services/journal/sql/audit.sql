-- name: record
INSERT INTO journal.audit (actor, client_id, action, object, detail, result, key)
VALUES ($1, $2, $3, $4, $5::jsonb, $6, $7)
ON CONFLICT (key) DO NOTHING

-- name: page
SELECT id, at, actor, client_id, action, object, detail, result
FROM journal.audit
WHERE (at, id) < ($1, $2)
    AND ($4::text IS NULL OR actor = $4)
    AND ($5::text IS NULL OR action = $5)
    AND ($6::text IS NULL OR client_id = $6)
    AND ($7::timestamptz IS NULL OR at >= $7)
    AND ($8::timestamptz IS NULL OR at < $8)
ORDER BY at DESC, id DESC
LIMIT $3

-- name: start
INSERT INTO console.sessions (hash, issuer, subject, actor, name, role, expires_at)
VALUES ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7));

-- name: find
SELECT subject, actor, name, role, seen_at < now() - interval '1 minute' AS is_stale
FROM console.sessions
WHERE hash = $1 AND expires_at > now() AND seen_at > now() - make_interval(secs => $2);

-- name: touch
UPDATE console.sessions SET seen_at = now() WHERE hash = $1;

-- name: end
DELETE FROM console.sessions WHERE hash = $1;

-- name: delete_ended
DELETE FROM console.sessions
WHERE hash IN (
    SELECT hash FROM console.sessions
    WHERE expires_at <= now() OR seen_at <= now() - make_interval(secs => $1)
    LIMIT $2
);

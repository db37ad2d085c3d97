-- name: register
INSERT INTO subscriptions.users (name, password_hash, request_id) VALUES ($1, $2, $3)
ON CONFLICT (name) DO NOTHING RETURNING id;

-- name: registered
SELECT id FROM subscriptions.users WHERE name = $1 AND request_id = $2;

-- name: password
SELECT id, password_hash FROM subscriptions.users WHERE name = $1;

-- A new token starts at the highest position of the user's tokens, so no earlier event is lost.
-- name: sign_in
INSERT INTO subscriptions.tokens (hash, user_id, position, expires_at)
SELECT $1, id,
    greatest(seen, (SELECT max(position) FROM subscriptions.tokens WHERE user_id = id)),
    now() + make_interval(secs => $3)
FROM subscriptions.users WHERE id = $2
ON CONFLICT (hash) DO UPDATE SET hash = excluded.hash
RETURNING expires_at;

-- name: token
SELECT user_id, position, expires_at, EXISTS (
    SELECT FROM subscriptions.user_events AS event
    WHERE event.user_id = token.user_id AND sequence > position
) AS has_events
FROM subscriptions.tokens AS token WHERE hash = $1 AND expires_at > now();

-- name: expired
SELECT hash, user_id FROM subscriptions.tokens WHERE expires_at <= now()
ORDER BY expires_at LIMIT $1;

-- name: delete_tokens
WITH deleted AS (
    DELETE FROM subscriptions.tokens WHERE hash = ANY ($1::bytea[]) RETURNING user_id, position
), top AS (
    SELECT user_id, max(position) AS position FROM deleted GROUP BY user_id
), moved AS (
    UPDATE subscriptions.users SET seen = greatest(seen, position) FROM top WHERE id = user_id
)
SELECT count(*) FROM deleted;

-- In the order of ids, so that two transactions cannot deadlock.
-- name: lock_users
SELECT id FROM subscriptions.users WHERE id = ANY ($1::bigint[]) ORDER BY id FOR NO KEY UPDATE;

-- name: repeated
SELECT user_id, event_id, sequence, event
FROM unnest($1::bigint[], $2::text[]) AS input(user_id, event_id)
JOIN subscriptions.user_events USING (user_id, event_id);

-- name: add_messages
INSERT INTO subscriptions.messages (from_id, to_id, text)
SELECT from_id, to_id, text
FROM unnest($1::bigint[], $2::bigint[], $3::text[]) WITH ORDINALITY
    AS input(from_id, to_id, text, number)
ORDER BY number
RETURNING id, created_at;

-- The rows of the users are locked by a statement before, so this one sees their latest events.
-- name: append
WITH input AS (
    SELECT user_id, event_id, type, event,
        row_number() OVER (PARTITION BY user_id ORDER BY number) AS step
    FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY
        AS input(user_id, event_id, type, event, number)
), numbered AS (
    UPDATE subscriptions.users SET sequence = sequence + count
    FROM (SELECT user_id, count(*) AS count FROM input GROUP BY user_id) AS added
    WHERE id = user_id
    RETURNING id, sequence - count AS before
)
INSERT INTO subscriptions.user_events (user_id, sequence, event_id, type, event)
SELECT user_id, before + step, event_id, type, event
FROM input JOIN numbered ON id = user_id
RETURNING user_id, event_id, sequence;

-- Events after a position ($2): at most $3, and those that begin in the first $4 bytes.
-- name: events
SELECT sequence, type, event FROM (
    SELECT sequence, type, event,
        sum(octet_length(event)) OVER (ORDER BY sequence) - octet_length(event) AS earlier
    FROM (
        SELECT sequence, type, event FROM subscriptions.user_events
        WHERE user_id = $1 AND sequence > $2 ORDER BY sequence LIMIT $3
    ) AS listed
) AS page
WHERE earlier < $4 ORDER BY sequence;

-- The same after the position of a token, which moves behind them. Its row is locked before its
-- position is read, so that each event is returned once.
-- name: next_events
WITH token AS MATERIALIZED (
    SELECT hash, user_id, position, expires_at FROM subscriptions.tokens
    WHERE hash = $1 AND expires_at > now() FOR NO KEY UPDATE
), page AS MATERIALIZED (
    SELECT sequence, type, event FROM (
        SELECT sequence, type, event,
            sum(octet_length(event)) OVER (ORDER BY sequence) - octet_length(event) AS earlier
        FROM token, LATERAL (
            SELECT sequence, type, event FROM subscriptions.user_events
            WHERE user_id = token.user_id AND sequence > token.position
            ORDER BY sequence LIMIT $2
        ) AS listed
    ) AS sized
    WHERE earlier < $3
), moved AS (
    UPDATE subscriptions.tokens AS target SET position = last.sequence
    FROM token, (SELECT max(sequence) AS sequence FROM page) AS last
    WHERE target.hash = token.hash AND last.sequence IS NOT NULL
)
SELECT user_id, position, expires_at, sequence, type, event,
    EXISTS (SELECT FROM subscriptions.endpoints WHERE ack_token = token.hash) AS shares_position
FROM token LEFT JOIN page ON true ORDER BY sequence;

-- name: last_sequence
SELECT sequence FROM subscriptions.users WHERE id = $1;

-- name: prune_events
DELETE FROM subscriptions.user_events WHERE (user_id, sequence) IN (
    SELECT user_id, sequence FROM subscriptions.user_events
    WHERE created_at < now() - make_interval(secs => $1)
    ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: prune_messages
DELETE FROM subscriptions.messages WHERE id IN (
    SELECT id FROM (SELECT id, created_at FROM subscriptions.messages ORDER BY id LIMIT $2) AS oldest
    WHERE created_at < now() - make_interval(secs => $1)
);

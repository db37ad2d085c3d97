-- name: accept
INSERT INTO mailings.postings
    (id, client_id, fingerprint, body, from_event, traceparent, expires_at, priority)
SELECT * FROM unnest(
    $1::uuid[], $2::text[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::timestamptz[],
    $8::text[]
) AS input(id, client_id, fingerprint, body, from_event, traceparent, expires_at, priority)
ORDER BY id  -- the same order in every process prevents deadlocks
ON CONFLICT DO NOTHING
RETURNING id;

-- name: posting
SELECT id, fingerprint, body, accepted_at, expires_at, pages, receivers, ended, reason,
    created, sent, failed, expired, skipped
FROM mailings.postings
WHERE id = $1 AND (client_id IS NULL OR client_id = $2);

-- name: postings
SELECT id, body, accepted_at, expires_at, pages, receivers, ended, reason,
    created, sent, failed, expired, skipped
FROM mailings.postings
WHERE (client_id IS NULL OR client_id = $1) AND ($2::text IS NULL OR from_event = $2)
    AND (accepted_at, id) < ($3, $4)
ORDER BY accepted_at DESC, id DESC LIMIT $5;

-- name: skipped
SELECT reason, count(*) AS count FROM mailings.messages
WHERE posting_id = $1 AND status = 'skipped'
GROUP BY reason ORDER BY count DESC, reason LIMIT $2;

-- name: messages
SELECT id, user_id, channel, status, reason, created_at, settled_at FROM mailings.messages
WHERE posting_id = $1 AND id > $2 AND ($3::text IS NULL OR status = $3)
ORDER BY id LIMIT $4;

-- Claims urgent postings, then bulk ones unless $3, that have been due longest. Returns `unfinished` as the last slice left it.
-- name: claim
WITH due AS (
    SELECT id, unfinished FROM mailings.postings
    WHERE ended_at IS NULL AND due_at <= now() AND (priority = 'urgent' OR NOT $3)
    ORDER BY priority DESC, due_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE mailings.postings AS posting
SET due_at = now() + make_interval(secs => $2), lease = lease + 1, unfinished = true
FROM due WHERE posting.id = due.id
RETURNING posting.id, lease, due.unfinished, body, from_event, traceparent, expires_at, priority,
    fetched_data, next_url, pages, receivers, failures;

-- The queries of a slice, from here to `finish`, check the lease.
-- name: renew
UPDATE mailings.postings SET due_at = now() + make_interval(secs => $3)
WHERE id = $1 AND lease = $2 AND ended_at IS NULL RETURNING id;

-- name: save_fetched_data
UPDATE mailings.postings SET fetched_data = $3 WHERE id = $1 AND lease = $2;

-- name: lock
SELECT id FROM mailings.postings
WHERE id = $1 AND lease = $2 AND ended_at IS NULL FOR UPDATE;

-- Removes the messages that an interrupted slice added after its checkpoint, unless they are sent.
-- name: remove_unfinished
WITH removed AS (
    DELETE FROM mailings.messages
    WHERE posting_id = $1 AND page >= $2 AND status IN ('created', 'skipped')
    RETURNING status
)
SELECT count(*) FILTER (WHERE status = 'created') AS created,
    count(*) FILTER (WHERE status = 'skipped') AS skipped
FROM removed;

-- name: add_messages
INSERT INTO mailings.messages (posting_id, id, user_id, channel, reason, page, status)
SELECT $1, id, user_id, channel, reason, $2,
    CASE WHEN reason IS NULL THEN 'created' ELSE 'skipped' END
FROM unnest($3::uuid[], $4::text[], $5::text[], $6::text[]) AS input(id, user_id, channel, reason)
ON CONFLICT DO NOTHING
RETURNING id;

-- name: count_messages
UPDATE mailings.postings SET created = created + $2, skipped = skipped + $3 WHERE id = $1;

-- name: known_before
SELECT count(*) FROM mailings.messages
WHERE posting_id = $1 AND id = ANY ($2::uuid[]) AND page < $3;

-- name: checkpoint
UPDATE mailings.postings
SET pages = $3, receivers = receivers + $4, next_url = $6, failures = 0, reason = NULL,
    due_at = now() + make_interval(secs => $5)
WHERE id = $1 AND lease = $2 AND ended_at IS NULL RETURNING id;

-- name: release
UPDATE mailings.postings
SET unfinished = $3, due_at = now() + make_interval(secs => $4), failures = $5, reason = $6
WHERE id = $1 AND lease = $2 AND ended_at IS NULL;

-- name: end_unpublished
WITH changed AS (
    UPDATE mailings.messages SET status = $3, reason = $4, settled_at = now()
    WHERE posting_id = $1 AND page >= $2 AND status = 'created'
    RETURNING id
)
SELECT count(*) FROM changed;

-- The context is removed, because it may contain codes and links.
-- name: finish
UPDATE mailings.postings
SET ended = $2, ended_at = now(), reason = $3, unfinished = false,
    fetched_data = NULL, body = (body::jsonb - 'template_context')::text,
    created = created - $4,
    failed = failed + CASE WHEN $2 = 'failed' THEN $4 ELSE 0 END,
    expired = expired + CASE WHEN $2 = 'expired' THEN $4 ELSE 0 END
WHERE id = $1
RETURNING receivers, created, sent, failed, expired, skipped;

-- Transactions lock postings before messages, each ordered by id, to prevent deadlocks.
-- name: lock_postings
SELECT id FROM mailings.postings WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE;

-- name: lock_messages
SELECT posting_id, id, channel, status FROM mailings.messages
JOIN unnest($1::uuid[], $2::uuid[]) AS input(posting_id, id) USING (posting_id, id)
ORDER BY posting_id, id FOR UPDATE OF messages;

-- name: settle
UPDATE mailings.messages AS message
SET status = input.status, reason = input.reason, settled_at = now()
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[])
    AS input(posting_id, id, status, reason)
WHERE message.posting_id = input.posting_id AND message.id = input.id;

-- name: recount
UPDATE mailings.postings AS posting
SET created = posting.created + input.created, sent = posting.sent + input.sent,
    failed = posting.failed + input.failed, expired = posting.expired + input.expired
FROM unnest($1::uuid[], $2::int[], $3::int[], $4::int[], $5::int[])
    AS input(id, created, sent, failed, expired)
WHERE posting.id = input.id
RETURNING posting.id, from_event, ended, receivers, posting.created, posting.sent, posting.failed,
    posting.expired, skipped, input.created <> 0 AND posting.created = 0 AS last_settled;

-- name: ended_before
SELECT id FROM mailings.postings
WHERE ended_at < now() - make_interval(secs => $1) ORDER BY ended_at LIMIT $2;

-- name: delete_messages
DELETE FROM mailings.messages WHERE (posting_id, id) IN (
    SELECT posting_id, id FROM mailings.messages
    WHERE posting_id = $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: delete_posting
DELETE FROM mailings.postings WHERE id = $1
AND NOT EXISTS (SELECT FROM mailings.messages WHERE posting_id = $1);

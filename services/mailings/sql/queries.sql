-- name: accept
INSERT INTO mailings.postings
    (id, client_id, fingerprint, body, from_event, traceparent, expires_at)
SELECT * FROM unnest(
    $1::uuid[], $2::text[], $3::bytea[], $4::text[], $5::text[], $6::text[], $7::timestamptz[]
) AS given(id, client_id, fingerprint, body, from_event, traceparent, expires_at)
ORDER BY id  -- so that two processes never wait for each other
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
SELECT why, count(*) AS times FROM mailings.messages
WHERE posting_id = $1 AND status = 'skipped'
GROUP BY why ORDER BY times DESC, why LIMIT $2;

-- name: messages
SELECT id, user_id, channel, status, why, created_at, settled_at FROM mailings.messages
WHERE posting_id = $1 AND id > $2 AND ($3::text IS NULL OR status = $3)
ORDER BY id LIMIT $4;

-- The oldest turn first. `held` as it was: the turn before was not ended.
-- name: claim
WITH due AS (
    SELECT id, held FROM mailings.postings
    WHERE ended_at IS NULL AND due_at <= now()
    ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE mailings.postings AS posting
SET due_at = now() + make_interval(secs => $2), lease = lease + 1, held = true
FROM due WHERE posting.id = due.id
RETURNING posting.id, lease, due.held, body, from_event, traceparent, expires_at, context, pages,
    receivers, tries;

-- From here on, what a turn does is bound to its lease number.
-- name: keep
UPDATE mailings.postings SET due_at = now() + make_interval(secs => $3)
WHERE id = $1 AND lease = $2 AND ended_at IS NULL RETURNING id;

-- name: fetched
UPDATE mailings.postings SET context = $3 WHERE id = $1 AND lease = $2;

-- name: lock
SELECT id FROM mailings.postings
WHERE id = $1 AND lease = $2 AND ended_at IS NULL FOR UPDATE;

-- Takes back what an interrupted turn wrote of pages that were not done; what was sent stays.
-- name: take_back
WITH gone AS (
    DELETE FROM mailings.messages
    WHERE posting_id = $1 AND page >= $2 AND status IN ('created', 'skipped')
    RETURNING status
)
SELECT count(*) FILTER (WHERE status = 'created') AS created,
    count(*) FILTER (WHERE status = 'skipped') AS skipped
FROM gone;

-- name: put
INSERT INTO mailings.messages (posting_id, id, user_id, channel, why, page, status)
SELECT $1, id, user_id, channel, why, $2, CASE WHEN why IS NULL THEN 'created' ELSE 'skipped' END
FROM unnest($3::uuid[], $4::text[], $5::text[], $6::text[]) AS given(id, user_id, channel, why)
ON CONFLICT DO NOTHING
RETURNING id;

-- name: count
UPDATE mailings.postings SET created = created + $2, skipped = skipped + $3 WHERE id = $1;

-- name: known_before
SELECT count(*) FROM mailings.messages
WHERE posting_id = $1 AND id = ANY ($2::uuid[]) AND page < $3;

-- name: checkpoint
UPDATE mailings.postings
SET pages = $3, receivers = receivers + $4, tries = 0, reason = NULL,
    due_at = now() + make_interval(secs => $5)
WHERE id = $1 AND lease = $2 AND ended_at IS NULL RETURNING id;

-- Ends a turn.
-- name: put_off
UPDATE mailings.postings
SET held = $3, due_at = now() + make_interval(secs => $4), tries = $5, reason = $6
WHERE id = $1 AND lease = $2 AND ended_at IS NULL;

-- name: sweep
WITH swept AS (
    UPDATE mailings.messages SET status = $3, why = $4, settled_at = now()
    WHERE posting_id = $1 AND page >= $2 AND status = 'created'
    RETURNING id
)
SELECT count(*) FROM swept;

-- Codes and links of its context are not kept.
-- name: finish
UPDATE mailings.postings
SET ended = $2, ended_at = now(), reason = $3, held = false,
    context = NULL, body = (body::jsonb - 'template_context')::text,
    created = created - $4,
    failed = failed + CASE WHEN $2 = 'failed' THEN $4 ELSE 0 END,
    expired = expired + CASE WHEN $2 = 'expired' THEN $4 ELSE 0 END
WHERE id = $1
RETURNING receivers, created, sent, failed, expired, skipped;

-- Postings before messages, each in the order of ids: whoever locks both does so.
-- name: lock_postings
SELECT id FROM mailings.postings WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE;

-- name: lock_messages
SELECT posting_id, id, channel, status FROM mailings.messages
JOIN unnest($1::uuid[], $2::uuid[]) AS given(posting_id, id) USING (posting_id, id)
ORDER BY posting_id, id FOR UPDATE OF messages;

-- name: settle
UPDATE mailings.messages AS message SET status = given.status, why = given.why, settled_at = now()
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[]) AS given(posting_id, id, status, why)
WHERE message.posting_id = given.posting_id AND message.id = given.id;

-- name: recount
UPDATE mailings.postings AS posting
SET created = posting.created + given.created, sent = posting.sent + given.sent,
    failed = posting.failed + given.failed, expired = posting.expired + given.expired
FROM unnest($1::uuid[], $2::int[], $3::int[], $4::int[], $5::int[])
    AS given(id, created, sent, failed, expired)
WHERE posting.id = given.id
RETURNING posting.id, from_event, ended, receivers, posting.created, posting.sent, posting.failed,
    posting.expired, skipped, given.created <> 0 AND posting.created = 0 AS last_settled;

-- name: old_messages
DELETE FROM mailings.messages WHERE (posting_id, id) IN (
    SELECT posting_id, id FROM mailings.messages
    WHERE posting_id = $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- name: old_postings
SELECT id FROM mailings.postings
WHERE ended_at < now() - make_interval(secs => $1) ORDER BY ended_at LIMIT $2;

-- name: forget
DELETE FROM mailings.postings WHERE id = $1
AND NOT EXISTS (SELECT FROM mailings.messages WHERE posting_id = $1);

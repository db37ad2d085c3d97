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
    created, sent, failed, expired, skipped, cancelled
FROM mailings.postings
WHERE id = $1 AND (client_id IS NULL OR client_id = $2) AND mailing_id IS NULL;

-- name: postings
SELECT id, body, accepted_at, expires_at, pages, receivers, ended, reason,
    created, sent, failed, expired, skipped, cancelled
FROM mailings.postings
WHERE (client_id IS NULL OR client_id = $1) AND ($2::text IS NULL OR from_event = $2)
    AND (accepted_at, id) < ($3, $4) AND mailing_id IS NULL
ORDER BY accepted_at DESC, id DESC LIMIT $5;

-- name: skipped
SELECT reason, count(*) AS count FROM mailings.messages
WHERE posting_id = $1 AND is_skipped
GROUP BY reason ORDER BY count DESC, reason LIMIT $2;

-- name: messages
SELECT id, user_id, channel, status, reason, created_at, settled_at FROM mailings.messages
WHERE posting_id = $1 AND id > $2 AND ($3::text IS NULL OR status = $3)
ORDER BY id LIMIT $4;

-- Claims up to $1 small postings and up to $2 lists that have been due longest, urgent ones first
-- and only those if $4; of mailings, those that run and whose last stop delivery has confirmed. With
-- a rate, only the one that has been due longest, and only when the rate permits messages.
-- Returns `unfinished` as the last slice left it.
-- name: claim
WITH small AS (
    SELECT id, unfinished, mailing_id FROM mailings.postings
    WHERE NOT is_list AND ended_at IS NULL AND due_at <= now() AND (priority = 'urgent' OR NOT $4)
    ORDER BY priority DESC, due_at LIMIT $1 FOR UPDATE SKIP LOCKED
), lists AS (
    SELECT id, unfinished, mailing_id FROM mailings.postings
    WHERE is_list AND ended_at IS NULL AND due_at <= now() AND (priority = 'urgent' OR NOT $4)
        AND (mailing_id IS NULL OR EXISTS (
            SELECT FROM mailings.mailings AS mailing WHERE mailing.id = mailing_id
                AND status = 'running' AND stop_confirmed = stop_version
                AND (rate_per_minute IS NULL OR paced_until <= now() AND NOT EXISTS (
                    SELECT FROM mailings.postings AS other WHERE other.mailing_id = mailing.id
                        AND other.ended_at IS NULL
                        AND (other.due_at, other.id) < (postings.due_at, postings.id)
                ))
        ))
    ORDER BY priority DESC, due_at LIMIT $2 FOR UPDATE SKIP LOCKED
), due AS (SELECT * FROM small UNION ALL SELECT * FROM lists)
UPDATE mailings.postings AS posting
SET due_at = now() + make_interval(secs => $3), lease = lease + 1, unfinished = true
FROM due LEFT JOIN mailings.mailings AS mailing ON mailing.id = due.mailing_id
WHERE posting.id = due.id
RETURNING posting.id, now() AS at, extract(epoch FROM now() - accepted_at)::float AS age, lease, due.unfinished, body, from_event, posting.traceparent,
    coalesce(end_at, expires_at) AS expires_at, priority, fetched_data, is_list, next_page, pages,
    receivers, failures, posting.mailing_id, posting.client_id, timezone, operator_codes, tags,
    channel, text, template, template_context, local_from, local_to, rate_per_minute;

-- Permits $2 messages of a mailing if its rate does. Returns the seconds until it permits more.
-- name: pace
WITH paced AS (
    UPDATE mailings.mailings
    SET paced_until = now() + make_interval(secs => coalesce($2::int * 60.0 / rate_per_minute, 0))
    WHERE id = $1 AND paced_until <= now()
    RETURNING true AS permitted, paced_until
)
SELECT permitted, extract(epoch FROM paced_until - now())::float AS seconds FROM paced
UNION ALL
SELECT false, extract(epoch FROM paced_until - now())::float FROM mailings.mailings
WHERE id = $1 AND NOT EXISTS (SELECT FROM paced);

-- name: returned
SELECT id, user_id, returned_at AS at FROM mailings.messages
WHERE posting_id = $1 AND returned_at IS NOT NULL AND status = 'created' ORDER BY id LIMIT $2;

-- A message that was returned once more since then is published once more.
-- name: published_again
UPDATE mailings.messages AS message SET returned_at = NULL, reason_code = NULL
FROM unnest($2::uuid[], $3::timestamptz[]) AS input(id, at)
WHERE posting_id = $1 AND message.id = input.id AND returned_at = input.at;

-- The queries of slices, from here to `finish`, check the lease. Those of several slices change
-- postings only after `lock`, so they lock them ordered by id.
-- name: lock
SELECT id, lease FROM mailings.postings JOIN unnest($1::uuid[], $2::int[]) AS input(id, lease)
    USING (id, lease)
WHERE ended_at IS NULL ORDER BY id FOR UPDATE OF postings;

-- name: renew
UPDATE mailings.postings SET due_at = now() + make_interval(secs => $2) WHERE id = ANY ($1::uuid[]);

-- name: save_fetched_data
UPDATE mailings.postings SET fetched_data = $3 WHERE id = $1 AND lease = $2;

-- Removes the messages that an interrupted slice added after its checkpoint, unless they are sent.
-- name: remove_unfinished
WITH removed AS (
    DELETE FROM mailings.messages
    WHERE posting_id = $1 AND page >= $2 AND status IN ('created', 'skipped')
    RETURNING status
)
UPDATE mailings.postings
SET created = created - (SELECT count(*) FROM removed WHERE status = 'created'),
    skipped = skipped - (SELECT count(*) FROM removed WHERE status = 'skipped')
WHERE id = $1;

-- name: add_messages
WITH added AS (
    INSERT INTO mailings.messages
        (posting_id, page, id, user_id, channel, operator_code, reason_code, reason, status)
    SELECT posting_id, page, id, user_id, channel, operator_code,
        CASE WHEN ended IS NULL THEN reason_code ELSE 'unsubscribed' END,
        CASE WHEN ended IS NULL THEN reason ELSE 'unsubscribed' END,
        CASE WHEN ended IS NULL AND reason IS NULL THEN 'created' ELSE 'skipped' END
    FROM unnest(
        $1::uuid[], $2::int[], $3::uuid[], $4::text[], $5::text[], $6::text[], $7::text[],
        $8::text[], $9::bytea[]
    ) AS input(posting_id, page, id, user_id, channel, operator_code, reason_code, reason,
        subscription)
    LEFT JOIN mailings.unsubscribed AS ended USING (subscription)
    ON CONFLICT DO NOTHING
    RETURNING posting_id, id, status
), counts AS (
    SELECT posting_id, count(*) FILTER (WHERE status = 'created') AS created,
        count(*) FILTER (WHERE status = 'skipped') AS skipped
    FROM added GROUP BY posting_id
), counted AS (
    UPDATE mailings.postings AS posting
    SET created = posting.created + counts.created, skipped = posting.skipped + counts.skipped
    FROM counts WHERE posting.id = counts.posting_id
)
SELECT posting_id, id, status FROM added;

-- name: unsubscribe
INSERT INTO mailings.unsubscribed (subscription) VALUES ($1) ON CONFLICT DO NOTHING;

-- name: subscribe
DELETE FROM mailings.unsubscribed WHERE subscription = $1;

-- name: known_before
SELECT count(*) AS count, max(page) AS page FROM mailings.messages
WHERE posting_id = $1 AND id = ANY ($2::uuid[]) AND page < $3;

-- After the last page, the posting ends, unless delivery has returned messages: then it is due again.
-- No client is after the highest id. The context is removed, because it may contain codes.
-- name: checkpoint
UPDATE mailings.postings AS posting
SET pages = input.pages, receivers = receivers + users, next_page = input.next_page, failures = 0,
    reason = NULL, due_at = now() + make_interval(secs => input.lease),
    is_list = input.next_page IS NOT NULL, unfinished = input.next_page IS NOT NULL,
    ended = CASE WHEN input.next_page IS NULL THEN 'expanded' END,
    ended_at = CASE WHEN input.next_page IS NULL THEN now() END,
    fetched_data = CASE WHEN input.next_page IS NOT NULL THEN fetched_data END,
    body = CASE WHEN input.next_page IS NULL THEN (body::jsonb - 'template_context')::text ELSE body END
FROM (
    SELECT id, pages, users, CASE WHEN is_returned THEN 0 ELSE lease END AS lease,
        CASE WHEN is_returned THEN 'ffffffff-ffff-ffff-ffff-ffffffffffff' ELSE next_page END
            AS next_page
    FROM unnest($1::uuid[], $2::int[], $3::int[], $4::text[], $5::float[])
        AS input(id, pages, users, next_page, lease),
    LATERAL (SELECT next_page IS NULL AND EXISTS (
        SELECT FROM mailings.messages
        WHERE posting_id = input.id AND returned_at IS NOT NULL AND status = 'created'
    ) AS is_returned) AS found
) AS input
WHERE posting.id = input.id
RETURNING posting.id, posting.receivers, created, sent, failed, expired, skipped, cancelled;

-- name: release
UPDATE mailings.postings
SET unfinished = $3, is_list = $4, due_at = now() + make_interval(secs => $5), failures = $6,
    reason = $7
WHERE id = $1 AND lease = $2 AND ended_at IS NULL;

-- name: end_unpublished
WITH changed AS (
    UPDATE mailings.messages SET status = $3, reason_code = $4, reason = $5, settled_at = now()
    WHERE posting_id = $1 AND page >= $2 AND status = 'created'
    RETURNING id
)
SELECT count(*) FROM changed;

-- Before `lock`, because transactions lock a mailing before its postings.
-- name: fail_mailing
UPDATE mailings.mailings SET reason = $2 WHERE id = $1;

-- The context is removed, because it may contain codes and links.
-- name: finish
UPDATE mailings.postings
SET ended = $2, ended_at = now(), reason = $3, unfinished = false,
    fetched_data = NULL, body = (body::jsonb - 'template_context')::text,
    created = created - $4,
    failed = failed + CASE WHEN $2 = 'failed' THEN $4 ELSE 0 END,
    expired = expired + CASE WHEN $2 = 'expired' THEN $4 ELSE 0 END
WHERE id = $1
RETURNING receivers, created, sent, failed, expired, skipped, cancelled;

-- Transactions lock postings before messages, each ordered by id, to prevent deadlocks.
-- name: lock_postings
SELECT id FROM mailings.postings WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE;

-- name: lock_messages
SELECT posting_id, id, channel, status FROM mailings.messages
JOIN unnest($1::uuid[], $2::uuid[]) AS input(posting_id, id) USING (posting_id, id)
ORDER BY posting_id, id FOR UPDATE OF messages;

-- name: settle
UPDATE mailings.messages AS message
SET status = input.status, reason_code = input.reason_code, reason = input.reason,
    settled_at = now(), returned_at = NULL
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[])
    AS input(posting_id, id, status, reason_code, reason)
WHERE message.posting_id = input.posting_id AND message.id = input.id;

-- name: recount
UPDATE mailings.postings AS posting
SET created = posting.created + input.created, sent = posting.sent + input.sent,
    failed = posting.failed + input.failed, expired = posting.expired + input.expired,
    cancelled = posting.cancelled + input.cancelled
FROM unnest($1::uuid[], $2::int[], $3::int[], $4::int[], $5::int[], $6::int[])
    AS input(id, created, sent, failed, expired, cancelled)
WHERE posting.id = input.id
RETURNING posting.id, mailing_id, from_event, ended, receivers, posting.created, posting.sent, posting.failed,
    posting.expired, skipped, posting.cancelled, input.created <> 0 AND posting.created = 0 AS last_settled;

-- name: take_back
UPDATE mailings.messages AS message SET returned_at = now(), reason_code = input.code
FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS input(posting_id, id, code)
WHERE message.posting_id = input.posting_id AND message.id = input.id AND status = 'created';

-- Makes postings with returned messages due again, unless their mailing has ended. No client is after
-- the highest id.
-- name: reopen
UPDATE mailings.postings AS posting
SET ended = NULL, ended_at = NULL, due_at = now(), is_list = true,
    next_page = 'ffffffff-ffff-ffff-ffff-ffffffffffff'
WHERE id = ANY ($1::uuid[]) AND ended = 'expanded'
    AND EXISTS (
        SELECT FROM mailings.mailings WHERE id = mailing_id AND status IN ('running', 'paused')
    )
    AND EXISTS (
        SELECT FROM mailings.messages
        WHERE posting_id = posting.id AND returned_at IS NOT NULL AND status = 'created'
    );

-- name: end_times
SELECT given.id, end_at FROM unnest($1::text[]) AS given(id)
JOIN mailings.mailings AS mailing ON mailing.id = CASE
    WHEN given.id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN given.id::uuid END
WHERE status IN ('running', 'paused');

-- A mailing that is paused or running may still send messages of a posting that has ended.
-- name: ended_before
SELECT id FROM mailings.postings AS posting
WHERE ended_at < now() - make_interval(secs => $1) AND NOT messages_deleted AND NOT EXISTS (
    SELECT FROM mailings.mailings AS mailing WHERE mailing.id = mailing_id
        AND coalesce(mailing.ended_at, now()) >= now() - make_interval(secs => $1)
)
ORDER BY ended_at LIMIT $2;

-- name: delete_messages
DELETE FROM mailings.messages WHERE (posting_id, id) IN (
    SELECT posting_id, id FROM mailings.messages
    WHERE posting_id = $1 LIMIT $2 FOR UPDATE SKIP LOCKED
);

-- Keeps the posting of a mailing, for its counters.
-- name: delete_posting
WITH empty AS (
    SELECT id, EXISTS (SELECT FROM mailings.mailings WHERE id = mailing_id) AS of_mailing
    FROM mailings.postings
    WHERE id = $1 AND NOT EXISTS (SELECT FROM mailings.messages WHERE posting_id = $1)
), deleted AS (
    DELETE FROM mailings.postings WHERE id = (SELECT id FROM empty WHERE NOT of_mailing)
)
UPDATE mailings.postings SET messages_deleted = true
WHERE id = (SELECT id FROM empty WHERE of_mailing);

-- The client directory. $1 is always the calling service that owns the clients.
-- name: client
SELECT id, phone, operator_code, tag, timezone, version, created_at, updated_at
FROM mailings.clients WHERE client_id = $1 AND id = $2;

-- name: lock_client
SELECT id, phone, operator_code, tag, timezone, version, created_at, updated_at
FROM mailings.clients WHERE client_id = $1 AND id = $2 FOR UPDATE;

-- Returns nothing if another client has the phone. A repeat with the same id changes nothing.
-- name: create_client
WITH created AS (
    INSERT INTO mailings.clients (client_id, id, phone, operator_code, tag, timezone)
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING
    RETURNING id, phone, operator_code, tag, timezone, version, created_at, updated_at
)
SELECT * FROM created
UNION ALL
SELECT id, phone, operator_code, tag, timezone, version, created_at, updated_at
FROM mailings.clients WHERE client_id = $1 AND id = $2;

-- name: change_client
UPDATE mailings.clients
SET phone = $3, operator_code = $4, tag = $5, timezone = $6, version = version + 1,
    updated_at = now()
WHERE client_id = $1 AND id = $2
RETURNING id, phone, operator_code, tag, timezone, version, created_at, updated_at;

-- name: delete_client
DELETE FROM mailings.clients WHERE client_id = $1 AND id = $2;

-- Creates clients, or replaces those with the same phone, and returns the number of new ones. One
-- that an earlier delivery of the same request has created is new as well.
-- name: import_clients
WITH input AS (
    SELECT * FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[])
        AS input(id, phone, operator_code, tag, timezone)
), written AS (
    INSERT INTO mailings.clients AS known (client_id, id, phone, operator_code, tag, timezone)
    SELECT $1, input.* FROM input
    ORDER BY phone  -- the same order in every process prevents deadlocks
    ON CONFLICT (client_id, phone) DO UPDATE
    SET operator_code = excluded.operator_code, tag = excluded.tag, timezone = excluded.timezone,
        version = known.version + 1, updated_at = now()
    WHERE (known.operator_code, known.tag, known.timezone)
        IS DISTINCT FROM (excluded.operator_code, excluded.tag, excluded.timezone)
    RETURNING id
)
SELECT count(*) AS created, array(SELECT id FROM written) AS written FROM (
    SELECT id FROM input JOIN written USING (id)
    UNION
    SELECT id FROM input JOIN mailings.clients USING (id) WHERE client_id = $1
) AS created;

-- name: clients_with_ids
SELECT id, phone, operator_code, tag, timezone, version, created_at, updated_at
FROM mailings.clients WHERE client_id = $1 AND id = ANY ($2::uuid[]);

-- A page of clients after the id $2, ordered by id: those with one of the operator codes $4, one of
-- the tags $5 and the time zone $6. NULL: any. One branch is in use: it reads one index in the order
-- of the ids, so a page costs the same wherever it begins.
-- name: clients
SELECT * FROM (
    SELECT found.* FROM unnest($5::text[]) AS wanted(tag), LATERAL (
        SELECT id, phone, operator_code, tag, timezone, version, created_at, updated_at
        FROM mailings.clients
        WHERE client_id = $1 AND id > $2 AND tag = wanted.tag
            AND ($4::text[] IS NULL OR operator_code = ANY ($4))
            AND ($6::text IS NULL OR timezone = $6)
        ORDER BY id LIMIT $3
    ) AS found
    UNION ALL
    SELECT found.* FROM unnest($4::text[]) AS wanted(operator_code), LATERAL (
        SELECT id, phone, operator_code, tag, timezone, version, created_at, updated_at
        FROM mailings.clients
        WHERE client_id = $1 AND id > $2 AND operator_code = wanted.operator_code
            AND ($6::text IS NULL OR timezone = $6)
        ORDER BY id LIMIT $3
    ) AS found WHERE $5::text[] IS NULL
    UNION ALL
    SELECT found.* FROM (SELECT WHERE $6::text IS NOT NULL) AS wanted, LATERAL (
        SELECT id, phone, operator_code, tag, timezone, version, created_at, updated_at
        FROM mailings.clients WHERE client_id = $1 AND id > $2 AND timezone = $6
        ORDER BY id LIMIT $3
    ) AS found WHERE $4::text[] IS NULL AND $5::text[] IS NULL
    UNION ALL
    SELECT found.* FROM (SELECT WHERE $6::text IS NULL) AS wanted, LATERAL (
        SELECT id, phone, operator_code, tag, timezone, version, created_at, updated_at
        FROM mailings.clients WHERE client_id = $1 AND id > $2
        ORDER BY id LIMIT $3
    ) AS found WHERE $4::text[] IS NULL AND $5::text[] IS NULL
) AS page ORDER BY id LIMIT $3;

-- A page of clients after the phone $2 whose phones are from $4 to $5, ordered by phone.
-- name: clients_by_phone
SELECT id, phone, operator_code, tag, timezone, version, created_at, updated_at
FROM mailings.clients
WHERE client_id = $1 AND phone > $2 AND phone BETWEEN $4 AND $5
    AND ($6::text IS NULL OR operator_code = $6) AND ($7::text IS NULL OR tag = $7)
    AND ($8::text IS NULL OR timezone = $8)
ORDER BY phone LIMIT $3;

-- Counts the clients with one of the operator codes $2 and one of the tags $3, by time zone.
-- name: count_clients
SELECT timezone, count(*) AS count FROM mailings.clients
WHERE client_id = $1 AND ($2::text[] IS NULL OR operator_code = ANY ($2))
    AND ($3::text[] IS NULL OR tag = ANY ($3))
GROUP BY timezone;

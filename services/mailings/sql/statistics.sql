-- $1 is the calling service.
-- The postings of mailings count their messages by status: a few rows for each mailing.
-- name: overall
SELECT (SELECT count(*) FROM mailings.mailings WHERE client_id = $1) AS mailings,
    coalesce(sum(created), 0) AS created, coalesce(sum(sent), 0) AS sent,
    coalesce(sum(failed), 0) AS failed, coalesce(sum(expired), 0) AS expired,
    coalesce(sum(skipped), 0) AS skipped, coalesce(sum(cancelled), 0) AS cancelled
FROM mailings.mailings AS mailing JOIN mailings.postings ON mailing_id = mailing.id
WHERE mailing.client_id = $1;

-- The columns that a row does not group by are NULL in it.
-- name: of_mailing
SELECT statistics.hour, operator_code, reason_code, statistics.status, sum(count)::bigint AS count
FROM mailings.statistics JOIN mailings.mailings AS mailing ON mailing.id = mailing_id
WHERE mailing_id = $2 AND client_id = $1
GROUP BY GROUPING SETS (
    (statistics.status), (hour, statistics.status), (operator_code, statistics.status),
    (reason_code)
)
HAVING sum(count) > 0
ORDER BY hour, operator_code, reason_code, statistics.status;

-- name: exists
SELECT id FROM mailings.mailings WHERE client_id = $1 AND id = $2;

-- The messages of all callers that were created between $1 and $2.
-- name: day
SELECT hour, reason_code, status, sum(count)::bigint AS count FROM mailings.statistics
WHERE hour >= $1 AND hour < $2
GROUP BY GROUPING SETS ((hour, status), (reason_code))
HAVING sum(count) > 0
ORDER BY hour, count DESC, reason_code;

-- The mailings with the most of these messages, with the number of all.
-- name: day_mailings
WITH counts AS (
    SELECT mailing_id, status, sum(count)::bigint AS count FROM mailings.statistics
    WHERE hour >= $1 AND hour < $2
    GROUP BY mailing_id, status HAVING sum(count) > 0
)
SELECT mailing.id, left(coalesce(text, template), 200) AS title, mailing.status,
    json_object_agg(counts.status, count)::text AS counts, count(*) OVER () AS mailing_count
FROM counts JOIN mailings.mailings AS mailing ON mailing.id = mailing_id
GROUP BY mailing.id ORDER BY sum(count) DESC, mailing.id LIMIT $3;

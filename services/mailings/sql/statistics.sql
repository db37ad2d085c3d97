-- $1 is the calling service.
-- The postings of mailings count their messages by status: a few rows for each mailing.
-- name: overall
SELECT count(DISTINCT mailing.id) AS mailings, coalesce(sum(created), 0) AS created,
    coalesce(sum(sent), 0) AS sent, coalesce(sum(failed), 0) AS failed,
    coalesce(sum(expired), 0) AS expired, coalesce(sum(skipped), 0) AS skipped,
    coalesce(sum(cancelled), 0) AS cancelled
FROM mailings.mailings AS mailing LEFT JOIN mailings.postings ON mailing_id = mailing.id
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

-- The columns of `buckets` are added one by one: `unnest` takes ten times as long. A minute has
-- fewer than 2^31 attempts, and sums of bigint would be numeric.

-- name: targets
-- The health of targets since a minute, those with the most errors first. Targets that are paused,
-- or have an open breaker or a full lane, are included even without attempts. A full lane is reported
-- every 30 seconds, so a report is valid for a minute.
WITH figures AS (
    SELECT target, sum(delivered)::bigint AS delivered, sum(failed)::bigint AS failed,
        {buckets} AS buckets
    FROM journal.minutes
    WHERE minute >= $1 AND ($2::text IS NULL OR client_id = $2)
        AND ($6::text IS NULL OR target = $6)
    GROUP BY target
), open AS (
    SELECT DISTINCT target FROM journal.breakers
    WHERE until > now() AND ($2::text IS NULL OR client_id = $2)
        AND ($6::text IS NULL OR target = $6)
), crowded AS (
    SELECT DISTINCT target FROM journal.full_lanes
    WHERE at > now() - interval '1 minute' AND ($2::text IS NULL OR client_id = $2)
        AND ($6::text IS NULL OR target = $6)
), named AS (
    SELECT target FROM figures
    UNION SELECT target FROM open
    UNION SELECT target FROM crowded
    UNION SELECT target FROM journal.paused_targets WHERE ($6::text IS NULL OR target = $6)
)
SELECT target, coalesce(delivered, 0) AS delivered, coalesce(failed, 0) AS failed, buckets,
    EXISTS (SELECT FROM journal.paused_targets p WHERE p.target = n.target) AS paused,
    EXISTS (SELECT FROM open o WHERE o.target = n.target) AS breaker_open,
    EXISTS (SELECT FROM crowded c WHERE c.target = n.target) AS lane_full
FROM named n LEFT JOIN figures USING (target)
WHERE $3::bigint IS NULL OR (-coalesce(failed, 0), target COLLATE "C") > (-$3, $4)
ORDER BY coalesce(failed, 0) DESC, target COLLATE "C"
LIMIT $5

-- name: minutes
-- The attempts by minute, of one target or all; {target} is that condition.
SELECT minute AS at, sum(delivered)::bigint AS delivered, sum(failed)::bigint AS failed,
    {buckets} AS buckets
FROM journal.minutes
WHERE minute >= $1 AND minute < $2 AND ($3::text IS NULL OR client_id = $3) {target}
GROUP BY minute
ORDER BY minute

-- name: breakers
SELECT target, client_id, process, opened_at, until
FROM journal.breakers
WHERE until > now() AND ($1::text IS NULL OR target = $1)
    AND ($2::text IS NULL OR client_id = $2)
ORDER BY target, client_id, process
LIMIT $3

-- name: full_lanes
SELECT target, client_id, process, reason, in_flight, "limit", at
FROM journal.full_lanes
WHERE at > now() - interval '1 minute' AND target = $1 AND ($2::text IS NULL OR client_id = $2)
ORDER BY client_id, process
LIMIT $3

-- name: state
SELECT now() AS now, p.lag, extract(epoch FROM now() - p.checked_at)::float8 AS checked_ago,
    (SELECT count(*) FROM journal.jobs WHERE status = 'running') AS running_jobs,
    ARRAY(SELECT target FROM journal.paused_targets ORDER BY target LIMIT $2) AS paused
FROM journal.position p
WHERE p.stream = $1

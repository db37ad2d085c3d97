-- The requests of clients, as received. A row changes only when its client replaces it. It is
-- deleted with the partition of finished_callbacks that holds its callback.
CREATE TABLE scheduler.callback_requests (
    id uuid PRIMARY KEY,
    client_id text NOT NULL,            -- '' is the anonymous client
    group_key text,
    event_key text,
    created_at timestamptz NOT NULL,
    fingerprint bytea,                  -- encrypted SHA-256 of the request, if it has a key
    context text NOT NULL,              -- JSON as it is sent; never searched
    message bytea,                      -- encrypted: URL, headers and secrets, the start of SendCallback
    exchange text,                      -- only for the transport amqp, which has no message
    routing_key text,
    format text NOT NULL,
    lease double precision NOT NULL,    -- seconds
    stop_after double precision NOT NULL,
    rules text,                         -- JSON; NULL for the defaults
    traceparent text                    -- W3C trace context of the request
) WITH (
    autovacuum_vacuum_scale_factor = 0.02 -- retention deletes a day's rows at a time
);
CREATE UNIQUE INDEX callback_requests_keys
    ON scheduler.callback_requests (client_id, event_key, coalesce(group_key, ''))
    WHERE event_key IS NOT NULL;
CREATE INDEX callback_requests_of_client
    ON scheduler.callback_requests (client_id, created_at, id);
CREATE INDEX callback_requests_of_group
    ON scheduler.callback_requests (client_id, group_key, created_at, id)
    WHERE group_key IS NOT NULL;

-- Unfinished callbacks only, so the cost of a claim does not grow with the finished ones.
CREATE TABLE scheduler.scheduled_callbacks (
    id uuid PRIMARY KEY,
    client_id text COLLATE "C" NOT NULL, -- of its request
    run_at timestamptz NOT NULL,
    next_at timestamptz NOT NULL,
    occurrence integer NOT NULL,
    status text NOT NULL CHECK (status IN ('scheduled', 'dispatched', 'retrying')),
    in_flight boolean NOT NULL,
    cancel_requested boolean NOT NULL,
    dispatch integer NOT NULL,
    first_dispatch integer NOT NULL,
    main_retries integer NOT NULL,
    earlier_attempts integer NOT NULL,  -- in earlier dispatches of this occurrence
    dispatch_attempts integer NOT NULL, -- in the current dispatch
    next_attempt_at timestamptz,
    stop_at timestamptz,
    last_error text
) WITH (
    fillfactor = 80,                    -- leaves room on the page for the row's next version
    -- A vacuum removes the dead entries that claims must skip: with ten million rows after 105,000
    -- changes, 30 times a day for a million callbacks.
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 1,
    autovacuum_analyze_scale_factor = 0.02
);
-- A row is either in the first two indexes or in the third. So a claim inserts into one of them only.
CREATE INDEX scheduled_callbacks_next_at ON scheduler.scheduled_callbacks (next_at)
    WHERE NOT in_flight;
CREATE INDEX scheduled_callbacks_of_client ON scheduler.scheduled_callbacks (client_id, next_at)
    WHERE NOT in_flight;
CREATE INDEX scheduled_callbacks_lease ON scheduler.scheduled_callbacks (next_at)
    WHERE in_flight;

-- Facts that were committed with a change and are not confirmed yet.
CREATE TABLE scheduler.unpublished_facts (
    id uuid PRIMARY KEY,
    leased_until timestamptz NOT NULL,
    facts text[] NOT NULL               -- JSON
);

-- Finished callbacks. The service creates and drops one partition for each day.
CREATE TABLE scheduler.finished_callbacks (
    id uuid NOT NULL,
    client_id text NOT NULL,
    finished_at timestamptz NOT NULL,
    run_at timestamptz NOT NULL,
    occurrence integer NOT NULL,
    status text NOT NULL CHECK (status IN ('notified', 'failed', 'cancelled')),
    dispatch integer NOT NULL,
    first_dispatch integer NOT NULL,
    attempts integer NOT NULL,
    last_error text
) PARTITION BY RANGE (finished_at);
CREATE INDEX finished_callbacks_id ON scheduler.finished_callbacks (id);
CREATE INDEX finished_callbacks_failed
    ON scheduler.finished_callbacks (client_id, finished_at, id)
    WHERE status = 'failed';

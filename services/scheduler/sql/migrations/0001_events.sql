-- What was ordered. A row never changes; it goes when its event has left the history.
CREATE TABLE scheduler.orders (
    id uuid PRIMARY KEY,
    client_id text NOT NULL,            -- '' is the anonymous client
    group_key text,
    event_key text,
    created_at timestamptz NOT NULL,
    fingerprint bytea,                  -- SHA-256 of the order, where an idempotency key was given
    context text NOT NULL,              -- JSON as it goes out; nothing here is ever searched
    message text NOT NULL,              -- the constant part of SendCallback: JSON without its end
    headers text,                       -- JSON
    secret bytea,                       -- sealed
    exchange text,                      -- of the transport amqp
    routing_key text,
    format text NOT NULL,
    lease double precision NOT NULL,    -- seconds
    stop_after double precision NOT NULL,
    rules text,                         -- JSON; NULL for the defaults
    traceparent text                    -- W3C trace context of whoever ordered it
);
CREATE UNIQUE INDEX orders_keys ON scheduler.orders (client_id, coalesce(group_key, ''), event_key)
    WHERE event_key IS NOT NULL;
CREATE INDEX orders_of_client ON scheduler.orders (client_id, created_at, id);
CREATE INDEX orders_of_group ON scheduler.orders (client_id, group_key, created_at, id)
    WHERE group_key IS NOT NULL;

-- Live events only, so that the cost of a claim does not grow with what is over.
CREATE TABLE scheduler.events (
    id uuid PRIMARY KEY,
    run_at timestamptz NOT NULL,
    next_at timestamptz NOT NULL,
    occurrence integer NOT NULL,
    status text NOT NULL CHECK (status IN ('scheduled', 'dispatched', 'retrying')),
    in_flight boolean NOT NULL,
    cancelled boolean NOT NULL,
    dispatch integer NOT NULL,
    first_dispatch integer NOT NULL,
    retries integer NOT NULL,
    attempts integer NOT NULL,
    tries integer NOT NULL,
    try_at timestamptz,
    stop_at timestamptz,
    last_error text
) WITH (
    fillfactor = 80,                    -- room for what a fact changes beside its old version
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 1
);
CREATE INDEX events_next_at ON scheduler.events (next_at);

-- What has ended, a partition for each day, made and dropped by the service.
CREATE TABLE scheduler.history (
    id uuid NOT NULL,
    client_id text NOT NULL,
    finished_at timestamptz NOT NULL,
    run_at timestamptz NOT NULL,
    occurrence integer NOT NULL,
    status text NOT NULL CHECK (status IN ('notified', 'failed', 'cancelled')),
    dispatch integer NOT NULL,
    attempts integer NOT NULL,
    last_error text
) PARTITION BY RANGE (finished_at);
CREATE INDEX history_id ON scheduler.history (id);
CREATE INDEX history_failed ON scheduler.history (client_id, finished_at, id)
    WHERE status = 'failed';

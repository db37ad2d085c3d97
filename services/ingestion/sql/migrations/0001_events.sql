-- The keys of accepted events, kept for the retention.
CREATE TABLE ingestion.seen_events (
    key uuid PRIMARY KEY,
    seen_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX seen_events_seen_at ON ingestion.seen_events (seen_at);

-- Commands that the broker has not confirmed. One statement inserts them with the event's key.
-- Only the lease of a row changes. A row is deleted when its command is confirmed.
CREATE TABLE ingestion.outbox (
    id uuid PRIMARY KEY,                -- published as x-ringback-id
    kind text NOT NULL,
    body bytea NOT NULL,                -- JSON as published
    traceparent text,                   -- W3C trace context of the event
    created_at timestamptz NOT NULL,    -- published as the timestamp every time
    leased_until timestamptz NOT NULL   -- after that, any process may claim it
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 1
);
CREATE INDEX outbox_leased_until ON ingestion.outbox (leased_until);

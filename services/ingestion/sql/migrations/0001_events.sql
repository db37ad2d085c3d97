-- The keys of events that were acted on, kept for the retention.
CREATE TABLE ingestion.seen (
    key uuid PRIMARY KEY,
    seen_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX seen_at ON ingestion.seen (seen_at);

-- Commands that the broker has not confirmed yet; written in one statement with the event's key.
-- A row never changes but for its lease, and goes when it is published, so the table stays small.
CREATE TABLE ingestion.outbox (
    id uuid PRIMARY KEY,                -- goes out as x-ringback-id
    kind text NOT NULL,
    body bytea NOT NULL,                -- JSON as it goes out
    traceparent text,                   -- W3C trace context of the event
    created_at timestamptz NOT NULL,    -- goes out as the timestamp, however often
    leased_until timestamptz NOT NULL   -- until then one process publishes it, from then on any
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 1
);
CREATE INDEX outbox_leased_until ON ingestion.outbox (leased_until);

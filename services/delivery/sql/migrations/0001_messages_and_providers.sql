-- A running process of delivery. Its claims are void once it is not alive any more.
CREATE TABLE delivery.processes (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    providers text[] NOT NULL,              -- those that it sends to
    alive_until timestamptz NOT NULL
);

-- A message that a process sends or has sent.
CREATE TABLE delivery.messages (
    id uuid PRIMARY KEY,                    -- derived from the channel and the id of the message
    process integer NOT NULL,               -- the process that has claimed it
    duration real,                          -- seconds of the attempt that sent it; NULL: not sent
    claimed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX messages_claimed ON delivery.messages (claimed_at);

-- The token bucket of a provider with a rate.
CREATE TABLE delivery.providers (
    id text PRIMARY KEY,                    -- scheme, host and port
    tokens double precision NOT NULL,
    refilled_at timestamptz NOT NULL
);

-- When the messages of a mailing may no longer be sent.
CREATE TABLE delivery.stops (
    mailing_id text PRIMARY KEY,
    version bigint NOT NULL,                -- of the mailing; an older one changes nothing
    stopped_at timestamptz NOT NULL,        -- -infinity: as soon as it is committed
    requested_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX stops_requested ON delivery.stops (requested_at);

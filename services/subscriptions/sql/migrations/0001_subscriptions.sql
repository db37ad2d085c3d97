-- Locks are taken in this order: users (by id), endpoints (by id), deliveries, tokens.

-- A user of the messenger. Appending events locks the row, so that the order of commits is the
-- order of the sequence.
CREATE TABLE subscriptions.users (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    password_hash bytea NOT NULL,               -- a salt of 16 bytes, and scrypt
    request_id text NOT NULL,                   -- the request that registered the user
    sequence bigint NOT NULL DEFAULT 0,         -- of the last event
    seen bigint NOT NULL DEFAULT 0,             -- the highest position of tokens that are deleted
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01);

-- A sign-in of a user.
CREATE TABLE subscriptions.tokens (
    hash bytea PRIMARY KEY,                     -- SHA-256 of the token
    user_id bigint NOT NULL,
    position bigint NOT NULL,                   -- the sequence of the last event that polls have returned
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01);
CREATE INDEX tokens_user_id ON subscriptions.tokens (user_id);
CREATE INDEX tokens_expires_at ON subscriptions.tokens (expires_at);

-- A message from one user to another. Its ids ascend with its times.
CREATE TABLE subscriptions.messages (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    from_id bigint NOT NULL,
    to_id bigint NOT NULL,
    text text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- The events of users, numbered from 1 without gaps. Retention deletes the oldest.
CREATE TABLE subscriptions.user_events (
    user_id bigint NOT NULL,
    sequence bigint NOT NULL,
    event_id text NOT NULL,                     -- makes repeats harmless
    type text NOT NULL,
    event text NOT NULL,                        -- JSON
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, sequence),
    UNIQUE (user_id, event_id)
);
CREATE INDEX user_events_created_at ON subscriptions.user_events (created_at);

-- A URL that receives the messages of a client, or the events of a user.
CREATE TABLE subscriptions.endpoints (
    id uuid PRIMARY KEY,
    client_id text,                             -- of a customer's endpoint; '' is the anonymous client
    user_id bigint,                             -- of a user's callback
    event_types text[] NOT NULL DEFAULT '{}',   -- of a customer's endpoint
    description text NOT NULL DEFAULT '',
    url bytea NOT NULL,                         -- this and the headers: encrypted, they can contain tokens
    headers bytea,                              -- a JSON object; NULL: none
    rate_limit double precision,                -- messages per second; NULL: no limit
    fingerprint text,                           -- SHA-256 of the only certificate that is accepted
    ordered boolean NOT NULL DEFAULT false,
    ack_token bytea,                            -- hash of the token with which it shares a position
    secret bytea NOT NULL,                      -- encrypted
    old_secret bytea,                           -- encrypted; also signs until `old_secret_until`
    old_secret_until timestamptz,
    rotation text,                              -- the request that rotated the secret last
    status text NOT NULL DEFAULT 'active'
        CHECK (status IN ('active', 'paused', 'disabled', 'deleted')),
    sweeping boolean NOT NULL DEFAULT false,    -- its unfinished deliveries have to follow its status
    failing_since timestamptz,                  -- of the first failed attempt after the last success
    next_free_at timestamptz NOT NULL DEFAULT '-infinity',  -- when the rate permits the next message
    version bigint NOT NULL DEFAULT 1,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((client_id IS NULL) <> (user_id IS NULL))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01);
CREATE INDEX endpoints_client_id ON subscriptions.endpoints (client_id, created_at, id)
    WHERE client_id IS NOT NULL;
CREATE UNIQUE INDEX endpoints_user_id ON subscriptions.endpoints (user_id)
    WHERE user_id IS NOT NULL AND status <> 'deleted';
CREATE INDEX endpoints_ack_token ON subscriptions.endpoints (ack_token) WHERE ack_token IS NOT NULL;
CREATE INDEX endpoints_deleted ON subscriptions.endpoints (id) WHERE status = 'deleted';
CREATE INDEX endpoints_sweeping ON subscriptions.endpoints (id) WHERE sweeping;

-- A message to the endpoints of a client.
CREATE TABLE subscriptions.endpoint_messages (
    client_id text NOT NULL,
    id text NOT NULL,
    event_type text NOT NULL,
    payload text NOT NULL,                      -- JSON
    endpoints integer NOT NULL,                 -- how many it was sent to
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (client_id, id)
);
CREATE INDEX endpoint_messages_created_at ON subscriptions.endpoint_messages (created_at);

-- One message, user event or test to one endpoint. The ids of deliveries in order ascend.
CREATE TABLE subscriptions.deliveries (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    endpoint_id uuid NOT NULL,
    client_id text,                             -- this and the next: of a message of a client
    message_id text,
    sequence bigint,                            -- of an event of the user
    payload text,                               -- JSON of neither, such as a test
    destination bytea,                          -- encrypted: a URL that was replaced, with its secret
    webhook_id text NOT NULL,
    in_order boolean NOT NULL,                  -- dispatched when the one before it has ended
    status text NOT NULL
        CHECK (status IN ('pending', 'waiting', 'dispatched', 'delivered', 'failed', 'cancelled')),
    due_at timestamptz NOT NULL,                -- of the next claim; while dispatched: when the lease expires
    dispatch integer NOT NULL DEFAULT 0,        -- the number of the last claim
    first_dispatch integer NOT NULL DEFAULT 1,  -- after the last replay
    failures integer NOT NULL DEFAULT 0,        -- failed dispatches after the last replay
    earlier_attempts integer NOT NULL DEFAULT 0, -- before this dispatch
    attempts integer NOT NULL DEFAULT 0,
    last_error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.01,
    autovacuum_vacuum_cost_delay = 1
);
CREATE INDEX deliveries_due ON subscriptions.deliveries (due_at)
    WHERE status IN ('pending', 'dispatched');
CREATE INDEX deliveries_active ON subscriptions.deliveries (endpoint_id)
    WHERE in_order AND status IN ('pending', 'dispatched');
CREATE INDEX deliveries_unfinished ON subscriptions.deliveries (endpoint_id, id)
    WHERE finished_at IS NULL;
CREATE INDEX deliveries_of_endpoint ON subscriptions.deliveries (endpoint_id, id);
CREATE INDEX deliveries_of_message ON subscriptions.deliveries (client_id, message_id)
    WHERE message_id IS NOT NULL;
CREATE INDEX deliveries_of_event ON subscriptions.deliveries (endpoint_id, sequence)
    WHERE sequence IS NOT NULL;
CREATE INDEX deliveries_waiting ON subscriptions.deliveries (endpoint_id, id)
    WHERE status = 'waiting';
CREATE INDEX deliveries_failed ON subscriptions.deliveries (endpoint_id, id) WHERE status = 'failed';
CREATE INDEX deliveries_finished ON subscriptions.deliveries (finished_at)
    WHERE finished_at IS NOT NULL;

-- One HTTP request of a delivery.
CREATE TABLE subscriptions.attempts (
    delivery_id bigint NOT NULL,
    attempt integer NOT NULL,                   -- from 1, over all dispatches
    at timestamptz NOT NULL,
    status_code integer,
    duration double precision,                  -- seconds
    error text,
    PRIMARY KEY (delivery_id, attempt)
);
CREATE INDEX attempts_at ON subscriptions.attempts (at);

-- A request to deliver to an endpoint again what failed in an interval.
CREATE TABLE subscriptions.replays (
    id uuid PRIMARY KEY,
    endpoint_id uuid NOT NULL,
    since timestamptz NOT NULL,
    until timestamptz NOT NULL,
    cursor bigint NOT NULL,                     -- the last delivery that is pending again
    replayed integer NOT NULL DEFAULT 0,
    next_at timestamptz NOT NULL DEFAULT now(), -- when the rate permits the next batch
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);
CREATE INDEX replays_of_endpoint ON subscriptions.replays (endpoint_id, created_at, id);
CREATE INDEX replays_unfinished ON subscriptions.replays (id) WHERE finished_at IS NULL;

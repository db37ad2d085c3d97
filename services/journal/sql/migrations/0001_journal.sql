-- What happened, one row for each fact. Rows are only added. The service creates and drops one
-- partition for each day, in UTC.
CREATE SEQUENCE journal.entries_seq;
CREATE TABLE journal.entries (
    seq bigint NOT NULL DEFAULT nextval('journal.entries_seq'), -- in the order of the stream
    at timestamptz NOT NULL,
    next_at timestamptz,                -- of the next attempt, or the due time
    duration double precision,          -- seconds
    attempt bigint,
    dispatch bigint,
    status_code bigint,
    kind text NOT NULL,
    outcome text,                       -- of an attempt
    schedule_id uuid,
    callback_id text COLLATE "C",       -- the id that the receiver sees
    message_id text COLLATE "C",        -- of an e-mail or SMS
    client_id text COLLATE "C",         -- '' is the anonymous client; NULL: not of a client
    target text COLLATE "C",            -- scheme, host and port
    trace_id text COLLATE "C",
    group_key text,
    event_key text,
    reason text,
    response bytea,                     -- encrypted excerpt
    detail jsonb,
    PRIMARY KEY (at, seq)
) PARTITION BY RANGE (at);
CREATE INDEX entries_seq_key ON journal.entries (seq);
CREATE INDEX entries_callback ON journal.entries (callback_id, at, seq)
    WHERE callback_id IS NOT NULL;
CREATE INDEX entries_schedule ON journal.entries (schedule_id, at, seq)
    WHERE schedule_id IS NOT NULL;
CREATE INDEX entries_message ON journal.entries (message_id, at, seq)
    WHERE message_id IS NOT NULL;
CREATE INDEX entries_client ON journal.entries (client_id, at, seq) WHERE client_id IS NOT NULL;
CREATE INDEX entries_target ON journal.entries (target, at, seq) WHERE target IS NOT NULL;
CREATE INDEX entries_trace ON journal.entries (trace_id, at, seq) WHERE trace_id IS NOT NULL;
CREATE INDEX entries_failed ON journal.entries (at, seq) WHERE outcome <> 'delivered';
CREATE INDEX entries_failed_client ON journal.entries (client_id, at, seq)
    WHERE outcome <> 'delivered';
CREATE INDEX entries_failed_target ON journal.entries (target, at, seq)
    WHERE outcome <> 'delivered';
-- Ended without an attempt; `outcome` is that of an attempt.
CREATE INDEX entries_ended ON journal.entries (at, seq)
    WHERE outcome IS NULL AND kind IN ('dead', 'dispatch_failed');
CREATE INDEX entries_ended_client ON journal.entries (client_id, at, seq)
    WHERE outcome IS NULL AND kind IN ('dead', 'dispatch_failed');
CREATE INDEX entries_group ON journal.entries (group_key, at, seq) WHERE group_key IS NOT NULL;
CREATE INDEX entries_event ON journal.entries (event_key, at, seq) WHERE event_key IS NOT NULL;

-- Kept requests, one for each callback. Partitioned like the entries.
CREATE TABLE journal.requests (
    callback_id text COLLATE "C" NOT NULL,
    client_id text COLLATE "C" NOT NULL, -- '' is the anonymous client
    reference text COLLATE "C" NOT NULL, -- the owner's own id, if several share the callback id
    at timestamptz NOT NULL,
    sealed bytea NOT NULL               -- encrypted: the SendCallback and its message id
) PARTITION BY RANGE (at);
ALTER TABLE journal.requests ALTER COLUMN sealed SET STORAGE EXTERNAL; -- not compressible
CREATE INDEX requests_callback ON journal.requests (callback_id);

-- Attempts per target, client and minute. `buckets` counts durations, see services/journal/durations.py.
CREATE TABLE journal.minutes (
    target text COLLATE "C" NOT NULL,
    client_id text COLLATE "C" NOT NULL, -- '' is the anonymous client
    minute timestamptz NOT NULL,
    delivered bigint NOT NULL,
    failed bigint NOT NULL,
    buckets bigint[] NOT NULL,
    PRIMARY KEY (target, client_id, minute)
) WITH (fillfactor = 70);               -- a row changes with each batch of its minute
-- Otherwise each access to an element copies the array.
ALTER TABLE journal.minutes ALTER COLUMN buckets SET STORAGE PLAIN;
CREATE INDEX minutes_minute ON journal.minutes (minute);

-- Dead letters that are in their queues, and how many there are by reason and target.
CREATE TABLE journal.letters (
    seq bigint GENERATED ALWAYS AS IDENTITY, -- a job moves letters up to the last one at its start
    at timestamptz NOT NULL,
    queue text COLLATE "C" NOT NULL,    -- the work queue
    letter_id text COLLATE "C" NOT NULL,
    logical_id text COLLATE "C",
    client_id text COLLATE "C",         -- NULL: not of a client
    target text COLLATE "C",
    reason text NOT NULL,
    reason_key text COLLATE "C" NOT NULL, -- the reason without its numbers and names
    trace_id text,
    PRIMARY KEY (queue, letter_id)
);
CREATE INDEX letters_seq ON journal.letters (queue, seq);
CREATE INDEX letters_at ON journal.letters (queue, at, seq);
CREATE INDEX letters_reason ON journal.letters (queue, reason_key, at, seq);
CREATE INDEX letters_target ON journal.letters (queue, target, at, seq);
CREATE TABLE journal.letter_counts (
    queue text COLLATE "C" NOT NULL,
    reason_key text COLLATE "C" NOT NULL,
    target text COLLATE "C" NOT NULL,   -- '' without a target
    count bigint NOT NULL,
    PRIMARY KEY (queue, reason_key, target)
) WITH (fillfactor = 70);               -- a row changes with each batch of its letters

-- Letters that were moved, until RabbitMQ has surely applied their acks. A letter that is found
-- here and in its queue is not moved twice.
CREATE TABLE journal.moved_letters (
    queue text COLLATE "C" NOT NULL,
    letter_id text COLLATE "C" NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (queue, letter_id)
);
CREATE INDEX moved_letters_at ON journal.moved_letters (at);

-- Bulk work: redrives, discards and replays. One process works on a job under a lease.
CREATE TABLE journal.jobs (
    id uuid PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('redrive', 'discard', 'replay')),
    status text NOT NULL CHECK (status IN ('running', 'finished', 'cancelled', 'failed')),
    queue text,
    filter jsonb NOT NULL,
    url bytea,                          -- encrypted, because it can contain a token
    rate double precision NOT NULL,
    matching bigint NOT NULL,
    done bigint NOT NULL DEFAULT 0,
    failed bigint NOT NULL DEFAULT 0,
    cursor jsonb,                       -- where to continue
    actor text,
    client_id text,                     -- '' is the anonymous client; NULL: all clients
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    lease uuid,                         -- changes with each claim
    leased_until timestamptz NOT NULL DEFAULT '-infinity'
);
CREATE UNIQUE INDEX jobs_queue ON journal.jobs (queue)
    WHERE status = 'running' AND queue IS NOT NULL; -- one at a time for each queue
CREATE INDEX jobs_created ON journal.jobs (created_at, id);
CREATE INDEX jobs_running ON journal.jobs (leased_until) WHERE status = 'running';

-- The actions of people and clients.
CREATE TABLE journal.audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor text,
    client_id text,
    action text NOT NULL,
    object text,
    detail jsonb NOT NULL,
    result text NOT NULL,
    key text UNIQUE                     -- of the request, which may be delivered twice
);
CREATE INDEX audit_at ON journal.audit (at, id);

CREATE TABLE journal.paused_targets (
    target text PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    actor text
);

-- One row: the version of the list of paused targets.
CREATE TABLE journal.controls (version bigint NOT NULL);
INSERT INTO journal.controls (version) VALUES (0);

-- Circuit breakers that are open in a process of the callback service.
CREATE TABLE journal.breakers (
    target text COLLATE "C" NOT NULL,
    client_id text COLLATE "C" NOT NULL, -- '' is the anonymous client
    process text NOT NULL,
    opened_at timestamptz NOT NULL,
    until timestamptz NOT NULL,
    PRIMARY KEY (target, client_id, process)
);

-- Lanes of processes of the callback service that were full when they were reported last.
CREATE TABLE journal.full_lanes (
    target text COLLATE "C" NOT NULL,
    client_id text COLLATE "C" NOT NULL, -- '' is the anonymous client
    process text NOT NULL,
    reason text NOT NULL,
    in_flight integer NOT NULL,
    "limit" integer NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (target, client_id, process)
);

-- The last message of each stream that is stored. It changes in the transaction that stores it.
CREATE TABLE journal.position (
    stream text PRIMARY KEY,
    "offset" bigint NOT NULL,           -- -1 before the first message
    message_id text,                    -- of the message at this offset
    lag double precision,               -- seconds that the journal was behind at `checked_at`
    checked_at timestamptz
);
INSERT INTO journal.position (stream, "offset") VALUES ('journal.facts', -1);

-- Messages that the stream dropped before they were stored.
CREATE TABLE journal.gaps (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    stream text NOT NULL,
    first_offset bigint NOT NULL,
    last_offset bigint NOT NULL,
    messages bigint,                    -- NULL: not known
    reason text NOT NULL CHECK (reason IN ('backlog_exceeded', 'stream_replaced'))
);
CREATE INDEX gaps_at ON journal.gaps (at);

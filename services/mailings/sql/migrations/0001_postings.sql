-- A posting and its progress. Its texts never change; the counters change with every page.
-- A mailing has a posting for each time zone of its clients, or one for all without local hours.
CREATE TABLE mailings.postings (
    id uuid PRIMARY KEY,
    client_id text,                         -- the client that can see it; NULL: every client
    mailing_id uuid,                        -- NULL: a posting of its own
    timezone text,                          -- only clients of a mailing in this time zone
    fingerprint bytea,                      -- SHA-256 of the posting, to detect conflicting repeats
    body text CHECK ((body IS NULL) = (mailing_id IS NOT NULL)),  -- the Posting as JSON
    from_event text,
    priority text NOT NULL CHECK (priority IN ('urgent', 'bulk')),
    traceparent text,                       -- W3C trace context of the command
    accepted_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    fetched_data text,                      -- JSON: the data that the template fetches; NULL: not yet

    is_list boolean NOT NULL DEFAULT false, -- its users are more than one small response, or clients
    next_page text,                         -- the page after the checkpoint: a URL, or the id of a client;
                                            -- NULL: the first page
    pages integer NOT NULL DEFAULT 0,       -- the checkpoint: all messages of these pages are published
    receivers integer NOT NULL DEFAULT 0,   -- users on these pages
    created integer NOT NULL DEFAULT 0,     -- from here on: its messages, by status
    sent integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    expired integer NOT NULL DEFAULT 0,
    skipped integer NOT NULL DEFAULT 0,
    cancelled integer NOT NULL DEFAULT 0,
    not_reached integer,                    -- of these, the clients of a mailing without a message;
                                            -- NULL: not counted, or the posting is expanded

    ended text CHECK (ended IN ('expanded', 'failed', 'expired', 'cancelled')),
    ended_at timestamptz,
    reason text,                            -- why it failed, or why it is waiting
    failures integer NOT NULL DEFAULT 0,    -- failed slices since the last checkpoint

    due_at timestamptz NOT NULL DEFAULT now(),  -- when the next slice is due; while claimed: when the lease expires; infinity: paused
    lease integer NOT NULL DEFAULT 0,       -- the number of the claim; writes under an older one are rejected
    unfinished boolean NOT NULL DEFAULT false,  -- the last slice may have published a part of a page
    messages_deleted boolean NOT NULL DEFAULT false  -- by retention; the counters of a mailing's posting stay
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01);

CREATE INDEX postings_newest ON mailings.postings (accepted_at, id) WHERE mailing_id IS NULL;
CREATE INDEX postings_from_event ON mailings.postings (from_event, accepted_at, id)
    WHERE mailing_id IS NULL;
CREATE INDEX postings_of_mailing ON mailings.postings (mailing_id) WHERE mailing_id IS NOT NULL;
CREATE INDEX postings_due ON mailings.postings (is_list, priority DESC, due_at)
    WHERE ended_at IS NULL;
CREATE INDEX postings_ended ON mailings.postings (ended_at)
    WHERE ended_at IS NOT NULL AND NOT messages_deleted;

-- One message to one recipient. Its address and its text are only in the queue.
CREATE TABLE mailings.messages (
    posting_id uuid NOT NULL,
    id uuid NOT NULL,                       -- derived from posting, channel and user
    user_id text NOT NULL,                  -- of a mailing: the id of the client
    operator_code text,                     -- of the client of a mailing
    channel text NOT NULL,
    status text NOT NULL,
    is_skipped boolean NOT NULL GENERATED ALWAYS AS (status = 'skipped') STORED,
    returned_at timestamptz,                -- when delivery returned it unsent; it is published again
    reason_code text,                       -- from a closed set; NULL without a reason
    reason text,
    page integer NOT NULL,                  -- from 0
    created_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    PRIMARY KEY (posting_id, id)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX messages_returned ON mailings.messages (posting_id, id)
    WHERE returned_at IS NOT NULL;
-- Not on the status: then settling a message would change every index (no heap-only tuple).
CREATE INDEX messages_skipped ON mailings.messages (posting_id, reason) WHERE is_skipped;

-- Recipients who have unsubscribed from a kind of e-mail with the link in one. Kept forever.
CREATE TABLE mailings.unsubscribed (
    subscription bytea PRIMARY KEY,         -- a hash of the address and the kind
    at timestamptz NOT NULL DEFAULT now()
);

-- A mailing to clients of the directory.
CREATE TABLE mailings.mailings (
    id uuid PRIMARY KEY,
    client_id text NOT NULL,                -- the caller that can see it; '': the anonymous one
    fingerprint bytea NOT NULL,             -- SHA-256 of the creation, to detect conflicting repeats
    traceparent text,                       -- W3C trace context of the creation
    channel text NOT NULL,
    text text,                              -- inline; NULL: a template
    template text CHECK ((template IS NULL) = (text IS NOT NULL)),
    template_context text NOT NULL,         -- JSON
    start_at timestamptz NOT NULL,
    end_at timestamptz NOT NULL,
    operator_codes text[] NOT NULL,         -- the filter; an empty list selects all
    tags text[] NOT NULL,
    local_from time,
    local_to time CHECK ((local_to IS NULL) = (local_from IS NULL)),
    rate_per_minute integer,

    status text NOT NULL
        CHECK (status IN ('draft', 'scheduled', 'running', 'paused', 'finished', 'cancelled')),
    version integer NOT NULL DEFAULT 1,     -- increases with every change
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,                 -- when its postings were created
    paced_until timestamptz NOT NULL DEFAULT '-infinity',  -- when the rate permits the next messages
    tests_until timestamptz NOT NULL DEFAULT '-infinity',  -- when the rate of tests permits all so far
    ended_at timestamptz,

    start_requested_at timestamptz,         -- the start time that the scheduler has confirmed
    stop_version integer NOT NULL DEFAULT 0,    -- the version in which delivery's stop changed last
    stop_confirmed integer NOT NULL DEFAULT 0,  -- the one that delivery has confirmed
    closing boolean NOT NULL DEFAULT false, -- it has ended, and some messages are not settled yet
    reason text                             -- why one of its postings failed
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX mailings_newest ON mailings.mailings (client_id, created_at, id);
-- What the campaigns worker has to look at: few rows.
CREATE INDEX mailings_open ON mailings.mailings (status, start_at, end_at)
    WHERE status IN ('scheduled', 'running', 'paused');
CREATE INDEX mailings_unconfirmed ON mailings.mailings (id) WHERE stop_confirmed < stop_version;
CREATE INDEX mailings_closing ON mailings.mailings (id) WHERE closing;

-- The messages of mailings, counted, and the clients whom expansion did not reach. Retention keeps
-- the counts until the mailing is deleted.
CREATE TABLE mailings.statistics (
    mailing_id uuid NOT NULL,
    posting_id uuid NOT NULL,               -- its lock protects the counts
    hour timestamptz NOT NULL,              -- in which the messages were created, or the posting ended
    operator_code text NOT NULL,
    status text NOT NULL,
    reason_code text NOT NULL,              -- '' without a reason
    count bigint NOT NULL,
    PRIMARY KEY (mailing_id, posting_id, hour, operator_code, status, reason_code)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01);

CREATE INDEX statistics_hour ON mailings.statistics (hour, mailing_id);

-- These count messages in the transaction that changes them, which holds the lock of their posting.
-- Only messages of mailings have an operator code.
CREATE FUNCTION mailings.count_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows WHERE operator_code IS NOT NULL) THEN
        INSERT INTO mailings.statistics AS counter
        SELECT mailing_id, posting.id, date_trunc('hour', message.created_at, 'UTC'),
            operator_code, message.status, coalesce(reason_code, ''), count(*)
        FROM new_rows AS message
        JOIN mailings.postings AS posting ON posting.id = posting_id
        JOIN mailings.mailings AS mailing ON mailing.id = mailing_id
        GROUP BY 1, 2, 3, 4, 5, 6
        ON CONFLICT ON CONSTRAINT statistics_pkey
        DO UPDATE SET count = counter.count + excluded.count;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION mailings.count_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM new_rows WHERE operator_code IS NOT NULL) THEN
        INSERT INTO mailings.statistics AS counter
        SELECT mailing_id, posting.id, date_trunc('hour', message.created_at, 'UTC'),
            operator_code, message.status, coalesce(reason_code, ''), sum(change)
        FROM (
            SELECT posting_id, created_at, operator_code, status, reason_code, -1 AS change
            FROM old_rows
            UNION ALL
            SELECT posting_id, created_at, operator_code, status, reason_code, 1 FROM new_rows
        ) AS message
        JOIN mailings.postings AS posting ON posting.id = posting_id
        JOIN mailings.mailings AS mailing ON mailing.id = mailing_id
        GROUP BY 1, 2, 3, 4, 5, 6 HAVING sum(change) <> 0
        ON CONFLICT ON CONSTRAINT statistics_pkey
        DO UPDATE SET count = counter.count + excluded.count;
    END IF;
    RETURN NULL;
END
$$;

-- Retention deletes messages of postings that have ended. They stay counted.
CREATE FUNCTION mailings.count_removed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM old_rows WHERE operator_code IS NOT NULL) THEN
        INSERT INTO mailings.statistics AS counter
        SELECT mailing_id, posting.id, date_trunc('hour', message.created_at, 'UTC'),
            operator_code, message.status, coalesce(reason_code, ''), -count(*)
        FROM old_rows AS message
        JOIN mailings.postings AS posting ON posting.id = posting_id
        JOIN mailings.mailings AS mailing ON mailing.id = mailing_id
        WHERE ended IS NULL
        GROUP BY 1, 2, 3, 4, 5, 6
        ON CONFLICT ON CONSTRAINT statistics_pkey
        DO UPDATE SET count = counter.count + excluded.count;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER count_added AFTER INSERT ON mailings.messages
    REFERENCING NEW TABLE AS new_rows EXECUTE FUNCTION mailings.count_added();
CREATE TRIGGER count_changed AFTER UPDATE ON mailings.messages
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    EXECUTE FUNCTION mailings.count_changed();
CREATE TRIGGER count_removed AFTER DELETE ON mailings.messages
    REFERENCING OLD TABLE AS old_rows EXECUTE FUNCTION mailings.count_removed();

-- The client directory: people whom mailings reach.
CREATE TABLE mailings.clients (
    id uuid NOT NULL,                       -- elsewhere its name is recipient_id
    client_id text NOT NULL,                -- the calling service that owns it; '': the anonymous one
    phone text NOT NULL,
    operator_code text NOT NULL,
    tag text,
    timezone text NOT NULL,
    version integer NOT NULL DEFAULT 1,     -- its entity tag
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (client_id, id),            -- the order of lists and mailings
    UNIQUE (client_id, phone)
);

-- Each returns the clients with one value in the order of their ids.
CREATE INDEX clients_operator_code ON mailings.clients (client_id, operator_code, id);
CREATE INDEX clients_tag ON mailings.clients (client_id, tag, id) WHERE tag IS NOT NULL;
CREATE INDEX clients_timezone ON mailings.clients (client_id, timezone, id);

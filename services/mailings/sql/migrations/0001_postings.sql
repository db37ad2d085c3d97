-- A posting and its progress. Its texts never change; the counters change with every page.
CREATE TABLE mailings.postings (
    id uuid PRIMARY KEY,
    client_id text,                         -- the client that can see it; NULL: every client
    fingerprint bytea,                      -- SHA-256 of the posting, to detect conflicting repeats
    body text NOT NULL,                     -- the Posting as JSON
    from_event text,
    priority text NOT NULL CHECK (priority IN ('urgent', 'bulk')),
    traceparent text,                       -- W3C trace context of the command
    accepted_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    fetched_data text,                      -- JSON: the data that the template fetches; NULL: not yet

    is_list boolean NOT NULL DEFAULT false, -- its users are more than one small response
    next_url text,                          -- of the page after the checkpoint; NULL: the first page
    pages integer NOT NULL DEFAULT 0,       -- the checkpoint: all messages of these pages are published
    receivers integer NOT NULL DEFAULT 0,   -- users on these pages
    created integer NOT NULL DEFAULT 0,     -- from here on: its messages, by status
    sent integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    expired integer NOT NULL DEFAULT 0,
    skipped integer NOT NULL DEFAULT 0,

    ended text CHECK (ended IN ('expanded', 'failed', 'expired')),
    ended_at timestamptz,
    reason text,                            -- why it failed, or why it is waiting
    failures integer NOT NULL DEFAULT 0,    -- failed slices since the last checkpoint

    due_at timestamptz NOT NULL DEFAULT now(),  -- when the next slice is due; while claimed: when the lease expires
    lease integer NOT NULL DEFAULT 0,       -- the number of the claim; writes under an older one are rejected
    unfinished boolean NOT NULL DEFAULT false  -- the last slice may have published a part of a page
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01);

CREATE INDEX postings_newest ON mailings.postings (accepted_at, id);
CREATE INDEX postings_from_event ON mailings.postings (from_event, accepted_at, id);
CREATE INDEX postings_due ON mailings.postings (is_list, priority DESC, due_at)
    WHERE ended_at IS NULL;
CREATE INDEX postings_ended ON mailings.postings (ended_at) WHERE ended_at IS NOT NULL;

-- One message to one recipient. Its address and its text are only in the queue.
CREATE TABLE mailings.messages (
    posting_id uuid NOT NULL,
    id uuid NOT NULL,                       -- derived from posting, channel and user
    user_id text NOT NULL,
    channel text NOT NULL,
    status text NOT NULL,
    reason text,
    page integer NOT NULL,                  -- from 0
    created_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    PRIMARY KEY (posting_id, id)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX messages_skipped ON mailings.messages (posting_id, reason) WHERE status = 'skipped';

-- Recipients who have unsubscribed from a kind of e-mail with the link in one. Kept forever.
CREATE TABLE mailings.unsubscribed (
    subscription bytea PRIMARY KEY,         -- a hash of the address and the kind
    at timestamptz NOT NULL DEFAULT now()
);

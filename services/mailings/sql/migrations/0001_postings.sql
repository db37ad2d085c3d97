-- A posting, and how far it is. Its texts are written once; the counters change with every page.
CREATE TABLE mailings.postings (
    id uuid PRIMARY KEY,
    client_id text,                         -- who may see it; NULL: everybody
    fingerprint bytea,                      -- SHA-256 of the order, where an idempotency key was given
    body text NOT NULL,                     -- the Posting as JSON
    from_event text,
    traceparent text,                       -- W3C trace context of whoever ordered it
    accepted_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    context text,                           -- JSON: what its template had fetched; NULL: not yet

    pages integer NOT NULL DEFAULT 0,       -- all messages of these are given out: the checkpoint
    receivers integer NOT NULL DEFAULT 0,   -- users in them
    created integer NOT NULL DEFAULT 0,     -- from here on: its messages, by status
    sent integer NOT NULL DEFAULT 0,
    failed integer NOT NULL DEFAULT 0,
    expired integer NOT NULL DEFAULT 0,
    skipped integer NOT NULL DEFAULT 0,

    ended text CHECK (ended IN ('expanded', 'failed', 'expired')),
    ended_at timestamptz,
    reason text,                            -- why it failed, or what is in the channel just now
    tries integer NOT NULL DEFAULT 0,       -- in vain, since the last page

    due_at timestamptz NOT NULL DEFAULT now(),  -- its next turn; during a turn, the lease's end
    lease integer NOT NULL DEFAULT 0,       -- the number of the turn: an older one changes nothing
    held boolean NOT NULL DEFAULT false     -- the turn was not ended: a page may be half given out
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01);

CREATE INDEX postings_newest ON mailings.postings (accepted_at, id);
CREATE INDEX postings_from_event ON mailings.postings (from_event, accepted_at, id);
-- Whose turn is next.
CREATE INDEX postings_due ON mailings.postings (due_at) WHERE ended_at IS NULL;
CREATE INDEX postings_ended ON mailings.postings (ended_at) WHERE ended_at IS NOT NULL;

-- One message to one receiver. No address and no text: what is to be sent lies in the queue.
CREATE TABLE mailings.messages (
    posting_id uuid NOT NULL,
    id uuid NOT NULL,                       -- of posting, channel and receiver
    user_id text NOT NULL,
    channel text NOT NULL,
    status text NOT NULL,
    why text,
    page integer NOT NULL,                  -- from 0
    created_at timestamptz NOT NULL DEFAULT now(),
    settled_at timestamptz,
    PRIMARY KEY (posting_id, id)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX messages_skipped ON mailings.messages (posting_id, why) WHERE status = 'skipped';

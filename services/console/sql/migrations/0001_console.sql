-- A signed-in browser. Nothing here can be used as a cookie.
CREATE TABLE console.sessions (
    hash bytea PRIMARY KEY,                     -- SHA-256 of the cookie
    issuer text NOT NULL,
    subject text NOT NULL,                      -- the user's id at the issuer
    actor text NOT NULL,                        -- identifies the user in the audit log
    name text NOT NULL,                         -- shown to the user
    role smallint NOT NULL,                     -- 1 viewer, 2 operator, 3 admin
    created_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(), -- within a minute
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX sessions_expires_at ON console.sessions (expires_at);
CREATE INDEX sessions_seen_at ON console.sessions (seen_at);

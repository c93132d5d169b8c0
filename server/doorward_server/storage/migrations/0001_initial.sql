-- needs code: 1
-- The schema of design section 6. Ids are text COLLATE "C": compared byte by byte, in the order that pages follow.
-- The revision of a row is 0 only inside the transaction that writes it: the door stamps it last.

CREATE TABLE state (
    one                 boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch               bigint NOT NULL CHECK (epoch >= 1),
    revision            bigint NOT NULL CHECK (revision >= 0),
    nonce               bytea NOT NULL CHECK (octet_length(nonce) = 8),
    catalog_version     bigint NOT NULL CHECK (catalog_version >= 1),
    catalog             jsonb NOT NULL,
    audit_head          bytea NOT NULL CHECK (octet_length(audit_head) = 32),  -- the chain of the newest event
    last_event_id       bigint NOT NULL DEFAULT 0,  -- and its id
    pepper_fingerprints jsonb NOT NULL
) WITH (fillfactor = 10, toast_tuple_target = 128);  -- updated by every change: room for it on the same page
ALTER TABLE state ALTER COLUMN catalog SET STORAGE EXTERNAL;  -- and the catalog's text is not copied each time

CREATE TABLE accounts (
    account_id    text COLLATE "C" PRIMARY KEY CHECK (account_id ~ '^[A-Za-z0-9_-]{1,64}$'),
    display_name  text NOT NULL,
    plan          text COLLATE "C" NOT NULL,
    state         text COLLATE "C" NOT NULL CHECK (state IN ('active', 'suspended', 'deleted')),
    create_time   timestamptz NOT NULL,
    update_time   timestamptz NOT NULL,
    live_tokens   integer NOT NULL DEFAULT 0 CHECK (live_tokens >= 0),
    issued_tokens bigint NOT NULL DEFAULT 0,  -- ever; the newest one's ordinal
    revision      bigint NOT NULL
) WITH (fillfactor = 70);

CREATE TABLE projects (
    project_id   text COLLATE "C" PRIMARY KEY CHECK (project_id ~ '^[A-Za-z0-9_-]{1,64}$'),
    account_id   text COLLATE "C" NOT NULL REFERENCES accounts,
    display_name text NOT NULL,
    create_time  timestamptz NOT NULL,
    UNIQUE (account_id, project_id)
);

CREATE TABLE tokens (
    token_id            text COLLATE "C" PRIMARY KEY CHECK (token_id ~ '^[A-Za-z0-9_-]{1,64}$'),
    account_id          text COLLATE "C" NOT NULL REFERENCES accounts,
    display_name        text NOT NULL,
    description         text NOT NULL,
    labels              jsonb NOT NULL,
    allow_self_rotation boolean NOT NULL,
    disabled            boolean NOT NULL,
    create_time         timestamptz NOT NULL,
    update_time         timestamptz NOT NULL,
    expire_time         timestamptz,
    revoke_time         timestamptz,
    revoke_reason       text NOT NULL DEFAULT '',
    created_by          text COLLATE "C" NOT NULL,
    ordinal             bigint NOT NULL,  -- counts the account's tokens from 1, under its lock
    revision            bigint NOT NULL
) WITH (fillfactor = 90);
-- Each page of ListTokens reads one of these, or of those of grants, labels and activity, from where the last page ended
-- (storage/token_lists.py). Unlike a revision the ordinal is known when the rows that carry it are first written.
CREATE UNIQUE INDEX tokens_by_account ON tokens (account_id, ordinal DESC);
CREATE INDEX tokens_live ON tokens (account_id, ordinal DESC) WHERE revoke_time IS NULL;
CREATE INDEX tokens_disabled ON tokens (account_id, ordinal DESC) WHERE revoke_time IS NULL AND disabled;
CREATE INDEX tokens_revoked ON tokens (account_id, ordinal DESC) WHERE revoke_time IS NOT NULL;
CREATE INDEX tokens_expiring ON tokens (account_id, expire_time, ordinal)
    WHERE revoke_time IS NULL AND expire_time IS NOT NULL;
CREATE INDEX tokens_by_revocation ON tokens (revoke_time, token_id) WHERE revoke_time IS NOT NULL;  -- for retention
CREATE INDEX tokens_by_creator ON tokens (account_id, created_by, ordinal DESC);
CREATE INDEX tokens_by_name ON tokens (account_id, display_name COLLATE "C", ordinal DESC);

CREATE TABLE token_secrets (
    token_id    text COLLATE "C" NOT NULL REFERENCES tokens ON DELETE CASCADE,
    version     integer NOT NULL CHECK (version >= 1),
    bcrypt_hash text NOT NULL,
    digest      bytea CHECK (octet_length(digest) = 32),
    pepper_id   text COLLATE "C",
    not_after   timestamptz,
    issued_to   text COLLATE "C" NOT NULL,
    PRIMARY KEY (token_id, version),
    CHECK ((digest IS NULL) = (pepper_id IS NULL))
);
CREATE INDEX token_secrets_by_recipient ON token_secrets (issued_to);
CREATE INDEX token_secrets_by_pepper ON token_secrets (pepper_id);

CREATE TABLE grants (
    token_id       text COLLATE "C" NOT NULL REFERENCES tokens ON DELETE CASCADE,
    account_id     text COLLATE "C" NOT NULL,
    permission_set text COLLATE "C" NOT NULL,
    scope          text COLLATE "C" NOT NULL CHECK (scope = '*' OR scope ~ '^[A-Za-z0-9_-]{1,64}$'),
    ordinal        bigint NOT NULL,  -- the token's
    PRIMARY KEY (token_id, permission_set, scope)
);
-- The set first: an account's tokens with a set are one range of it, and so are everybody's (ApplyCatalog).
CREATE INDEX grants_by_set ON grants (permission_set, account_id, ordinal DESC, scope, token_id);
CREATE INDEX grants_by_project ON grants (scope, account_id, ordinal DESC, token_id) WHERE scope <> '*';
CREATE INDEX grants_on_all ON grants (account_id, ordinal DESC) WHERE scope = '*';

CREATE TABLE token_labels (
    account_id text COLLATE "C" NOT NULL,
    key        text COLLATE "C" NOT NULL,
    value      text COLLATE "C" NOT NULL,
    ordinal    bigint NOT NULL,  -- the token's
    token_id   text COLLATE "C" NOT NULL REFERENCES tokens ON DELETE CASCADE,
    PRIMARY KEY (token_id, key)
);
CREATE INDEX token_labels_by_value ON token_labels (account_id, key, value, ordinal DESC);

CREATE TABLE token_activity (
    token_id       text COLLATE "C" PRIMARY KEY REFERENCES tokens ON DELETE CASCADE,
    account_id     text COLLATE "C" NOT NULL,
    last_used_time timestamptz,
    idle_since     timestamptz,  -- its last use, or until then its issue; NULL: it is revoked, and no list asks any more
    ordinal        bigint NOT NULL  -- the token's
) WITH (fillfactor = 70);
CREATE INDEX token_activity_by_idleness ON token_activity (account_id, idle_since, ordinal)
    WHERE idle_since IS NOT NULL;

CREATE TABLE operators (
    operator_id  text COLLATE "C" PRIMARY KEY CHECK (operator_id ~ '^[A-Za-z0-9_-]{1,64}$'),
    role         text COLLATE "C" NOT NULL CHECK (role IN ('admin', 'auditor', 'caller')),
    display_name text NOT NULL,
    bcrypt_hash  text NOT NULL,
    digest       bytea CHECK (octet_length(digest) = 32),
    pepper_id    text COLLATE "C",
    create_time  timestamptz NOT NULL,
    expire_time  timestamptz,
    revoke_time  timestamptz,
    revision     bigint NOT NULL,
    CHECK ((digest IS NULL) = (pepper_id IS NULL))
);
CREATE INDEX operators_by_age ON operators (create_time DESC, operator_id DESC);

CREATE TABLE changes (
    revision    bigint PRIMARY KEY CHECK (revision >= 1),
    nonce       bytea NOT NULL CHECK (octet_length(nonce) = 8),
    kind        text COLLATE "C" NOT NULL,
    account_id  text COLLATE "C",
    subjects    text[] COLLATE "C" NOT NULL CHECK (cardinality(subjects) >= 1),
    commit_time timestamptz NOT NULL
);

CREATE TABLE replicas (
    replica_id       uuid PRIMARY KEY,
    epoch            bigint NOT NULL,
    hold_ms          integer NOT NULL CHECK (hold_ms BETWEEN 500 AND 300000),
    applied_revision bigint NOT NULL,
    watchers         integer NOT NULL DEFAULT 0,
    renewals         bigint NOT NULL DEFAULT 0,
    renewed_time     timestamptz NOT NULL,
    started_time     timestamptz NOT NULL,
    address          text NOT NULL
) WITH (fillfactor = 20);  -- updated several times a second

-- event_id counts the chain without a gap, under the lock of the state row; time, read before that lock, may not follow it
-- to the microsecond. tokens: those that the event is about besides its subject, when it is about several.
CREATE TABLE audit_events (
    time         timestamptz NOT NULL,
    event_id     bigint NOT NULL,
    epoch        bigint NOT NULL,
    revision     bigint NOT NULL,
    account_id   text COLLATE "C",
    actor        text COLLATE "C" NOT NULL,
    on_behalf_of text NOT NULL,
    action       text COLLATE "C" NOT NULL,
    subject      text COLLATE "C" NOT NULL,
    tokens       text[] COLLATE "C",
    before       jsonb,
    after        jsonb,
    peer         text NOT NULL,
    chain        bytea NOT NULL CHECK (octet_length(chain) = 32),
    PRIMARY KEY (time, event_id)
) PARTITION BY RANGE (time);
CREATE INDEX audit_events_in_order ON audit_events (event_id);
CREATE INDEX audit_events_by_account ON audit_events (account_id, time DESC, event_id DESC);
CREATE INDEX audit_events_by_subject ON audit_events (subject, time DESC, event_id DESC);
CREATE INDEX audit_events_by_token ON audit_events USING gin (tokens) WHERE tokens IS NOT NULL;
CREATE INDEX audit_events_by_actor ON audit_events (actor, time DESC, event_id DESC);
CREATE INDEX audit_events_by_action ON audit_events (action, time DESC, event_id DESC);

-- Makes the partitions of this month (UTC) and of the `ahead` following ones that are missing. There is no DEFAULT
-- partition: rows in it would have to be moved before their own partition can be made. A table is made first and then
-- attached, since CREATE TABLE … PARTITION OF would lock out every reader and writer of the whole table.
CREATE FUNCTION ensure_audit_partitions(ahead integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    first_day date;
    partition text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('doorward audit partitions', 0));
    FOR months IN 0..ahead LOOP
        first_day := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => months))::date;
        partition := 'audit_events_' || to_char(first_day, 'YYYY_MM');
        CONTINUE WHEN to_regclass(quote_ident(partition)) IS NOT NULL;
        EXECUTE format('CREATE TABLE %I (LIKE audit_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', partition);
        EXECUTE format(
            'ALTER TABLE audit_events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
            partition,
            first_day::timestamp AT TIME ZONE 'UTC',
            (first_day + interval '1 month') AT TIME ZONE 'UTC'
        );
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;
SELECT ensure_audit_partitions(2);

-- Drops the partition of a month. Whoever calls it has written into the audit what goes, in the same transaction.
CREATE FUNCTION drop_audit_partition(partition text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF partition !~ '^audit_events_[0-9]{4}_[0-9]{2}$' THEN
        RAISE EXCEPTION 'no partition of the audit: %', partition;
    END IF;
    EXECUTE format('DROP TABLE %I', partition);
END
$$;

-- Refused mutations and failed credentials: outside the chain, rate-limited by who writes them.
CREATE TABLE refusals (
    refusal_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    time       timestamptz NOT NULL,
    account_id text COLLATE "C",
    actor      text COLLATE "C" NOT NULL,
    action     text COLLATE "C" NOT NULL,
    subject    text COLLATE "C" NOT NULL,
    reason     text COLLATE "C" NOT NULL,
    peer       text NOT NULL,
    suppressed integer NOT NULL DEFAULT 0 CHECK (suppressed >= 0)
);
CREATE INDEX refusals_by_time ON refusals (time DESC, refusal_id DESC);
CREATE INDEX refusals_by_account ON refusals (account_id, time DESC, refusal_id DESC);
CREATE INDEX refusals_by_subject ON refusals (subject, time DESC, refusal_id DESC);
CREATE INDEX refusals_by_actor ON refusals (actor, time DESC, refusal_id DESC);
CREATE INDEX refusals_by_action ON refusals (action, time DESC, refusal_id DESC);

CREATE TABLE idempotent_responses (
    key_hash     bytea PRIMARY KEY,
    caller       text COLLATE "C" NOT NULL,
    request_hash bytea NOT NULL,
    sealed       bytea NOT NULL,
    expires      timestamptz NOT NULL
);
CREATE INDEX idempotent_responses_by_expiry ON idempotent_responses (expires);

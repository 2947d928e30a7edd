-- An event is published if and only if its transaction committed: so it is a row, written by the transaction that makes
-- the change, and outbox-relay reads it from the write-ahead log. Columns and their names are the defaults of Debezium's
-- Outbox Event Router. user-api may add rows and not change or read them: an event, once written, stays as it is.
create table public.outbox (
    id            uuid        constraint outbox_pkey primary key default gen_random_uuid(),
    aggregatetype text        not null,
    aggregateid   text        not null,
    type          text        not null,
    payload       jsonb,
    created_at    timestamptz not null default clock_timestamp()
);

grant insert on public.outbox to user_api;
-- For the rows that were there before the relay; everything later comes from the log.
grant select on public.outbox to outbox_relay;

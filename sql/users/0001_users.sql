-- Users are the truth that every view is made from. The database holds the rules that two requests at once could break
-- (one user an e-mail) and those that a person with psql could forget; the names of its constraints are part of user-api,
-- which turns them into 409 and 422.
create table public.users (
    -- Never given again after a deletion: a view would take the next owner's events for the old one's.
    id         bigint       generated always as identity constraint users_pkey primary key,
    name       varchar(255) not null,
    email      varchar(255) not null constraint users_email_key unique,
    department varchar(255),
    status     varchar(50)  not null constraint users_status_check check (status in ('ACTIVE', 'INACTIVE')),
    -- Local date-times in UTC, as the events and the answers show them.
    created_at timestamp    not null default (statement_timestamp() at time zone 'utc'),
    updated_at timestamp    not null default (statement_timestamp() at time zone 'utc'),
    -- Counts the user's changes: 1, 2, 3... Each change writes one event with the new number.
    version    bigint       not null default 1
);

grant select, insert, update, delete on public.users to user_api;

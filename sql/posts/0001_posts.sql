-- Posts live beside the views that they are read with, so that a post and its author's name are one join. The author
-- himself lives in users_db: author_id has no foreign key, and a post may name a user whom the view does not know yet,
-- or no longer.
create table public.posts (
    -- Never given again after a deletion: see users.
    id         bigint       generated always as identity constraint posts_pkey primary key,
    title      varchar(255) not null,
    content    text         not null,
    author_id  bigint       not null,
    -- Local date-times in UTC, as the events and the answers show them.
    created_at timestamp    not null default (statement_timestamp() at time zone 'utc'),
    updated_at timestamp    not null default (statement_timestamp() at time zone 'utc'),
    -- Counts the post's changes: 1, 2, 3... Each change writes one event with the new number.
    version    bigint       not null default 1
);

-- Posts by department: from the department's users to their posts.
create index posts_author_id_idx on public.posts (author_id, id);

grant select, insert, update, delete on public.posts to post_api;

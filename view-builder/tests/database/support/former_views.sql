-- What a database has of post_stats, user_activity and department_performance where each kept tables of its own.
create table post_stats_post (post_id bigint primary key, version bigint not null, author_id bigint, created_at timestamp);
create table post_stats (
    author_id bigint primary key, posts bigint not null, first_post_at timestamp not null, last_post_at timestamp not null,
    first_post_id bigint not null, last_post_id bigint not null);
create table user_activity_post (post_id bigint primary key, version bigint not null, author_id bigint, updated_at timestamp);
create table user_activity (
    user_id bigint primary key, changes bigint not null, posts bigint not null,
    last_active timestamp not null generated always as (greatest(updated_at, last_post_at)) stored,
    updated_at timestamp not null, last_post_at timestamp);
create table user_activity_deleted (user_id bigint primary key, version bigint not null);
create table department_performance_post (post_id bigint primary key, version bigint not null, author_id bigint);
create table department_performance_user (
    user_id bigint primary key, version bigint not null, department varchar(255), active boolean, posts bigint not null);
create table department_performance (
    department varchar(255), active_users bigint not null, authors bigint not null, posts bigint not null,
    posts_per_user numeric not null generated always as (coalesce(posts::numeric / nullif(users, 0), 0)) stored,
    users bigint not null) with (fillfactor = 50);
create unique index idx_department_performance_department on department_performance (department) nulls not distinct;

create function keep_post_stats() returns trigger language plpgsql as $$ begin return null; end $$;
create function lock_post_stats() returns void language sql as $$ select $$;
create function apply_post_stats(posts bigint[], versions bigint[], authors bigint[], moments timestamp[]) returns void
    language sql as $$ select $$;
create trigger post_stats_inserted after insert on post_stats_post
    referencing new table as added
    for each statement execute function keep_post_stats();

insert into post_stats_post values (1, 1, 7, '2025-01-01');
insert into post_stats values (7, 1, '2025-01-01', '2025-01-01', 1, 1);
insert into user_activity_post values (1, 1, 7, '2025-01-01');
insert into user_activity (user_id, changes, posts, updated_at, last_post_at) values (7, 1, 1, '2025-01-01', '2025-01-01');
insert into department_performance_post values (1, 1, 7);
insert into department_performance_user values (7, 1, 'a', true, 1);
insert into department_performance (department, active_users, authors, posts, users) values ('a', 1, 1, 1, 1);

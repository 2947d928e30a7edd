-- The cluster: its two databases and the role of each program. A program can reach its own database and nothing else, so
-- that a mistake in one of them cannot touch what another one promises. view_verifier and console can reach both, and read only:
-- the one compares the views with what they are made from, the other shows outboxes, slots and views.
--
-- Run with psql as a superuser on the database postgres, before the migrations; running it again changes nothing.
-- The roles have no password: how they log in is pg_hba.conf's affair, or `alter role ... password ...` afterwards.

\set ON_ERROR_STOP on

select format('create role %I login', name)
from unnest(array['user_api', 'post_api', 'view_builder', 'outbox_maintainer', 'view_verifier', 'console']) as wanted(name)
where not exists (select from pg_roles where rolname = name) \gexec

-- Logical decoding needs the attribute REPLICATION; no grant stands for it.
select 'create role outbox_relay login replication'
where not exists (select from pg_roles where rolname = 'outbox_relay') \gexec

select format('create database %I encoding ''UTF8'' template template0', name)
from unnest(array['users_db', 'materialized_view_db']) as wanted(name)
where not exists (select from pg_database where datname = name) \gexec

revoke connect, temporary on database users_db, materialized_view_db from public;
grant connect on database users_db to user_api, outbox_relay, outbox_maintainer, view_verifier, console;
grant connect on database materialized_view_db to post_api, view_builder, outbox_relay, outbox_maintainer, view_verifier, console;
alter role view_verifier set default_transaction_read_only = on;
alter role console set default_transaction_read_only = on;

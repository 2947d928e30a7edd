-- A table that grows by a tenth each minute, as a busy young one does, is analyzed each minute, and takes the processor from who writes to it.
-- Nobody looks for an event in the outbox: no column is sampled. What looks for posts does so by id or author: a tenth of the usual
-- sample tells enough. The outbox's partitions get this as well; outbox-relay gives it to those that it makes.
alter table public.outbox
    alter column id set statistics 0,
    alter column aggregatetype set statistics 0,
    alter column aggregateid set statistics 0,
    alter column type set statistics 0,
    alter column created_at set statistics 0;
alter table public.posts
    alter column id set statistics 10,
    alter column title set statistics 10,
    alter column content set statistics 10,
    alter column author_id set statistics 10,
    alter column created_at set statistics 10,
    alter column updated_at set statistics 10,
    alter column version set statistics 10;

-- The console shows events of the outbox and how many of them wait, as a role that can read and write nothing.
grant select on public.outbox to console;

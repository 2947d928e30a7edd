-- The console shows the outbox, the views, their positions and the dead letters, those that are there and those that view-builder
-- will make, as a role that can read and write nothing. What changes something runs as the roles of the commands.
grant select on public.outbox to console;
alter default privileges for role view_builder in schema public grant select on tables to console;

do $$
declare
    made name;
begin
    for made in
        select relname from pg_class
        where relnamespace = 'public'::regnamespace and relowner = 'view_builder'::regrole and relkind in ('r', 'p', 'v', 'm')
    loop
        execute format('grant select on public.%I to console', made);
    end loop;
end $$;

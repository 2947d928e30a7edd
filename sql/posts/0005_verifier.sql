-- `view-builder verify` compares the views with what they are made from, as a role that can read both and write nothing: the posts,
-- and the views with their positions, those that are there and those that view-builder will make.
grant select on public.posts to view_verifier;
alter default privileges for role view_builder in schema public grant select on tables to view_verifier;

do $$
declare
    made name;
begin
    for made in
        select relname from pg_class
        where relnamespace = 'public'::regnamespace and relowner = 'view_builder'::regrole and relkind in ('r', 'p', 'v', 'm')
    loop
        execute format('grant select on public.%I to view_verifier', made);
    end loop;
end $$;

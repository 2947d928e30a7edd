-- `view-builder rebuild` fills a new generation of a view in a schema of its own, and drops that schema when it has swapped.
do $$
begin
    execute format('grant create on database %I to view_builder', current_database());
end $$;

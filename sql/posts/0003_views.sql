-- The views beside the posts belong to view-builder, which makes, fills and swaps them; post-api may only read them,
-- also those that do not exist yet.
grant create, usage on schema public to view_builder;
alter default privileges for role view_builder in schema public grant select on tables to post_api;

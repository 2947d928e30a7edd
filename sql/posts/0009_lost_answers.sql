-- Where the answer to a change is lost, the program looks whether the change's event is there, and what it says.
grant select (id, payload) on public.outbox to post_api;

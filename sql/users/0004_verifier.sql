-- `view-builder verify` compares user_view with users, as a role that can read both and write nothing.
grant select on public.users to view_verifier;

-- Everything about the tables of the schema $1 that a statement can set, as (of_table, kind, name, value). A kind says what statement; see
-- features.rs. What is as Postgres makes it by default has no row.
with own_table as (
    select c.oid, c.relname as name, c.reltoastrelid, c.reloptions, c.relreplident, c.relrowsecurity, c.relforcerowsecurity,
        c.relpersistence, c.reltablespace
    from pg_class as c
    where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
),
own_index as (
    select own_table.name as of_table, c.oid, c.relname as name, c.reltablespace, i.indisclustered, i.indisreplident, i.indrelid,
        exists (select from pg_constraint where conindid = c.oid and contype in ('p', 'u', 'x')) as is_of_constraint
    from own_table join pg_index as i on i.indrelid = own_table.oid join pg_class as c on c.oid = i.indexrelid
),
own_column as (
    select own_table.name as of_table, a.*
    from own_table join pg_attribute as a on a.attrelid = own_table.oid and a.attnum > 0 and not a.attisdropped
),
own_constraint as (
    select own_table.name as of_table, c.* from own_table join pg_constraint as c on c.conrelid = own_table.oid
),
own_trigger as (
    select own_table.name as of_table, t.* from own_table join pg_trigger as t on t.tgrelid = own_table.oid and not t.tgisinternal
),
feature(of_table, kind, name, value) as (
    select name, 'table', '', '' from own_table
    union all
    select name, 'unlogged', '', '' from own_table where relpersistence = 'u'
    union all
    select own_table.name, 'tablespace', '', spcname from own_table join pg_tablespace as t on t.oid = reltablespace
    union all
    select of_table, 'column', attname, format_type(atttypid, atttypmod) from own_column
    union all
    select of_table, 'identity', attname, attidentity::text from own_column where attidentity <> ''
    union all
    select of_table, 'not null', attname, '' from own_column
        where attnotnull and current_setting('server_version_num')::integer < 180000
    union all
    select of_table, 'default', attname, pg_get_expr(adbin, adrelid)
        from own_column join pg_attrdef on adrelid = attrelid and adnum = attnum
        where attgenerated = ''
    union all
    select of_table, 'statistics', attname, attstattarget::text from own_column where coalesce(attstattarget, -1) >= 0
    union all
    select of_table, 'storage', attname,
            case attstorage when 'p' then 'plain' when 'e' then 'external' when 'x' then 'extended' when 'm' then 'main' end
        from own_column join pg_type as t on t.oid = atttypid where attstorage <> typstorage
    union all
    select of_table, 'compression', attname, case attcompression when 'p' then 'pglz' when 'l' then 'lz4' end
        from own_column where attcompression <> ''
    union all
    select of_table, 'column option', attname, array_to_string(attoptions, ', ') from own_column where attoptions is not null
    union all
    select of_table, 'index', name, pg_get_indexdef(oid) from own_index where not is_of_constraint
    union all
    select of_table, 'index tablespace', own_index.name, spcname from own_index join pg_tablespace as t on t.oid = reltablespace
    union all
    select of_table, 'index statistics', name,
            string_agg(format('alter column %s set statistics %s', attnum, attstattarget), ', ' order by attnum)
        from own_index join pg_attribute on attrelid = own_index.oid and coalesce(attstattarget, -1) >= 0
        group by of_table, name
    union all
    select of_table, 'cluster', '', quote_ident(name) from own_index where indisclustered
    union all
    select of_table, 'constraint', conname, pg_get_constraintdef(oid) from own_constraint where contype in ('c', 'n', 'p', 'u', 'x')
    union all
    select of_table, 'foreign key', conname, pg_get_constraintdef(oid) from own_constraint where contype = 'f'
    union all
    select of_table, 'trigger', tgname, pg_get_triggerdef(oid) from own_trigger
    union all
    select of_table, 'trigger state', tgname,
            case tgenabled when 'D' then 'disable' when 'A' then 'enable always' when 'R' then 'enable replica' end
        from own_trigger where tgenabled <> 'O'
    union all
    select own_table.name, 'extended statistics', stxname, pg_get_statisticsobjdef(s.oid)
        from own_table join pg_statistic_ext as s on stxrelid = own_table.oid
    union all
    select name, 'option', split_part(option, '=', 1), substr(option, strpos(option, '=') + 1)
        from own_table cross join unnest(reloptions) as option
    union all
    select name, 'option', 'toast.' || split_part(option, '=', 1), substr(option, strpos(option, '=') + 1)
        from own_table join pg_class as toast on toast.oid = own_table.reltoastrelid cross join unnest(toast.reloptions) as option
    union all
    select own_table.name, 'replica identity', '',
            case relreplident when 'n' then 'nothing' when 'f' then 'full' else 'using index ' || quote_ident(own_index.name) end
        from own_table left join own_index on own_index.indrelid = own_table.oid and own_index.indisreplident
        where relreplident in ('n', 'f') or relreplident = 'i' and own_index.name is not null
    union all
    select name, 'row security', 'enable', '' from own_table where relrowsecurity
    union all
    select name, 'row security', 'force', '' from own_table where relforcerowsecurity
    union all
    select own_table.name, 'policy', polname,
            format('as %s for %s to %s', case when polpermissive then 'permissive' else 'restrictive' end,
                case polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
                (select string_agg(case role when 0 then 'public' else quote_ident(pg_get_userbyid(role)) end, ', ' order by role)
                 from unnest(polroles) as role))
            || coalesce(' using (' || pg_get_expr(polqual, polrelid) || ')', '')
            || coalesce(' with check (' || pg_get_expr(polwithcheck, polrelid) || ')', '')
        from own_table join pg_policy on polrelid = own_table.oid
    union all
    select name, 'comment', '', obj_description(oid, 'pg_class') from own_table
    union all
    select of_table, 'column comment', attname, col_description(attrelid, attnum) from own_column
    union all
    select of_table, 'index comment', name, obj_description(oid, 'pg_class') from own_index
    union all
    select of_table, 'constraint comment', conname, obj_description(oid, 'pg_constraint') from own_constraint
    union all
    select of_table, 'trigger comment', tgname, obj_description(oid, 'pg_trigger') from own_trigger
)
select of_table::text as of_table, kind, name::text as name, replace(value, $1 || '.', 'public.') as value
from feature where value is not null

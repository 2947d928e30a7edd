//! What hangs on a live view's tables that its own SQL does not make: it goes over to the new generation, or the rebuild is refused.
//!
//! A text of the view's `table.sql` that names an index, a constraint, a trigger or a column makes it the view's own: where the new SQL does
//! not have it any more, it goes with the old generation.

use tokio_postgres::{Client, Error};

/// What the swap makes again, as statements. Indexes and constraints are made on the new generation beforehand, as they take time.
#[derive(Debug)]
pub(super) struct Carried {
    /// What the generation does not have yet of them.
    pub(super) before: Vec<String>,
    pub(super) after: Vec<String>,
    /// Views on the tables: owner and statement, in the order of their dependence.
    pub(super) views: Vec<(String, String)>,
}

/// Tables of `public` that have a successor in the generation, as `(oid, name, oid of the successor)`.
const PAIRS: &str = "
    select old.oid as old, old.relname as name, new.oid as new
    from pg_class as old
    join pg_class as new on new.relname = old.relname and new.relnamespace = $1::text::regnamespace and new.relkind in ('r', 'p')
    where old.relnamespace = 'public'::regnamespace and old.relkind in ('r', 'p')";

/// What cannot be carried over, each with its name.
pub(super) async fn obstacles(client: &Client, generation: &str, own_sql: &str) -> Result<Vec<String>, Error> {
    let sql = format!(
        "with pair as ({PAIRS})
         select format('table %s in publication %I', name, pubname) from pair
            join pg_publication_rel on prrelid = old join pg_publication as p on p.oid = prpubid
         union all
         select format('policy %I on %s', polname, name) from pair join pg_policy on polrelid = old
         union all
         select format('row-level security of %s', name) from pair join pg_class as c on c.oid = old where c.relrowsecurity
         union all
         select format('foreign key %I of %s', conname, conrelid::regclass) from pair
            join pg_constraint on contype = 'f' and (confrelid = old or conrelid = old)
         union all
         select format('rule %I on %s', rulename, name) from pair join pg_rewrite on ev_class = old and rulename <> '_RETURN'
         union all
         select format('table %s inherits from or is inherited by %s', inhrelid::regclass, inhparent::regclass) from pair
            join pg_inherits on inhrelid = old or inhparent = old
         union all
         select format('extended statistics %I on %s', stxname, name) from pair join pg_statistic_ext on stxrelid = old
         union all
         select format('column %I of %s, which its table.sql does not make', attname, name) from pair
            join pg_attribute as a on attrelid = old and attnum > 0 and not attisdropped
            where strpos($2, attname) = 0
                and not exists (select from pg_attribute as b where b.attrelid = new and b.attname = a.attname and not b.attisdropped)
         union all
         select distinct format('materialized view %s', c.oid::regclass) from pair
            join pg_depend as d on d.refobjid = old and d.refclassid = 'pg_class'::regclass and d.classid = 'pg_rewrite'::regclass
            join pg_rewrite as r on r.oid = d.objid join pg_class as c on c.oid = r.ev_class and c.relkind = 'm'
         union all
         select distinct format('view %s, whose owner %s this session cannot become', c.oid::regclass, c.relowner::regrole) from pair
            join pg_depend as d on d.refobjid = old and d.refclassid = 'pg_class'::regclass and d.classid = 'pg_rewrite'::regclass
            join pg_rewrite as r on r.oid = d.objid join pg_class as c on c.oid = r.ev_class and c.relkind = 'v'
            where not pg_has_role(session_user, c.relowner, 'MEMBER')"
    );
    let rows = client.query(&sql, &[&generation, &own_sql]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Everything that is to be carried over, as of now.
pub(super) async fn collect(client: &Client, generation: &str, own_sql: &str) -> Result<Carried, Error> {
    // Names are written out in full where the search path does not have them, so the definitions hold wherever they are run.
    client.batch_execute("set search_path = pg_catalog").await?;
    let collected = collect_qualified(client, generation, own_sql).await;
    client
        .batch_execute(&format!("set search_path = \"{generation}\", public, pg_temp"))
        .await?;
    collected
}

async fn collect_qualified(client: &Client, generation: &str, own_sql: &str) -> Result<Carried, Error> {
    let texts = |sql: String| async move {
        let rows = client.query(&sql, &[&generation, &own_sql]).await?;
        Ok::<Vec<String>, Error>(rows.iter().map(|row| row.get(0)).collect())
    };
    let indexes = texts(format!(
        "with pair as ({PAIRS})
         select regexp_replace(pg_get_indexdef(i.indexrelid), ' ON (ONLY )?public\\.', format(' ON \\1%I.', $1::text))
         from pair join pg_index as i on i.indrelid = old join pg_class as c on c.oid = i.indexrelid
         where strpos($2, c.relname) = 0
            and not exists (select from pg_constraint where conindid = i.indexrelid)
            and not exists (select from pg_class as known where known.relnamespace = $1::text::regnamespace and known.relname = c.relname)
         order by c.relname"
    ));
    let constraints = texts(format!(
        "with pair as ({PAIRS})
         select format('alter table %I.%I add constraint %I %s', $1::text, name, conname, pg_get_constraintdef(c.oid))
         from pair join pg_constraint as c on conrelid = old and contype in ('c', 'u', 'x')
         where strpos($2, conname) = 0
            and not exists (select from pg_constraint as known where known.conrelid = new and known.conname = c.conname)
         order by conname"
    ));
    let mut before = indexes.await?;
    before.extend(constraints.await?);
    let triggers = texts(format!(
        "with pair as ({PAIRS})
         select pg_get_triggerdef(t.oid) || case tgenabled
                when 'D' then format('; alter table public.%I disable trigger %I', name, tgname) else '' end
         from pair join pg_trigger as t on tgrelid = old and not tgisinternal
         where strpos($2, tgname) = 0
            and not exists (select from pg_trigger as known where known.tgrelid = new and known.tgname = t.tgname)
         order by tgname"
    ));
    let options = texts(format!(
        "with pair as ({PAIRS})
         select format('alter table public.%I set (%s)', name, option)
         from pair join pg_class as c on c.oid = old cross join unnest(c.reloptions) as option
         where $2::text is not null and not exists (
            select from pg_class as n cross join unnest(n.reloptions) as known
            where n.oid = new and split_part(known, '=', 1) = split_part(option, '=', 1))"
    ));
    // A new view has no predecessor to take its grants from: then the defaults of the schema public count.
    let grants = texts(format!(
        "with pair as ({PAIRS}), acl as (
            select name, null::name as attname, relacl as items from pair join pg_class as c on c.oid = old where relacl is not null
            union all
            select name, attname, attacl from pair join pg_attribute on attrelid = old and attacl is not null and not attisdropped
            union all
            select n.relname, null, defaclacl from pg_class as n
                join pg_default_acl on defaclrole = n.relowner and defaclnamespace = 'public'::regnamespace and defaclobjtype = 'r'
            where n.relnamespace = $1::text::regnamespace and n.relkind in ('r', 'p')
                and not exists (select from pair where pair.new = n.oid)
         )
         select format('grant %s%s on public.%I to %s%s', privilege_type, '(' || quote_ident(attname) || ')', name,
            case grantee when 0 then 'public' else grantee::regrole::text end,
            case when is_grantable then ' with grant option' else '' end)
         from acl cross join aclexplode(items)
         where $2::text is not null and grantee <> (select relowner from pg_class where oid = 'public.view_positions'::regclass)"
    ));
    let mut after = triggers.await?;
    after.extend(options.await?);
    after.extend(grants.await?);
    let rows = client
        .query(
            &format!(
                "with pair as ({PAIRS})
                 select distinct on (c.oid) pg_get_userbyid(c.relowner)::text,
                    format('create or replace view %s%s as %s', c.oid::regclass,
                        ' with (' || array_to_string(c.reloptions, ', ') || ')', pg_get_viewdef(c.oid))
                 from pair
                 join pg_depend as d on d.refobjid = old and d.refclassid = 'pg_class'::regclass and d.classid = 'pg_rewrite'::regclass
                 join pg_rewrite as r on r.oid = d.objid
                 join pg_class as c on c.oid = r.ev_class and c.relkind = 'v'
                 where not exists (
                    select from pg_class as known
                    where known.relnamespace = $1::text::regnamespace and known.relname = c.relname and c.relnamespace = 'public'::regnamespace)
                 order by c.oid"
            ),
            &[&generation],
        )
        .await?;
    Ok(Carried {
        before,
        after,
        views: rows.iter().map(|row| (row.get(0), row.get(1))).collect(),
    })
}

//! What people have added to a live view's tables, beside what the view's own SQL makes. Either it is carried over to the new generation, or the
//! rebuild is refused.
//!
//! [`features`](super::features) finds what somebody has set on the tables themselves. Grants are carried over as they are. Plain views that
//! depend on the tables are made again. Anything else that depends on them is an obstacle.

use tokio_postgres::{Client, Error};

use super::feature_statement::{statement, takes_time};
use super::features::{Change, Features, Kind};
use super::trouble::Trouble;
use crate::postgres::refusal;
use crate::process::failure::Failure;

/// The statements that carry over what people have added.
#[derive(Debug)]
pub(super) struct Carried {
    /// Makes what the generation does not have yet and what takes time, such as an index. It runs on the generation, before the swap.
    pub(super) before_swap: Vec<String>,
    /// Makes what is quick. It runs in the swap, when the tables are in `public`.
    pub(super) in_swap: Vec<String>,
    /// The SQL views on the tables, in the order in which they were made.
    pub(super) views: Vec<OthersView>,
    /// What people have set and the new generation does not keep, as texts for the log.
    pub(super) not_kept: Vec<String>,
}

/// A plain SQL view that is not made by the view's own SQL.
#[derive(Debug)]
pub(super) struct OthersView {
    pub(super) owner: String,
    /// The name, quoted and with its schema where a statement needs that.
    pub(super) name: String,
    pub(super) statement: String,
}

/// Tables of `public` that have a successor in the generation, as `(oid, name, oid of the successor)`.
const PAIRS: &str = "
    select old.oid as old, old.relname as name, new.oid as new
    from pg_class as old
    join pg_class as new on new.relname = old.relname and new.relnamespace = $1::text::regnamespace and new.relkind in ('r', 'p')
    where old.relnamespace = 'public'::regnamespace and old.relkind in ('r', 'p')";

/// Reads the features of the tables as the view's `table.sql` alone makes them. It makes them in a transaction that is rolled back, so the client
/// must not be in one.
///
/// # Errors
/// [`Trouble::Final`]: Postgres refuses the SQL.
pub(super) async fn read_own_features(client: &Client, view: &str, table_sql: &str) -> Result<Features, Trouble> {
    let schema = format!("{view}_own");
    let features = async {
        client
            .batch_execute(&format!(
                "begin; create schema \"{schema}\"; set local search_path = \"{schema}\", public, pg_temp"
            ))
            .await?;
        client.batch_execute(table_sql).await?;
        client.batch_execute("set local search_path = pg_catalog").await?;
        Features::read(client, &schema).await
    };
    let features = features.await;
    client.batch_execute("rollback").await?;
    features.map_err(|err| {
        if !refusal::is_wrong_sql(&err) {
            return err.into();
        }
        let reason = format!(
            "the SQL that made the live view {view} does not run any more, so that nobody can tell what people have added to it: {}",
            refusal::line(&err)
        );
        Failure::Setting(reason).into()
    })
}

/// Finds what cannot be carried over. Each obstacle is a text for people.
pub(super) async fn find_obstacles(client: &Client, generation: &str, own: &Features) -> Result<Vec<String>, Error> {
    let (live, made) = read_live_and_made(client, generation).await?;
    let foreign = live.foreign_tables(own, &made);
    let mut obstacles: Vec<String> = foreign
        .iter()
        .map(|table| format!("table {table}, which is none of this view's"))
        .collect();
    for (feature, change) in live.changed_from(own, &made) {
        if foreign.contains(&feature.table) {
            continue;
        }
        let name = feature.for_people();
        match (feature.kind, change) {
            (Kind::Column | Kind::Identity | Kind::ForeignKey, Change::Set(_) | Change::Overruled) => {
                obstacles.push(format!("{name}, as its table.sql does not make it"));
            }
            (Kind::Unlogged, Change::Set(_)) => obstacles.push(format!("{}, which is unlogged", feature.table)),
            _ => {}
        }
    }
    let sql = format!(
        "with pair as ({PAIRS})
         select format('table %s in publication %I', name, pubname) from pair
            join pg_publication_rel on prrelid = old join pg_publication as p on p.oid = prpubid
         union all
         select format('foreign key %I of %s', conname, conrelid::regclass) from pair
            join pg_constraint on contype = 'f' and confrelid = old and conrelid not in (select old from pair)
         union all
         select format('rule %I on %s', rulename, name) from pair join pg_rewrite on ev_class = old and rulename <> '_RETURN'
         union all
         select format('table %s inherits from or is inherited by %s', inhrelid::regclass, inhparent::regclass) from pair
            join pg_inherits on inhrelid = old or inhparent = old
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
    let rows = client.query(&sql, &[&generation]).await?;
    obstacles.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    Ok(obstacles)
}

/// Collects what has to be carried over as of now.
pub(super) async fn collect(client: &Client, generation: &str, own: &Features) -> Result<Carried, Error> {
    let (live, made) = read_live_and_made(client, generation).await?;
    let (mut before_swap, mut in_swap, mut not_kept) = (Vec::new(), Vec::new(), Vec::new());
    for (feature, change) in &live.changed_from(own, &made) {
        match change {
            Change::Overruled => not_kept.push(format!("{}: the new SQL says something else", feature.for_people())),
            Change::Unset if feature.kind == Kind::Index => {
                not_kept.push(format!("{}, which was dropped, is made again", feature.for_people()));
            }
            _ if takes_time(feature.kind) => before_swap.extend(statement(feature, change, generation)),
            _ => in_swap.extend(statement(feature, change, "public")),
        }
    }
    // With this search path Postgres writes out all names in full, so the definitions mean the same in any session.
    client.batch_execute("set search_path = pg_catalog").await?;
    let grants_and_views = load_grants_and_views(client, generation).await;
    // Where both fail, the first error says why the second one failed too.
    let path_is_back = client.batch_execute(&search_path_statement(generation)).await;
    let (grants, views) = grants_and_views?;
    path_is_back?;
    in_swap.extend(grants);
    Ok(Carried {
        before_swap,
        in_swap,
        views,
        not_kept,
    })
}

/// The features of the live tables and those of the new generation's tables.
async fn read_live_and_made(client: &Client, generation: &str) -> Result<(Features, Features), Error> {
    client.batch_execute("set search_path = pg_catalog").await?;
    let features = async {
        let live = Features::read(client, "public").await?;
        Ok::<_, Error>((live, Features::read(client, generation).await?))
    };
    let features = features.await;
    let path_is_back = client.batch_execute(&search_path_statement(generation)).await;
    let features = features?;
    path_is_back?;
    Ok(features)
}

/// Sets the search path that a session of a rebuild has.
fn search_path_statement(generation: &str) -> String {
    format!("set search_path = \"{generation}\", public, pg_temp")
}

/// The statements that give the new tables exactly the privileges of the live ones; and the SQL views on the live tables.
async fn load_grants_and_views(client: &Client, generation: &str) -> Result<(Vec<String>, Vec<OthersView>), Error> {
    let query_texts = |sql: String| async move {
        let rows = client.query(&sql, &[&generation]).await?;
        Ok::<Vec<String>, Error>(rows.iter().map(|row| row.get(0)).collect())
    };
    let revokes = query_texts(format!(
        "with pair as ({PAIRS})
         select distinct format('revoke all on public.%I from %s', name, case grantee when 0 then 'public' else grantee::regrole::text end)
         from pair join pg_class as c on c.oid = new cross join aclexplode(relacl)
         where grantee <> relowner"
    ));
    let mut grants = revokes.await?;
    // A new table replaces no live one that it could take its grants from. So it gets the default privileges of the schema `public`.
    let granted = query_texts(format!(
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
         where grantee <> (select relowner from pg_class where oid = 'public.view_positions'::regclass)"
    ));
    grants.extend(granted.await?);
    let rows = client
        .query(
            &format!(
                "with pair as ({PAIRS})
                 select distinct on (c.oid) pg_get_userbyid(c.relowner)::text as owner, c.oid::regclass::text as name,
                    format('create or replace view %s%s as %s', c.oid::regclass,
                        ' with (' || array_to_string(c.reloptions, ', ') || ')', pg_get_viewdef(c.oid)) as statement
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
    let views = rows.iter().map(|row| OthersView {
        owner: row.get("owner"),
        name: row.get("name"),
        statement: row.get("statement"),
    });
    Ok((grants, views.collect()))
}

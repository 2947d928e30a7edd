//! What the audit keeps as the state before and after a change.

use serde_json::{Value, json};

use crate::app::App;

/// Which state a change is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// The dead letters with these ids; all letters if there is none.
    Letters(Vec<i64>),
    /// A view: its SQL, its pause, a rebuild under way.
    View(String),
    /// The positions of a topic.
    Positions(String),
    /// The relay of an outbox: what it says of itself.
    Relay(String),
}

const LETTERS: &str = "
    select jsonb_build_object(
        'waiting', count(*) filter (where discarded_at is null),
        'discarded', count(*) filter (where discarded_at is not null),
        'retries', coalesce(sum(retries), 0)) as state
    from (select id, discarded_at, retries from only public.view_dead_letters
          union all select id, discarded_at, retries from public.view_former_dead_letters) as letter
    where cardinality($1::bigint[]) = 0 or id = any ($1)";

const VIEW: &str = "
    select jsonb_build_object(
        'view', $1::text,
        'sql_md5', (select md5(table_sql || apply_sql) from public.view_definitions where view = $1),
        'paused', (select reason from public.view_pauses where view = $1),
        'rebuild', (select generation from public.view_rebuilds where view = $1)) as state";

const POSITIONS: &str = "
    select coalesce(jsonb_object_agg(topic || '/' || partition, next_offset), '{}') as state
    from public.view_positions where topic = $1";

impl Probe {
    /// The state now. A state that cannot be read says why.
    pub(super) async fn read(&self, app: &App) -> Value {
        let views = app.databases.views();
        let rows = match self {
            Self::Letters(ids) => views.query(LETTERS, &[ids]).await,
            Self::View(view) => views.query(VIEW, &[view]).await,
            Self::Positions(topic) => views.query(POSITIONS, &[topic]).await,
            Self::Relay(outbox) => return relay(app, outbox),
        };
        match rows {
            Ok(rows) => rows.first().map_or(Value::Null, |row| row.get("state")),
            Err(err) => json!({"unknown": err.to_string()}),
        }
    }
}

fn relay(app: &App, outbox: &str) -> Value {
    let snapshot = app.store.snapshot();
    let relay = snapshot.outbox(outbox).and_then(|outbox| outbox.relay.value.as_ref());
    match relay {
        Some(relay) => json!({
            "ready": relay.is_ready,
            "paused": relay.is_paused,
            "reasons": relay.reasons,
        }),
        None => json!({"unknown": "the relay has not answered"}),
    }
}

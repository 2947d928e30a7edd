//! What the views must hold, computed anew by plain SQL from the latest event of each key.

use std::collections::BTreeMap;

use serde_json::Value;

use super::TestDatabase;

/// Each view's name, and the query that computes it from the tables `reference_user` and `reference_post`. Its columns are the view's.
const VIEWS: [(&str, &str); 3] = [
    ("post_stats", include_str!("../../../../sql/reference/post_stats.sql")),
    (
        "user_activity",
        include_str!("../../../../sql/reference/user_activity.sql"),
    ),
    (
        "department_performance",
        include_str!("../../../../sql/reference/department_performance.sql"),
    ),
];

/// The latest event of each topic and key: version, and the entity unless it was deleted.
#[derive(Default)]
pub struct Reference(BTreeMap<(&'static str, i64), (i64, Option<Value>)>);

impl Reference {
    /// Takes an event's text as a builder gets it, in any order.
    pub fn take(&mut self, value: &str) {
        let event: Value = serde_json::from_str(value).unwrap();
        let (topic, entity) = if event["userId"].is_null() {
            ("post", "post")
        } else {
            ("user", "user")
        };
        let key = event[format!("{topic}Id")].as_i64().unwrap();
        let version = event["version"].as_i64().unwrap();
        let latest = self.0.entry((topic, key)).or_insert((0, None));
        if latest.0 < version {
            let entity = event[entity].clone();
            *latest = (version, (!entity.is_null()).then_some(entity));
        }
    }

    /// Fails where a view differs from its computation; the rows compared, so that a test can say that there were some.
    pub async fn assert_views_are_right(&self, database: &TestDatabase, when: &str) -> usize {
        self.write(database).await;
        let mut rows = 0;
        for (view, query) in VIEWS {
            let statement = database.sql.prepare(query).await.unwrap();
            let columns: Vec<&str> = statement.columns().iter().map(|column| column.name()).collect();
            let columns = columns.join(", ");
            let difference = database
                .rows(&format!(
                    "with computed as ({query}), kept as (select {columns} from {view})
                     (select 'missing', missing::text from (table computed except all table kept) as missing)
                     union all
                     (select 'wrong', wrong::text from (table kept except all table computed) as wrong)
                     limit 20"
                ))
                .await;
            assert!(difference.is_empty(), "{view}, {when}: {difference:?}");
            rows += database.rows(&format!("select 1 from {view}")).await.len();
        }
        rows
    }

    async fn write(&self, database: &TestDatabase) {
        let entities = |wanted: &str| {
            let all = self.0.iter().filter(|((topic, _), _)| *topic == wanted);
            let rows = all.filter_map(|(_, (version, entity))| {
                let mut entity = entity.clone()?;
                entity["version"] = (*version).into();
                Some(entity)
            });
            Value::Array(rows.collect())
        };
        database
            .sql
            .batch_execute(
                "create temp table if not exists reference_user (
                    id bigint, version bigint, department varchar, status varchar, updated_at timestamp);
                 create temp table if not exists reference_post (
                    id bigint, version bigint, author_id bigint, created_at timestamp, updated_at timestamp);
                 truncate reference_user, reference_post",
            )
            .await
            .unwrap();
        let users = "insert into reference_user
            select id, version, department, status, \"updatedAt\"
            from jsonb_to_recordset($1::text::jsonb) as u(
                id bigint, version bigint, department varchar, status varchar, \"updatedAt\" timestamp)";
        let posts = "insert into reference_post
            select id, version, \"authorId\", \"createdAt\", \"updatedAt\"
            from jsonb_to_recordset($1::text::jsonb) as p(
                id bigint, version bigint, \"authorId\" bigint, \"createdAt\" timestamp, \"updatedAt\" timestamp)";
        for (statement, topic) in [(users, "user"), (posts, "post")] {
            let json = entities(topic).to_string();
            database.sql.execute(statement, &[&json]).await.unwrap();
        }
    }
}

//! `view-builder verify` compares derived tables with their recomputation, and finds an edit by hand in each table of a shipped view.

use view_builder::commands::verify::compare::{Difference, compare};
use view_builder::commands::verify::file::{Comparison, Origin, parse};
use view_builder::contract::batch::Batch;

use super::support::comparison::{NothingOnTheWay, WAIT, World, shipped_view, side, without_grants};
use super::support::{assert_applied, post, posts_place, shipped_views};

#[tokio::test]
async fn a_derived_table_that_was_kept_is_equal_to_its_recomputation() {
    let world = World::equal().await;
    let outcome = world.compare_department_stats().await;
    assert_eq!(outcome.differences, []);
    assert_eq!(outcome.buckets.len(), 4, "one for each department");
}

#[tokio::test]
async fn a_derived_table_that_was_edited_differs_until_it_is_counted_anew() {
    let world = World::equal().await;
    world
        .edit_views(
            "update department_stats set active_users = 7 where department is null;
             delete from department_stats where department = '기획팀'",
        )
        .await;
    let outcome = world.compare_department_stats().await;
    let mut kinds: Vec<_> = outcome.differences.iter().map(Difference::kind).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["different", "missing"]);
    world.edit_views("select refresh_department_stats()").await;
    assert_eq!(world.compare_department_stats().await.differences, []);
}

/// A table of the shipped activity/verify.sql, and an edit of it by hand.
struct Edited {
    table: &'static str,
    edit: &'static str,
}

/// In the order of the file.
const ACTIVITY: [Edited; 5] = [
    Edited {
        table: "activity",
        edit: "update activity set active = false where user_id = 2",
    },
    Edited {
        table: "activity_post",
        edit: "update activity_post set author_id = 3 where post_id = 11",
    },
    Edited {
        table: "post_stats",
        edit: "update activity set last_post_id = 11 where user_id = 1",
    },
    Edited {
        table: "user_activity",
        edit: "update activity set posts = posts + 1 where user_id = 1",
    },
    Edited {
        table: "department_performance",
        edit: "update department_performance set authors = 0 where department = '개발팀'",
    },
];

/// Posts and their authors. Nobody knows the author of the last one.
const POSTS: [(i64, i64); 4] = [(11, 1), (12, 1), (13, 2), (14, 99)];

/// Five users and [`POSTS`], in the source and in the views.
async fn world_with_posts() -> World {
    let world = World::equal().await;
    let table = without_grants(include_str!("../../../sql/posts/0001_posts.sql"));
    world.change_source(table).await;
    let written = POSTS.map(|(id, author)| format!("({id}, {author})")).join(", ");
    world
        .change_source(&format!(
            "insert into posts (id, title, content, author_id, created_at, updated_at) overriding system value
             select id, 't', 'c', author_id, '2025-01-02'::timestamp + id * interval '1 s', '2025-01-02'::timestamp + id * interval '2 s'
             from (values {written}) as written(id, author_id)"
        ))
        .await;
    let mut builder = world.views.builder(&shipped_views()).await;
    builder.claim_places(&[posts_place(0)]).await;
    let posts = POSTS.map(|(id, author)| post(id, 1, author, id.unsigned_abs(), 2 * id.unsigned_abs()));
    let part = builder.part(&posts_place(0), &posts);
    assert_applied(&builder.apply_batch(Batch { parts: vec![part] }).await);
    world
}

#[tokio::test]
async fn each_table_of_activity_is_equal_until_it_is_edited_by_hand() {
    let world = world_with_posts().await;
    let view = shipped_view("activity");
    let comparisons = parse(view.verify.as_ref().unwrap(), &view.topics).unwrap();
    let tables: Vec<&str> = comparisons.iter().map(|comparison| comparison.table.as_str()).collect();
    assert_eq!(tables, ACTIVITY.map(|edited| edited.table));
    for (comparison, Edited { table, edit }) in comparisons.iter().zip(ACTIVITY) {
        assert_eq!(count_differences(&world, comparison).await, 0, "{table}");
        // With the builder's own setting, so that nothing is counted anew.
        world
            .edit_views(&format!("begin; set local view_builder.counts = 'on'; {edit}; commit"))
            .await;
        assert_eq!(count_differences(&world, comparison).await, 1, "{table} after `{edit}`");
        undo_edits(&world).await;
    }
}

async fn count_differences(world: &World, comparison: &Comparison) -> usize {
    let view = shipped_view("activity");
    let file = view.verify.as_ref().unwrap();
    let source = match comparison.origin {
        Origin::Topic(_) => &world.users,
        Origin::Views => &world.views,
    };
    let source = side(source, file, &comparison.source).await.unwrap();
    let shown = side(&world.views, file, &comparison.view).await.unwrap();
    let outcome = compare(&source, &shown, Some(&mut NothingOnTheWay), WAIT, false)
        .await
        .unwrap();
    assert!(outcome.rows_source > 0, "{} has rows to compare", comparison.table);
    outcome.differences.len()
}

/// An edit without the builder's setting has all that is derived counted anew.
async fn undo_edits(world: &World) {
    world
        .edit_views("update activity_post set author_id = 1 where post_id = 11")
        .await;
    world
        .edit_views("update activity set active = true where user_id = 2")
        .await;
}

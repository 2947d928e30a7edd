//! Random lives of users and posts, and views that are held against what these say.

use super::reference::Reference;
use super::{Builder, TestDatabase, deletion, place, post, post_deletion, posts_place, second, shipped_views, user};
use view_builder::contract::batch::Batch;

/// A small generator of numbers, the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    pub fn id(&mut self, ids: u64) -> i64 {
        1 + i64::try_from(self.roll(ids)).unwrap()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            let other = usize::try_from(self.roll(at as u64 + 1)).unwrap();
            items.swap(at, other);
        }
    }
}

const DEPARTMENTS: [Option<&str>; 5] = [None, Some(""), Some("개발팀"), Some("Z"), Some("a")];

/// An event of a user, at a second of its own, so that `last_active` has something to find.
fn random_user(dice: &mut Dice, id: i64, version: i64) -> String {
    if dice.roll(5) == 0 {
        return deletion(id, version);
    }
    let department = DEPARTMENTS[usize::try_from(dice.roll(5)).unwrap()];
    let status = ["ACTIVE", "INACTIVE"][usize::try_from(dice.roll(2)).unwrap()];
    let moment = second(dice.roll(500));
    user(id, version, "n", department, status).replace(
        "\"updatedAt\":\"2025-01-01T00:00:00\"",
        &format!("\"updatedAt\":\"{moment}\""),
    )
}

/// Few seconds for many posts: some are created at the same time.
fn random_post(dice: &mut Dice, id: i64, version: i64, authors: u64) -> String {
    if dice.roll(5) == 0 {
        post_deletion(id, version)
    } else {
        post(id, version, dice.id(authors), dice.roll(20), dice.roll(500))
    }
}

/// The lives of `users` users and `posts` posts with ids from `first`, whose authors are `authors` from 1.
pub fn lives(dice: &mut Dice, first: i64, users: i64, posts: i64, authors: u64) -> (Vec<String>, Vec<String>) {
    let mut of_users = Vec::new();
    for id in first..first + users {
        for version in 1..=dice.id(5) {
            of_users.push(random_user(dice, id, version));
        }
    }
    let mut of_posts = Vec::new();
    for id in first..first + posts {
        for version in 1..=dice.id(5) {
            of_posts.push(random_post(dice, id, version, authors));
        }
    }
    (of_users, of_posts)
}

pub async fn builder(database: &TestDatabase, partition: i32) -> Builder {
    let mut builder = database.builder(&shipped_views()).await;
    builder.claim_places(&[posts_place(partition), place(partition)]).await;
    builder
}

/// Applies both topics' events as one batch.
pub async fn apply(builder: &mut Builder, partition: i32, users: &[String], posts: &[String]) {
    let mut parts = vec![
        builder.part(&posts_place(partition), posts),
        builder.part(&place(partition), users),
    ];
    parts.retain(|part| !part.events.is_empty());
    let applied = builder.apply_batch(Batch { parts }).await;
    super::assert_applied(&applied);
}

/// A database, its builder and what they should hold.
pub struct Views {
    pub database: TestDatabase,
    pub builder: Builder,
    pub reference: Reference,
}

impl Views {
    pub async fn new() -> Self {
        let database = TestDatabase::create().await;
        let builder = builder(&database, 0).await;
        Self {
            database,
            builder,
            reference: Reference::default(),
        }
    }

    pub async fn put(&mut self, users: &[String], posts: &[String]) -> usize {
        for value in users.iter().chain(posts) {
            self.reference.take(value);
        }
        apply(&mut self.builder, 0, users, posts).await;
        self.are_right(&format!("after {users:?} {posts:?}")).await
    }

    pub async fn are_right(&self, when: &str) -> usize {
        self.reference.assert_views_are_right(&self.database, when).await
    }

    pub async fn rows(&self, query: &str) -> Vec<Vec<String>> {
        self.database.rows(query).await
    }
}

//! The builder and the shipped views on real PostgreSQL, without Kafka.

#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking, as the test does")]

mod department_stats;
mod positions;
mod post_views;
mod post_views_at_once;
mod secured_postgres;
mod support;
mod user_view;
mod verify;
mod view_cost;

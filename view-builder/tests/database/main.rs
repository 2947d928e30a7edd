//! The builder and the shipped views on real PostgreSQL, without Kafka.

#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking, as the test does")]

mod catalog;
mod department_stats;
mod letters;
mod positions;
mod post_views;
mod post_views_at_once;
mod secured_postgres;
mod support;
mod user_view;
mod verify_derived;
mod verify_differences;
mod verify_lag;
mod verify_refusals;
mod view_cost;
mod view_lag;

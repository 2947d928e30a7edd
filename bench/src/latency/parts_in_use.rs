//! How busy each part was while a rate was measured, and how much memory it had.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use stack::{Pipeline, Process};

use crate::usage;

/// What the parts used while a rate was measured.
pub(super) struct PartsInUse {
    /// How many processors each part kept busy, on average.
    pub(super) cores: Vec<(&'static str, f64)>,
    /// Of the users' relay, at the end.
    pub(super) relay_memory_mb: f64,
    /// Of view-builder, at the end.
    pub(super) view_builder_memory_mb: f64,
}

/// Counts the CPU time of each part from a moment on.
pub(super) struct Stopwatch<'a> {
    pipeline: &'a Pipeline,
    start: Instant,
    cpu_seconds_at_start: Vec<(&'static str, f64)>,
}

impl<'a> Stopwatch<'a> {
    /// # Errors
    /// A part is not running.
    pub(super) fn start(pipeline: &'a Pipeline) -> anyhow::Result<Self> {
        Ok(Self {
            pipeline,
            start: Instant::now(),
            cpu_seconds_at_start: cpu_seconds_of_parts(pipeline)?,
        })
    }

    /// # Errors
    /// A part is not running.
    pub(super) fn end(&self) -> anyhow::Result<PartsInUse> {
        let elapsed = self.start.elapsed().as_secs_f64();
        let now = cpu_seconds_of_parts(self.pipeline)?;
        let parts = now.into_iter().zip(&self.cpu_seconds_at_start);
        let cores = parts.map(|((part, after), (_, before))| (part, (after - before) / elapsed));
        Ok(PartsInUse {
            cores: cores.collect(),
            relay_memory_mb: usage::memory_mb(&*running(self.pipeline.users_relay.process())?)?,
            view_builder_memory_mb: usage::memory_mb(&*running(self.pipeline.view_builder.process())?)?,
        })
    }
}

/// In the order of the table's columns.
fn cpu_seconds_of_parts(pipeline: &Pipeline) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let cpu_seconds = |process| usage::cpu_seconds(&*running(process)?);
    let postgres = running(pipeline.postgres()?.process())?;
    Ok(vec![
        ("relay", cpu_seconds(pipeline.users_relay.process())?),
        ("user-api", cpu_seconds(pipeline.user_api.process())?),
        ("view-builder", cpu_seconds(pipeline.view_builder.process())?),
        ("PostgreSQL", usage::cpu_seconds_with_children(&postgres)?),
        ("Kafka", cpu_seconds(pipeline.kafka()?.process())?),
        ("load", usage::own_cpu_seconds()?),
    ])
}

fn running(process: Option<Arc<Process>>) -> anyhow::Result<Arc<Process>> {
    process.context("a part is not running")
}

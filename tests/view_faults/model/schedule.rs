//! Takes one step after the other.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt;

use anyhow::{Context, ensure};
use rig::view_builder_exit;
use rig::view_rig::DEADLINE;
use stack::random::Random;

use super::state::{Body, Key, State};
use super::world::{TOPICS, World};

/// How many ids each topic has.
const IDS: u64 = 40;
/// So many of the last steps are shown after a failure.
const STEPS_SHOWN: usize = 60;
/// The failpoints at which a rebuild may die.
const REBUILD_POINTS: [&str; 8] = [
    "rebuild.made",
    "rebuild.begun",
    "fill.applied",
    "fill.committed",
    "rebuild.filled",
    "swap.locked",
    "swap.made",
    "swap.committed",
];

pub(super) struct Schedule {
    random: Random,
    state: State,
    pub(super) world: World,
    versions: BTreeMap<Key, i64>,
    names: u64,
    last: VecDeque<String>,
    counts: BTreeMap<&'static str, u64>,
}

impl Schedule {
    pub(super) async fn start(name: &str, seed: u64) -> anyhow::Result<Self> {
        Ok(Self {
            random: Random::seeded(seed),
            state: State::default(),
            world: World::start(name).await?,
            versions: BTreeMap::new(),
            names: 0,
            last: VecDeque::new(),
            counts: BTreeMap::new(),
        })
    }

    pub(super) async fn step(&mut self) -> anyhow::Result<()> {
        match self.random.below(3_000) {
            0..25 => self.produce_garbage().await,
            25..50 => self.produce_forbidden_event().await,
            50..62 => self.allow_and_retry().await,
            62..72 => self.discard().await,
            72..84 => self.replay().await,
            84..92 => self.rebuild().await,
            92..96 => self.kill_a_rebuild().await,
            96..106 => self.kill_builders().await,
            106..112 => self.start_or_stop_second_builder().await,
            112..140 => self.wait_and_compare().await,
            _ => self.produce_event().await,
        }
    }

    fn note(&mut self, kind: &'static str, text: String) {
        *self.counts.entry(kind).or_default() += 1;
        if self.last.len() == STEPS_SHOWN {
            self.last.pop_front();
        }
        self.last.push_back(format!("{kind} {text}"));
    }

    pub(super) fn last_steps(&self) -> String {
        self.last.iter().fold(String::new(), |mut text, step| {
            let _ = writeln!(text, "{step}");
            text
        })
    }

    pub(super) fn summary(&self) -> String {
        let counts: Vec<String> = self
            .counts
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        counts.join(", ")
    }

    fn random_key(&mut self) -> Key {
        let topic = self.random.below(TOPICS as u64) as usize;
        (topic, self.random.below(IDS) as i64)
    }

    fn random_body(&mut self) -> Body {
        self.names += 1;
        Body::Kept {
            name: format!("name {}", self.names),
            group: (*self.random.choose(&["red", "green", "blue"])).to_owned(),
        }
    }

    async fn produce(&mut self, key: Key, body: Body) -> anyhow::Result<()> {
        let version = self.versions.entry(key).or_default();
        if body != Body::Garbage {
            *version += 1;
        }
        let produced = self.world.produce(key, *version, body).await?;
        self.note("events", format!("{key:?} {produced:?}"));
        self.state.add_event(key, produced);
        // Each event of a key that waits becomes a letter of its own, if it is read before compaction has removed it.
        if self.state.first_letter(key).is_some() {
            self.wait_and_compare().await?;
        }
        Ok(())
    }

    async fn produce_event(&mut self) -> anyhow::Result<()> {
        let key = self.random_key();
        let body = if self.random.below(10) == 0 {
            Body::Deleted
        } else {
            self.random_body()
        };
        self.produce(key, body).await
    }

    /// Produces a record that is not an event. Everything before it is applied already. Otherwise compaction could remove an earlier event of the key
    /// because of this record.
    async fn produce_garbage(&mut self) -> anyhow::Result<()> {
        let key = self.random_key();
        self.wait_and_compare().await?;
        self.produce(key, Body::Garbage).await
    }

    /// Produces an event that a trigger refuses. It comes alone, because of two events of a key in one batch only the later one is applied.
    async fn produce_forbidden_event(&mut self) -> anyhow::Result<()> {
        let (key, body) = (self.random_key(), self.random_body());
        if let Body::Kept { name, .. } = &body {
            self.world.forbid(name).await?;
            self.state.forbid(name);
        }
        self.wait_and_compare().await?;
        self.produce(key, body).await
    }

    async fn allow_and_retry(&mut self) -> anyhow::Result<()> {
        self.wait_and_compare().await?;
        if self.random.below(2) == 0 {
            self.world.allow_all().await?;
            self.state.allow_all();
        }
        let (code, said) = self.world.rig.command(&["dead-letters", "retry", "--all"]).await?;
        self.state.retry_all();
        self.note("retries", said.clone());
        let expected = if self.state.waiting().is_empty() {
            0
        } else {
            view_builder_exit::DEAD_LETTERS
        };
        ensure!(code == Some(expected), "retry: {code:?} {said}");
        self.wait_and_compare().await
    }

    async fn discard(&mut self) -> anyhow::Result<()> {
        self.wait_and_compare().await?;
        let waiting = self.state.waiting();
        if waiting.is_empty() {
            return Ok(());
        }
        let key = waiting[self.random.below(waiting.len() as u64) as usize];
        let first = self.state.first_letter(key).cloned().context("a letter")?;
        let id = self.world.letter_id(key, &first).await?.to_string();
        let (code, said) = self.world.rig.command(&["dead-letters", "discard", &id]).await?;
        self.state.discard(key);
        self.note("discards", format!("{key:?} {said}"));
        ensure!(
            matches!(code, Some(0 | view_builder_exit::DEAD_LETTERS)),
            "discard: {code:?} {said}"
        );
        self.wait_and_compare().await
    }

    async fn replay(&mut self) -> anyhow::Result<()> {
        let topic = self.world.topics[self.random.below(TOPICS as u64) as usize].clone();
        let from = match self.random.below(3) {
            0 => "earliest".to_owned(),
            _ => self.random.below(500).to_string(),
        };
        let group = self.world.rig.name().to_owned();
        let arguments = ["replay", "--group", &group, "--topic", &topic, "--from", &from, "--yes"];
        let (code, said) = self.world.rig.command(&arguments).await?;
        self.note("replays", format!("{topic} from {from}"));
        ensure!(
            code == Some(0) || said.contains("nothing is set back"),
            "replay: {code:?} {said}"
        );
        Ok(())
    }

    fn random_view(&mut self) -> &'static str {
        self.random.choose(&["item", "item", "item_name"])
    }

    /// Rebuilds a view while events come.
    async fn rebuild(&mut self) -> anyhow::Result<()> {
        let view = self.random_view();
        self.note("rebuilds", view.to_owned());
        let command = self
            .world
            .rig
            .builder("rebuild")
            .command_of("rebuild", &["rebuild", view]);
        let before = command.log_text().len();
        command.start()?;
        for _ in 0..self.random.below(30) {
            self.produce_event().await?;
        }
        let status = command.exited(DEADLINE).await?;
        self.check_rebuild(status.code(), &command.log_text()[before..])
    }

    /// A rebuild may refuse only where letters are a reason.
    fn check_rebuild(&mut self, code: Option<i32>, said: &str) -> anyhow::Result<()> {
        // An event that waits or was given up may have been the last record of its key that the compacted topic had.
        let is_refused = code == Some(view_builder_exit::REFUSED) && said.contains("compact");
        if is_refused {
            self.note("refused rebuilds", String::new());
            let (open, discarded) = self.state.letters();
            ensure!(
                !(open.is_empty() && discarded.is_empty()),
                "a refusal without reason: {said}"
            );
        }
        ensure!(code == Some(0) || is_refused, "rebuild: {code:?} {said}");
        Ok(())
    }

    /// A rebuild dies, and then goes on or is abandoned.
    async fn kill_a_rebuild(&mut self) -> anyhow::Result<()> {
        let (view, point) = (self.random_view(), self.random.choose(&REBUILD_POINTS).to_owned());
        self.note("killed rebuilds", format!("{view} at {point}"));
        let command = self
            .world
            .rig
            .faulty_builder("dying")
            .command_of("dying", &["rebuild", view]);
        let hits = self
            .world
            .rig
            .logs()
            .join(format!("hits-{}", self.counts["killed rebuilds"]));
        let command = command
            .with_env("VIEW_BUILDER_FAILPOINT", &format!("{point}=kill@1"))
            .env("VIEW_BUILDER_FAILPOINT_HITS", &hits.to_string_lossy());
        command.start()?;
        let status = command.exited(DEADLINE).await?;
        let is_dead = status.signal().is_some();
        ensure!(
            is_dead || status.code() == Some(0) || status.code() == Some(view_builder_exit::REFUSED),
            "{}",
            command.log_tail(20)
        );
        for _ in 0..self.random.below(20) {
            self.produce_event().await?;
        }
        if self.random.below(3) == 0 {
            let (code, said) = self.world.rig.command(&["rebuild", view, "--abandon"]).await?;
            ensure!(code == Some(0), "abandon: {said}");
            return Ok(());
        }
        let (code, said) = self.world.rig.command(&["rebuild", view]).await?;
        self.check_rebuild(code, &said)
    }

    async fn kill_builders(&mut self) -> anyhow::Result<()> {
        for at in 0..2 {
            if self.world.running[at] {
                self.world.builders[at].kill_hard().await;
                self.world.builders[at].start()?;
                self.note("kills", at.to_string());
            }
        }
        Ok(())
    }

    async fn start_or_stop_second_builder(&mut self) -> anyhow::Result<()> {
        let second = &self.world.builders[1];
        if self.world.running[1] {
            second.stop().await?;
        } else {
            second.start()?;
        }
        self.world.running[1] = !self.world.running[1];
        self.note("builders that come or go", String::new());
        Ok(())
    }

    /// Waits until everything is applied, and compares everything with the model.
    pub(super) async fn wait_and_compare(&mut self) -> anyhow::Result<()> {
        self.world.wait_until_applied().await?;
        self.note("comparisons", String::new());
        self.world.compare(&self.state).await
    }
}

//! The storm: kills, rebuilds, replays, drops, dead letters, and builders that start and stop, while clients write. After each round `view-builder
//! verify` must find that every view equals its source. `VIEW_STORM_ROUNDS` and `VIEW_STORM_SEED` make a longer or another storm.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use anyhow::{Context, ensure};
use rig::view_builder_exit;
use stack::pipeline::{USERS_DATABASE, VIEWS_DATABASE};
use stack::random::Random;
use stack::{Program, eventually, eventually_ok};

use super::lane::Lane;
use super::oracle::Complete::LatestOfEachKey;
use super::site::Site;

const ROUNDS: u64 = 12;
const SEED: u64 = 1;
const DEADLINE: Duration = Duration::from_secs(120);
/// Clients make so many changes in each round, beside what is done to the builders.
const CHANGES: u64 = 12;
const REBUILD_POINTS: [&str; 5] = [
    "rebuild.begun",
    "fill.committed",
    "rebuild.filled",
    "swap.made",
    "swap.committed",
];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

struct Storm {
    lane: Lane,
    random: Random,
    builders: Vec<Builder>,
    /// What was done so far, in words.
    troubles: Vec<String>,
}

struct Builder {
    program: Program,
    /// Whether the storm wants it to run.
    runs: bool,
}

impl Storm {
    /// Makes one trouble: an operator does something, or something breaks.
    async fn make_trouble(&mut self) -> anyhow::Result<()> {
        match self.random.below(9) {
            0 | 1 => self.kill_builders().await,
            2 => self.start_or_stop_a_builder().await,
            3 => self.rebuild(None).await,
            4 => {
                let point = self.random.choose(&REBUILD_POINTS).to_owned();
                self.rebuild(Some(&point)).await
            }
            5 => self.replay().await,
            6 => self.drop_and_add().await,
            7 => self.make_and_discard_a_letter().await,
            _ => self.kill_relay().await,
        }
    }

    async fn command(&mut self, arguments: &[&str], failpoint: Option<&str>) -> anyhow::Result<(Option<i32>, String)> {
        let name = format!("command-{}", self.troubles.len());
        let mut command = self.lane.builder("command", false).command_of(&name, arguments);
        if let Some(point) = failpoint {
            let hits = self.lane.directory().join(format!("hits-{}", self.troubles.len()));
            command = command
                .env("VIEW_BUILDER_FAILPOINT", &format!("{point}=kill@1"))
                .env("VIEW_BUILDER_FAILPOINT_HITS", &hits.to_string_lossy());
        }
        command.start()?;
        let status = command.exited(DEADLINE).await?;
        ensure!(failpoint.is_some() || status.signal().is_none(), "{status}");
        Ok((status.code(), command.log_text()))
    }

    async fn kill_builders(&mut self) -> anyhow::Result<()> {
        for builder in self.builders.iter().filter(|builder| builder.runs) {
            builder.program.kill_hard().await;
            builder.program.start()?;
        }
        self.troubles.push("builders killed".to_owned());
        Ok(())
    }

    async fn start_or_stop_a_builder(&mut self) -> anyhow::Result<()> {
        let at = 1 + usize::try_from(self.random.below(2))?;
        let builder = &mut self.builders[at];
        if builder.runs {
            // A process that was started a moment ago does not handle signals yet, and would die of one.
            let client = reqwest::Client::new();
            eventually_ok(DEADLINE, "the builder has begun", || async {
                builder.program.readiness(&client).await.map(drop)
            })
            .await?;
            builder.program.stop().await?;
        } else {
            builder.program.start()?;
        }
        builder.runs = !builder.runs;
        self.troubles.push("a builder comes or goes".to_owned());
        Ok(())
    }

    /// The letters are of keys that have no rows. So nothing is lost by accepting them, as `verify` shows.
    async fn rebuild(&mut self, dies_at: Option<&str>) -> anyhow::Result<()> {
        let view = self.random.choose(&["user_view", "activity"]).to_owned();
        self.troubles.push(format!("rebuild of {view}, dies at {dies_at:?}"));
        let (code, said) = self.command(&["rebuild", &view, "--accept-compacted"], dies_at).await?;
        ensure!(code == Some(0) || dies_at.is_some(), "rebuild {view}: {code:?} {said}");
        if code != Some(0) {
            let (code, said) = self.command(&["rebuild", &view, "--accept-compacted"], None).await?;
            ensure!(code == Some(0), "rebuild {view} again: {code:?} {said}");
        }
        Ok(())
    }

    async fn replay(&mut self) -> anyhow::Result<()> {
        let topic = self.random.choose(&["user-events", "post-events"]).to_owned();
        self.troubles.push(format!("replay of {topic}"));
        let group = self.lane.name.clone();
        let (code, said) = self
            .command(&["replay", "--group", &group, "--topic", &topic, "--yes"], None)
            .await?;
        ensure!(
            code == Some(0) || said.contains("nothing is set back"),
            "replay: {code:?} {said}"
        );
        Ok(())
    }

    /// A builder that starts later may have made the view again by then, because the view is in its VIEWS.
    async fn drop_and_add(&mut self) -> anyhow::Result<()> {
        self.troubles.push("activity dropped and added".to_owned());
        let (code, said) = self.command(&["drop", "activity", "--yes"], None).await?;
        ensure!(code == Some(0), "drop: {code:?} {said}");
        let (code, said) = self
            .command(&["rebuild", "activity", "--accept-compacted"], None)
            .await?;
        ensure!(code == Some(0), "rebuild of a dropped view: {code:?} {said}");
        Ok(())
    }

    /// An event that cannot be applied comes, is retried without success, and is discarded.
    async fn make_and_discard_a_letter(&mut self) -> anyhow::Result<()> {
        self.troubles.push("a dead letter".to_owned());
        let open = "select count(*) from view_dead_letters where discarded_at is null";
        let before: u64 = self.lane.value(open).await?.parse()?;
        self.lane.site.write_bad_event().await;
        eventually(DEADLINE, "a dead letter", || async {
            let now: u64 = self.lane.value(open).await.ok()?.parse().ok()?;
            (now > before).then_some(())
        })
        .await;
        let (code, said) = self.command(&["dead-letters", "retry", "--all"], None).await?;
        ensure!(code == Some(view_builder_exit::DEAD_LETTERS), "retry: {code:?} {said}");
        let id = self
            .lane
            .value("select min(id) from view_dead_letters where discarded_at is null")
            .await?;
        let (code, said) = self.command(&["dead-letters", "discard", &id], None).await?;
        ensure!(code == Some(0), "discard: {code:?} {said}");
        Ok(())
    }

    async fn kill_relay(&mut self) -> anyhow::Result<()> {
        self.troubles.push("a relay killed".to_owned());
        let relay = &self.lane.site.pipeline.users_relay;
        relay.kill_hard().await;
        relay.start()
    }

    /// Lets the clients pause. Every view must equal its source.
    async fn verify(&self, round: u64) -> anyhow::Result<()> {
        let _pause = self.lane.site.load.pause().await;
        let command = self
            .lane
            .site
            .pipeline
            .verifier(&format!("verify-{round}"), &["--wait", "90"])?
            .env("DATABASE_URL", &self.lane.site.pipeline.database_url(&self.lane.name)?);
        command.start()?;
        let status = command.exited(DEADLINE).await?;
        ensure!(status.code() == Some(0), "verify: {status}\n{}", command.log_text());
        self.lane.sampler.verdict().context("the reader")?;
        Ok(())
    }
}

#[tokio::test]
async fn after_every_round_of_the_storm_each_view_is_what_its_source_says() {
    let site = std::sync::Arc::new(Site::start().await);
    let lane = Lane::new(&site, "storm", LatestOfEachKey).await;
    let builders = ["one", "two", "three"].map(|name| Builder {
        program: lane.builder(name, true),
        runs: false,
    });
    let mut storm = Storm {
        lane,
        random: Random::seeded(setting("VIEW_STORM_SEED", SEED)),
        builders: builders.into(),
        troubles: Vec::new(),
    };
    storm.builders[0].program.start().expect("a start");
    storm.builders[0]
        .program
        .wait_ready(DEADLINE)
        .await
        .expect("it is ready");
    storm.builders[0].runs = true;
    let rounds = setting("VIEW_STORM_ROUNDS", ROUNDS);
    for round in 1..=rounds {
        let changes = site.load.changes();
        let happened = async {
            for _ in 0..1 + storm.random.below(3) {
                storm.make_trouble().await?;
            }
            eventually(DEADLINE, "the clients go on", || {
                std::future::ready((site.load.changes() >= changes + CHANGES).then_some(()))
            })
            .await;
            storm.verify(round).await
        };
        if let Err(err) = happened.await {
            let last = storm
                .troubles
                .iter()
                .rev()
                .take(8)
                .rev()
                .cloned()
                .collect::<Vec<_>>()
                .join("; ");
            panic!("round {round}: {err:#}\nafter: {last}\n{}", storm.lane.log_tails());
        }
    }
    println!(
        "{rounds} rounds, {} troubles, {} changes by clients, every view equal",
        storm.troubles.len(),
        site.load.changes()
    );
    for builder in &storm.builders {
        builder.program.stop().await.expect("a clean end");
    }
    drop(storm);
    let users = site
        .query(USERS_DATABASE, "select count(*) from users")
        .await
        .expect("users");
    let posts = site
        .query(VIEWS_DATABASE, "select count(*) from posts")
        .await
        .expect("posts");
    assert!(
        [&users, &posts]
            .iter()
            .all(|count| count[0][0].as_deref().is_some_and(|count| count != "0")),
        "{users:?} {posts:?}"
    );
    site.pipeline.stop().await.expect("a clean end");
}

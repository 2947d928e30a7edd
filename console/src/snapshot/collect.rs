//! The tasks that ask the parts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::time::{MissedTickBehavior, interval, timeout};

use super::admin_port::AdminPort;
use super::builder::BuilderFacts;
use super::histogram::Recent;
use super::kafka::{Asker, KafkaFacts};
use super::letters::LettersAsker;
use super::outbox::OutboxFacts;
use super::relay::RelayFacts;
use super::views::ViewsFacts;
use super::{INTERVAL, Part, Snapshot, Store, TIME_MAX, admin_port, outbox, status, views};
use crate::postgres::Database;
use crate::settings::{Outbox, Settings};

/// Asks one part.
trait Ask: Send + 'static {
    type Facts: Clone + Send + Sync + 'static;

    /// Asks once. The caller drops the future when the time is over.
    fn ask(&mut self) -> impl Future<Output = Result<Self::Facts, String>> + Send;
}

/// Begins to ask all parts. The tasks end with the runtime.
///
/// # Errors
/// No HTTP client can be made.
pub fn begin(settings: &Settings, store: &Arc<Store>) -> anyhow::Result<()> {
    describe();
    let http = admin_port::client()?;
    let admin = |address: &str| AdminPort::new(http.clone(), address);
    let pipeline = &settings.pipeline;
    for (index, outbox) in pipeline.outboxes.iter().enumerate() {
        let asker = OutboxAsker {
            database: Database::new(outbox.database.target.clone()),
            outbox: outbox.clone(),
            last: None,
        };
        ask_forever(store, asker, move |snapshot| &mut snapshot.outboxes[index].database);
        if let Some(address) = &outbox.relay {
            let asker = RelayAsker {
                port: admin(address),
                last: None,
                recent: Recent::default(),
            };
            ask_forever(store, asker, move |snapshot| &mut snapshot.outboxes[index].relay);
        }
    }
    for (index, address) in pipeline.views.builders.iter().enumerate() {
        let asker = BuilderAsker {
            port: admin(address),
            last: BTreeMap::new(),
            recent: Recent::default(),
        };
        ask_forever(store, asker, move |snapshot| &mut snapshot.builders[index]);
    }
    let views = ViewsAsker {
        database: Database::new(pipeline.views.database.target.clone()),
        letters: LettersAsker::default(),
    };
    ask_forever(store, views, |snapshot| &mut snapshot.views);
    let topics = pipeline.topics().into_iter().map(str::to_owned).collect();
    let kafka = KafkaAsker {
        asker: Asker::new(settings.kafka.clone(), topics),
        last: BTreeMap::new(),
    };
    ask_forever(store, kafka, |snapshot| &mut snapshot.kafka);
    tokio::spawn(status::ask_while_looked_at(settings.clone(), Arc::clone(store)));
    let store = Arc::clone(store);
    tokio::spawn(async move {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            store.update(keep_trends);
            show_away(&store.snapshot());
            store.end_round();
        }
    });
    Ok(())
}

/// Asks a part again and again, each time with a time limit.
fn ask_forever<A: Ask>(
    store: &Arc<Store>,
    mut asker: A,
    part: impl Fn(&mut Snapshot) -> &mut Part<A::Facts> + Send + 'static,
) {
    let store = Arc::clone(store);
    tokio::spawn(async move {
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let answer = timeout(TIME_MAX, asker.ask()).await;
            let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", TIME_MAX.as_secs())));
            store.update(|snapshot| part(snapshot).take(answer));
        }
    });
}

struct OutboxAsker {
    database: Database,
    outbox: Outbox,
    last: Option<(Instant, i64)>,
}

impl Ask for OutboxAsker {
    type Facts = OutboxFacts;

    async fn ask(&mut self) -> Result<OutboxFacts, String> {
        let mut facts = outbox::ask(&self.database, &self.outbox).await?;
        facts.insert_rate = rate(&mut self.last, facts.inserted);
        Ok(facts)
    }
}

struct RelayAsker {
    port: AdminPort,
    last: Option<(Instant, i64)>,
    recent: Recent,
}

impl Ask for RelayAsker {
    type Facts = RelayFacts;

    async fn ask(&mut self) -> Result<RelayFacts, String> {
        let (mut facts, histogram) = RelayFacts::read(&self.port.ask().await?);
        facts.publish_rate = rate(&mut self.last, facts.published as i64);
        facts.latency = self.recent.add(histogram);
        Ok(facts)
    }
}

struct BuilderAsker {
    port: AdminPort,
    last: BTreeMap<String, Option<(Instant, i64)>>,
    recent: Recent,
}

impl Ask for BuilderAsker {
    type Facts = BuilderFacts;

    async fn ask(&mut self) -> Result<BuilderFacts, String> {
        let (mut facts, histogram) = BuilderFacts::read(&self.port.ask().await?);
        let applied = facts.applied.iter().map(|(topic, applied)| (topic, *applied as i64));
        facts.rates = rates(&mut self.last, applied);
        facts.latency = self.recent.add(histogram);
        Ok(facts)
    }
}

struct ViewsAsker {
    database: Database,
    letters: LettersAsker,
}

impl Ask for ViewsAsker {
    type Facts = ViewsFacts;

    async fn ask(&mut self) -> Result<ViewsFacts, String> {
        views::ask(&self.database, &mut self.letters).await
    }
}

struct KafkaAsker {
    asker: Asker,
    last: BTreeMap<String, Option<(Instant, i64)>>,
}

impl Ask for KafkaAsker {
    type Facts = KafkaFacts;

    async fn ask(&mut self) -> Result<KafkaFacts, String> {
        let mut facts = self.asker.ask().await?;
        let ends = facts
            .topics
            .keys()
            .filter_map(|topic| Some((topic, facts.end_of_topic(topic)?)));
        facts.rates = rates(&mut self.last, ends);
        Ok(facts)
    }
}

fn describe() {
    metrics::describe_gauge!(
        "console_parts_away",
        "Parts of the pipeline that do not answer the console now."
    );
    metrics::describe_counter!(
        "console_changes_total",
        "Changes that the console has begun, as commands."
    );
}

fn show_away(snapshot: &Snapshot) {
    metrics::gauge!("console_parts_away").set(snapshot.away().len() as f64);
}

/// How fast a counter grows, each second. `None`: there was no earlier look, or it began anew.
fn rate(last: &mut Option<(Instant, i64)>, count: i64) -> Option<f64> {
    let now = Instant::now();
    let before = last.replace((now, count))?;
    let seconds = now.duration_since(before.0).as_secs_f64();
    (count >= before.1 && seconds > 0.0).then(|| (count - before.1) as f64 / seconds)
}

fn rates<'a>(
    last: &mut BTreeMap<String, Option<(Instant, i64)>>,
    counts: impl Iterator<Item = (&'a String, i64)>,
) -> BTreeMap<String, f64> {
    let rates = counts.filter_map(|(name, count)| {
        let last = last.entry(name.clone()).or_default();
        Some((name.clone(), rate(last, count)?))
    });
    rates.collect()
}

/// Adds the figures of this round to the trends.
fn keep_trends(snapshot: &mut Snapshot) {
    let mut values = Vec::new();
    for outbox in &snapshot.outboxes {
        let name = &outbox.name;
        let (database, relay) = (outbox.database.fresh(), outbox.relay.fresh());
        let slot = database.and_then(|facts| facts.slot.as_ref());
        values.push((format!("insert/{name}"), database.and_then(|facts| facts.insert_rate)));
        values.push((format!("retained/{name}"), slot.map(|slot| slot.retained_bytes as f64)));
        values.push((format!("publish/{name}"), relay.and_then(|facts| facts.publish_rate)));
        values.push((
            format!("unpublished/{name}"),
            relay.and_then(|facts| facts.oldest_unpublished_seconds),
        ));
        values.push((
            format!("unconfirmed/{name}"),
            slot.map(|slot| slot.unconfirmed_bytes as f64),
        ));
        for topic in &outbox.topics {
            let lag = snapshot.lag_of_topic(topic);
            values.push((
                format!("topic/{topic}"),
                snapshot.kafka.fresh().and_then(|kafka| kafka.rates.get(topic).copied()),
            ));
            values.push((format!("apply/{topic}"), snapshot.applied_rate(topic)));
            values.push((format!("lag/{topic}"), lag.events.map(|events| events as f64)));
            values.push((format!("age/{topic}"), lag.seconds));
        }
    }
    snapshot.trends.add(values);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::rate;

    #[test]
    fn a_counter_that_began_anew_has_no_rate() {
        let mut last = None;
        assert_eq!(rate(&mut last, 10), None);
        last = Some((Instant::now() - Duration::from_secs(2), 10));
        let found = rate(&mut last, 30).unwrap();
        assert!((9.0..=10.1).contains(&found), "{found}");
        assert_eq!(rate(&mut last, 5), None);
    }
}

//! Changes the settings of a topic while it is in use.

use std::time::Duration;

use anyhow::Context;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use stack::eventually_ok;

const KNOWN_DEADLINE: Duration = Duration::from_secs(60);

/// Gives the topic these settings and no others of its own. Returns once the broker knows them.
///
/// # Errors
/// The broker is away, or refuses.
pub async fn set(bootstrap_servers: &str, topic: &str, settings: &[(&str, &str)]) -> anyhow::Result<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap_servers)
        .create()?;
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic));
    let change = settings
        .iter()
        .fold(change, |change, (name, value)| change.set(name, value));
    for outcome in admin.alter_configs([&change], &AdminOptions::new()).await? {
        outcome.map_err(|(_, code)| code).context("the topic is not changed")?;
    }
    eventually_ok(KNOWN_DEADLINE, "the broker knows the topic's settings", || async {
        let resource = ResourceSpecifier::Topic(topic);
        let mut described = admin.describe_configs([&resource], &AdminOptions::new()).await?;
        let described = described.pop().context("no answer")??;
        for (name, value) in settings {
            let known = described.get(name).and_then(|entry| entry.value.as_deref());
            anyhow::ensure!(known == Some(value), "{name} is {known:?}");
        }
        Ok(())
    })
    .await
}

//! Finds out why a record was not delivered. librdkafka only reports that the whole transaction failed, which hides the cause.
//!
//! The broker says which records of a batch are to blame (KIP-467). If it blames several, librdkafka 2.12 passes this on: the other records of the
//! batch get another code. If it blames a single one, librdkafka gives all records of the batch the same code. So then we send each record in a batch
//! of its own, once, and see which one the broker refuses. (The broker's own words cannot be used: librdkafka has freed their memory.)

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::BaseProducer;

use super::events::serve_events;
use super::planted;
use crate::kafka::client::KafkaSettings;
use crate::kafka::client::RefusedRecord;
use crate::kafka::client::{Failure, Failures, Health};
use crate::process::stop::RelayError;

/// How long we wait for the report about a record when the transaction has failed because of it. The report comes at once.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

/// The error of a transaction that lost a record. `None`: no lost record was reported yet. Remembers a record that the broker blames, so that the
/// next start finds it before it is sent.
pub(in crate::kafka) fn find_undelivered(health: &Health, settings: &KafkaSettings) -> Option<RelayError> {
    if health.has_no_failure() {
        return None;
    }
    let failures = health.failures();
    let first = failures.first.clone()?;
    let mut refused: Vec<RefusedRecord> = certainly_blamed(&failures, settings)
        .cloned()
        .filter_map(refused_record)
        .collect();
    if refused.is_empty()
        && let Some(suspect) = failures.blamed.first()
    {
        settings.send_each_alone(true);
        return Some(
            anyhow::anyhow!(
                "the broker refused a batch for topic `{}` for one of its records ({}): they are sent one by one to find it",
                suspect.topic,
                suspect.code
            )
            .into(),
        );
    }
    if refused.is_empty() && !failures.too_large.is_empty() {
        let each_was_alone = failures.too_large.len() == 1 || settings.batch_was_too_large();
        if !each_was_alone {
            return Some(
                anyhow::anyhow!(
                    "a batch for topic `{}` is larger than the topic takes: new producers that make smaller batches replace these ones",
                    failures.too_large[0].topic
                )
                .into(),
            );
        }
        refused = failures.too_large.into_iter().filter_map(refused_record).collect();
    }
    let Some(cause) = refused.first().cloned() else {
        let Failure { topic, code, .. } = first;
        return Some(anyhow::anyhow!("a record for topic `{topic}` was not delivered: {code}").into());
    };
    settings.send_each_alone(false);
    if !planted::forgets_refused_records() {
        settings.refused_records.note(refused);
    }
    Some(anyhow::Error::new(cause).into())
}

/// The records that are certainly to blame. In each partition only one batch can fail like this: the broker refuses later batches because of their
/// sequence numbers.
fn certainly_blamed<'f>(failures: &'f Failures, settings: &KafkaSettings) -> impl Iterator<Item = &'f Failure> {
    let all_are_alone = settings.sends_each_alone();
    failures.blamed.iter().filter(move |failure| {
        let is_of_same_batch = |other: &&Failure| other.topic == failure.topic && other.partition == failure.partition;
        let topic_partition = (failure.topic.clone(), failure.partition);
        all_are_alone
            || failures.failed_beside_blamed.contains(&topic_partition)
            || failures.blamed.iter().filter(is_of_same_batch).count() == 1
    })
}

/// The error of a call that librdkafka refused. Once a record is lost, librdkafka refuses every call and only says that its state is wrong. The report
/// about the record says more, so we wait for it.
pub(in crate::kafka) fn explain_refusal(
    err: KafkaError,
    what: &'static str,
    producer: &BaseProducer<Health>,
    health: &Health,
    settings: &KafkaSettings,
) -> RelayError {
    let is_hidden = match &err {
        KafkaError::Transaction(err) => err.txn_requires_abort() || err.code() == RDKafkaErrorCode::State,
        err => err.rdkafka_error_code() == Some(RDKafkaErrorCode::State),
    };
    let waiting = Instant::now();
    while is_hidden && waiting.elapsed() <= REPORT_PATIENCE {
        serve_events(producer, health);
        if let Some(cause) = find_undelivered(health, settings) {
            return cause;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let err = anyhow::Error::new(err);
    let err = match health.trouble() {
        Some(trouble) => err.context(trouble),
        None => err,
    };
    err.context(what).into()
}

/// Every record but a checkpoint has an id.
fn refused_record(failure: Failure) -> Option<RefusedRecord> {
    let is_too_large = matches!(
        failure.code,
        RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge
    );
    Some(RefusedRecord {
        id: failure.id?,
        topic: failure.topic,
        size: failure.size,
        is_too_large,
        reason: failure.code.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use rdkafka::error::RDKafkaErrorCode;

    use super::{Failure, Failures, certainly_blamed};
    use crate::kafka::KafkaSettings;

    fn failure(id: &str, partition: i32) -> Failure {
        Failure {
            code: RDKafkaErrorCode::InvalidRecord,
            topic: "t".to_owned(),
            partition,
            id: Some(id.to_owned()),
            size: 0,
        }
    }

    #[test]
    fn a_record_is_to_blame_where_no_other_can_be() {
        let settings = KafkaSettings::from(kafka_client::ClientSettings::new("localhost:9092"));
        let mut failures = Failures {
            blamed: [("a", 0), ("b", 0), ("c", 1)].map(|(id, at)| failure(id, at)).to_vec(),
            ..Failures::default()
        };
        let ids = |failures: &Failures| {
            let ids = certainly_blamed(failures, &settings).filter_map(|failure| failure.id.clone());
            ids.collect::<Vec<_>>()
        };
        assert_eq!(ids(&failures), ["c"], "of two in a batch one may be innocent");
        failures.failed_beside_blamed.push(("t".to_owned(), 0));
        assert_eq!(
            ids(&failures),
            ["a", "b", "c"],
            "their innocent neighbours were told apart"
        );
        failures.failed_beside_blamed.clear();
        settings.send_each_alone(true);
        assert_eq!(ids(&failures), ["a", "b", "c"], "each had a batch of its own");
    }
}

//! Why a record was not delivered: what librdkafka reports of the whole transaction hides the first cause.
//!
//! The broker says which records of a batch are to blame (KIP-467). librdkafka 2.12 hands that on where there are several: the others of the
//! batch have a code of their own. Where there is one, it gives all of the batch that one's code again, and the broker's words in memory that
//! it has freed. So a single record to blame is looked for by sending each in a batch of its own, once.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::BaseProducer;

use super::events::serve_events;
use super::planted;
use crate::kafka::client::KafkaSettings;
use crate::kafka::client::RefusedRecord;
use crate::kafka::client::{Failure, Failures, Health};
use crate::process::stop::RelayError;

/// How long a record's report is waited for once the transaction is known to have failed by it: it comes at once.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

/// The error of a transaction that lost a record, as far as librdkafka's events were served; a record that the broker blames is remembered.
pub(in crate::kafka) fn undelivered(health: &Health, settings: &KafkaSettings) -> Option<RelayError> {
    if health.has_no_failure() {
        return None;
    }
    let failures = health.failures();
    let first = failures.first.clone()?;
    let mut refused: Vec<RefusedRecord> = to_blame(&failures, settings)
        .cloned()
        .filter_map(refused_record)
        .collect();
    if refused.is_empty()
        && let Some(one) = failures.blamed.first()
    {
        settings.send_each_alone(true);
        return Some(
            anyhow::anyhow!(
                "the broker refused a batch for topic `{}` for one of its records ({}): they are sent one by one to find it",
                one.topic,
                one.code
            )
            .into(),
        );
    }
    if refused.is_empty() && !failures.too_large.is_empty() {
        let are_alone = failures.too_large.len() == 1 || settings.batch_was_too_large();
        if !are_alone {
            return Some(
                anyhow::anyhow!(
                    "a batch for topic `{}` is larger than it takes: the producers are replaced by such that make smaller ones",
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

/// The records that are certainly to blame. A partition has one batch that fails so: the broker refuses those behind it for their sequence.
fn to_blame<'f>(failures: &'f Failures, settings: &KafkaSettings) -> impl Iterator<Item = &'f Failure> {
    let all_are_alone = settings.sends_each_alone();
    failures.blamed.iter().filter(move |failure| {
        let is_beside = |other: &&Failure| other.topic == failure.topic && other.partition == failure.partition;
        let place = (failure.topic.clone(), failure.partition);
        all_are_alone
            || failures.beside_blamed.contains(&place)
            || failures.blamed.iter().filter(is_beside).count() == 1
    })
}

/// The error of a call that librdkafka refused. Once a record is lost it refuses everything, for the reason that its state is erroneous; the
/// record's own report says more.
pub(in crate::kafka) fn explained(
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
        if let Some(cause) = undelivered(health, settings) {
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

    use super::{Failure, Failures, to_blame};
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
            let ids = to_blame(failures, &settings).filter_map(|failure| failure.id.clone());
            ids.collect::<Vec<_>>()
        };
        assert_eq!(ids(&failures), ["c"], "of two in a batch one may be innocent");
        failures.beside_blamed.push(("t".to_owned(), 0));
        assert_eq!(
            ids(&failures),
            ["a", "b", "c"],
            "their innocent neighbours were told apart"
        );
        failures.beside_blamed.clear();
        settings.send_each_alone(true);
        assert_eq!(ids(&failures), ["a", "b", "c"], "each had a batch of its own");
    }
}

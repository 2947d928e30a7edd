//! The admin port of a program of ours: whether it is ready, and its metrics.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::TIME_MAX;
use super::exposition::{Sample, samples};

/// The client for all admin ports. It follows nobody elsewhere.
pub(super) fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TIME_MAX)
        .build()
}

/// A program's admin port.
pub(super) struct AdminPort {
    http: reqwest::Client,
    /// Such as `http://127.0.0.1:8083`.
    address: String,
}

impl AdminPort {
    pub(super) fn new(http: reqwest::Client, address: &str) -> Self {
        Self {
            http,
            address: address.to_owned(),
        }
    }

    /// Asks `/readyz` and `/metrics`.
    ///
    /// # Errors
    /// It does not answer, or is no program of ours.
    pub(super) async fn ask(&self) -> Result<AdminAnswer, String> {
        let address = &self.address;
        let readiness = self.get("/readyz").await.map_err(|err| self.words(&err))?;
        let metrics = self.get("/metrics").await.map_err(|err| self.words(&err))?;
        let readiness =
            serde_json::from_str(&readiness).map_err(|_| format!("{address}/readyz is no answer of our programs"))?;
        Ok(AdminAnswer { readiness, metrics })
    }

    async fn get(&self, path: &str) -> reqwest::Result<String> {
        self.http
            .get(format!("{}{path}", self.address))
            .send()
            .await?
            .text()
            .await
    }

    fn words(&self, err: &reqwest::Error) -> String {
        if err.is_timeout() {
            format!("no answer within {} s", TIME_MAX.as_secs())
        } else if err.is_connect() {
            format!("nothing answers on {}", self.address)
        } else {
            format!("an answer that cannot be read: {err}")
        }
    }
}

/// What an admin port answers.
pub(super) struct AdminAnswer {
    pub(super) readiness: ReadinessAnswer,
    metrics: String,
}

/// The answer of `/readyz`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ReadinessAnswer {
    pub(super) ready: bool,
    #[serde(default)]
    pub(super) reasons: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) warnings: BTreeMap<String, String>,
}

impl AdminAnswer {
    pub(super) fn samples(&self) -> Vec<Sample<'_>> {
        samples(&self.metrics)
    }
}

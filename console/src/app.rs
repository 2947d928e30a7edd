//! What all requests share.

use std::ops::Deref;
use std::sync::Arc;

use axum::extract::FromRef;

use crate::postgres::Databases;
use crate::programs::Jobs;
use crate::search::Readers;
use crate::search::tail::Tails;
use crate::settings::Settings;
use crate::snapshot::Store;
use crate::web::access::Access;

/// What all requests share. Clones are the same one.
#[derive(Clone, Debug)]
pub struct App(Arc<Shared>);

/// The parts of an [`App`].
#[derive(Debug)]
pub struct Shared {
    pub settings: Settings,
    /// What the parts of the pipeline said last.
    pub store: Arc<Store>,
    /// The commands that run now, and those that ran last.
    pub jobs: Jobs,
    /// Who may do what.
    pub access: Access,
    /// Open sessions with the databases, for what a page asks by itself.
    pub databases: Databases,
    /// Kafka clients for searches and traces.
    pub readers: Readers,
    /// Pages that follow a topic.
    pub tails: Tails,
}

impl App {
    #[must_use]
    pub fn new(settings: Settings, access: Access) -> Self {
        let store = Arc::new(Store::new(&settings.pipeline));
        let databases = Databases::new(&settings.pipeline);
        let readers = Readers::new(settings.kafka.clone());
        let tails = Tails::new(settings.kafka.clone());
        Self(Arc::new(Shared {
            settings,
            store,
            jobs: Jobs::default(),
            access,
            databases,
            readers,
            tails,
        }))
    }
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl FromRef<App> for Access {
    fn from_ref(app: &App) -> Self {
        app.access.clone()
    }
}

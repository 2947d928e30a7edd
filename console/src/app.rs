//! What all requests share.

use std::ops::Deref;
use std::sync::Arc;

use axum::extract::FromRef;

use crate::programs::Jobs;
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
    pub store: Store,
    /// The commands that run now, and those that ran last.
    pub jobs: Jobs,
    /// Who may do what.
    pub access: Access,
}

impl App {
    #[must_use]
    pub fn new(settings: Settings, access: Access) -> Self {
        let store = Store::new(&settings.pipeline);
        Self(Arc::new(Shared {
            settings,
            store,
            jobs: Jobs::default(),
            access,
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

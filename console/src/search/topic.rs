//! A topic of Kafka, as a scan reads it.

use std::time::Instant;

use super::reader::{Read, Reader, Visit, Window};
use super::record::Seen;
use super::scan::Log;

/// One topic, and the client that reads it.
pub struct Topic<'r> {
    pub reader: &'r Reader,
    pub name: &'r str,
}

impl Log for Topic<'_> {
    fn read(
        &self,
        windows: &[Window],
        deadline: Instant,
        visit: &mut dyn FnMut(&Seen<'_>) -> Visit,
    ) -> anyhow::Result<Read> {
        self.reader.read(self.name, windows, deadline, visit)
    }
}

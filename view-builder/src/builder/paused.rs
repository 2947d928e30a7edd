//! Reports paused views: a warning in `/readyz`, and a gauge for each.

use super::Builder;
use crate::process::measure;
use crate::views::pauses::Paused;

/// The part of `/readyz`.
const PART: &str = "paused-views";

impl Builder {
    /// These views are paused now. `None`: Postgres did not tell.
    pub(super) fn report_paused_views(&mut self, paused: Option<Vec<Paused>>) {
        let Some(paused) = paused else { return };
        for ended in self
            .paused
            .iter()
            .filter(|was| !paused.iter().any(|is| is.view == was.view))
        {
            measure::paused(&ended.view, false);
        }
        for paused in &paused {
            measure::paused(&paused.view, true);
        }
        if paused.is_empty() {
            self.readiness.fine(PART);
        } else {
            let lines: Vec<String> = paused.iter().map(Paused::for_people).collect();
            self.readiness.warn(PART, lines.join("; and "));
        }
        self.paused = paused;
    }
}

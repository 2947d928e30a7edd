//! Reads a program's counters from its `/metrics` (Prometheus' text format).

use stack::Program;

use crate::http::Connection;

/// One counter. It is read over a connection that stays open, so that asking costs the program little.
#[derive(Debug)]
pub(crate) struct Counter<'a> {
    program: &'a Program,
    name: &'static str,
    connection: Option<Connection>,
}

impl<'a> Counter<'a> {
    pub(crate) fn new(program: &'a Program, name: &'static str) -> Self {
        Self {
            program,
            name,
            connection: None,
        }
    }

    /// The sum of the counter over all its labels. It is 0 as long as the program does not answer yet.
    ///
    /// # Errors
    /// The program has ended.
    pub(crate) async fn read(&mut self) -> anyhow::Result<u64> {
        if let Some(status) = self.program.process().and_then(|process| process.exit_status()) {
            anyhow::bail!(
                "{} ended ({status}); its last log lines:\n{}",
                self.program.name(),
                self.program.log_tail(15)
            );
        }
        if self.connection.is_none() {
            self.connection = Connection::open(self.program.port()).await.ok();
        }
        let Some(connection) = &mut self.connection else {
            return Ok(0);
        };
        match connection.get("/metrics").await {
            Ok(text) => Ok(sum(&text, self.name)),
            Err(err) => {
                tracing::debug!(error = %err, "no metrics");
                self.connection = None;
                Ok(0)
            }
        }
    }
}

/// The sum of the samples of `name`, whatever their labels.
fn sum(text: &str, name: &str) -> u64 {
    text.lines()
        .filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = match rest.strip_prefix('{') {
                Some(labels) => labels.rsplit_once('}')?.1,
                None => rest.strip_prefix(' ')?,
            };
            value.trim().parse::<u64>().ok()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn samples_of_one_name_are_added_up() {
        let text = "# TYPE events_total counter\nevents_total{topic=\"a b\"} 5\nevents_total{topic=\"c\"} 7\n\
                    events_total_other 100\nplain 3\n";
        assert_eq!(sum(text, "events_total"), 12);
        assert_eq!(sum(text, "plain"), 3);
        assert_eq!(sum(text, "missing"), 0);
    }
}

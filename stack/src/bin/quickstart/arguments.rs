//! The command line; `--help` is the manual.

use std::path::PathBuf;

use anyhow::bail;
use clap::Parser;
use stack::pipeline::Ports;
use stack::{DEPARTMENTS, port};

/// Start the whole pipeline on this machine, in the foreground: PostgreSQL, Apache Kafka, user-api, post-api, two outbox-relays,
/// view-builder and the console. Ctrl-C ends all of it. Everything listens on the loopback interface only.
///
/// PostgreSQL is a private server made for this run: from a PostgreSQL 15-18 of this machine, else from a download. Kafka is one node of Apache
/// Kafka from a download. Both keep their data in a temporary directory that is removed at the end, unless --data says where to keep it.
#[derive(Clone, Debug, Parser)]
#[command(name = "quickstart", args_override_self = true)]
pub(crate) struct Arguments {
    /// Create this many users through user-api, wait until the view has them all, and print a table of rates and latencies.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Load")]
    pub users: u64,

    /// With --users: how many requests run at a time, each on a connection of its own.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000), help_heading = "Load")]
    pub connections: u16,

    /// With --users: the departments to spread the users over, separated by commas.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = DEPARTMENTS.map(str::to_owned), help_heading = "Load")]
    pub departments: Vec<String>,

    /// With --users: the seed of the randomness. The same seed gives the same names, departments and statuses; e-mail addresses differ in every run.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, help_heading = "Load")]
    pub seed: u64,

    /// End when everything is up and, with --users, the table is printed. The exit status is 1 if a user could not be created.
    #[arg(long, help_heading = "Load")]
    pub exit: bool,

    /// Keep the data of PostgreSQL and Kafka, and the logs, in this directory, and continue from it the next time.
    #[arg(long, value_name = "DIR", help_heading = "Servers")]
    pub data: Option<PathBuf>,

    /// Use a PostgreSQL that is there already: a superuser's URL, postgres://USER:PASSWORD@HOST:PORT/postgres. It must be 15-18 with
    /// wal_level = logical. Databases, roles (with new random passwords) and replication slots are made in it, and stay there.
    #[arg(long, value_name = "URL", help_heading = "Servers")]
    pub postgres: Option<String>,

    /// Use a Kafka that is there already. Topics are made in it, and stay there.
    #[arg(long, value_name = "HOST:PORT", help_heading = "Servers")]
    pub kafka: Option<String>,

    /// Port of the private PostgreSQL.
    #[arg(long, value_name = "PORT", default_value_t = 15432, help_heading = "Ports")]
    pub postgres_port: u16,

    /// Port of the private Kafka.
    #[arg(long, value_name = "PORT", default_value_t = 9092, help_heading = "Ports")]
    pub kafka_port: u16,

    /// Port of user-api.
    #[arg(long, value_name = "PORT", default_value_t = 8081, help_heading = "Ports")]
    pub user_api_port: u16,

    /// Port of post-api.
    #[arg(long, value_name = "PORT", default_value_t = 8082, help_heading = "Ports")]
    pub post_api_port: u16,

    /// Port of the users' outbox-relay: health and metrics.
    #[arg(long, value_name = "PORT", default_value_t = 8083, help_heading = "Ports")]
    pub users_relay_port: u16,

    /// Port of view-builder: health and metrics.
    #[arg(long, value_name = "PORT", default_value_t = 8084, help_heading = "Ports")]
    pub view_builder_port: u16,

    /// Port of the posts' outbox-relay: health and metrics.
    #[arg(long, value_name = "PORT", default_value_t = 8085, help_heading = "Ports")]
    pub posts_relay_port: u16,

    /// Port of the console's pages.
    #[arg(long, value_name = "PORT", default_value_t = 8080, help_heading = "Ports")]
    pub console_port: u16,

    /// Port of the console: health and metrics.
    #[arg(long, value_name = "PORT", default_value_t = 8086, help_heading = "Ports")]
    pub console_admin_port: u16,
}

impl Arguments {
    pub(crate) fn ports(&self) -> Ports {
        Ports {
            user_api: self.user_api_port,
            post_api: self.post_api_port,
            users_relay: self.users_relay_port,
            posts_relay: self.posts_relay_port,
            console: self.console_port,
            console_admin: self.console_admin_port,
            view_builder: self.view_builder_port,
        }
    }

    /// Refuses a port that another program listens on, before anything is started.
    pub(crate) fn check_ports(&self) -> anyhow::Result<()> {
        let mut wanted = vec![
            (self.user_api_port, "--user-api-port"),
            (self.post_api_port, "--post-api-port"),
            (self.users_relay_port, "--users-relay-port"),
            (self.view_builder_port, "--view-builder-port"),
            (self.posts_relay_port, "--posts-relay-port"),
            (self.console_port, "--console-port"),
            (self.console_admin_port, "--console-admin-port"),
        ];
        if self.postgres.is_none() {
            wanted.push((self.postgres_port, "--postgres-port"));
        }
        if self.kafka.is_none() {
            wanted.push((self.kafka_port, "--kafka-port"));
        }
        let taken: Vec<String> = wanted
            .iter()
            .filter(|(number, _)| *number != 0 && !port::is_free(*number))
            .map(|(number, flag)| format!("{number} ({flag})"))
            .collect();
        match taken.as_slice() {
            [] => Ok(()),
            [one] => bail!(
                "another program listens on port {one}: end it, or choose another port with that flag (0: any free one)"
            ),
            several => bail!(
                "other programs listen on the ports {}: end them, or choose other ports with those flags (0: any free one)",
                several.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::Arguments;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_taken_port_is_named_with_its_flag() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let mut line = vec!["quickstart".to_owned()];
        for flag in [
            "postgres",
            "kafka",
            "post-api",
            "users-relay",
            "posts-relay",
            "view-builder",
            "console",
            "console-admin",
        ] {
            line.push(format!("--{flag}-port=0"));
        }
        line.push(format!("--user-api-port={port}"));
        let arguments = Arguments::try_parse_from(line).expect("arguments");
        let refused = arguments.check_ports().expect_err("a taken port").to_string();
        assert!(refused.contains(&format!("{port} (--user-api-port)")), "{refused}");
    }
}

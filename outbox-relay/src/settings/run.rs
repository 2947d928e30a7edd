//! What `run` asks for.

use std::net::SocketAddr;

use clap::Args;

use super::Settings;
use super::init::InitOptions;
use super::maintenance::MaintenanceOptions;
use super::poison::PoisonOptions;

#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub settings: Settings,
    /// Do `init` first where neither slot nor checkpoint exists yet.
    #[arg(long)]
    pub init: bool,
    #[command(flatten)]
    pub init_options: InitOptions,
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:8083")]
    pub admin_listen: SocketAddr,
    /// After a stop for good (exit codes 2 to 39), keep answering /readyz and /metrics for so long before the process ends, in seconds, so that
    /// relay_stopped_exit_code can be scraped. Nothing is read, published or confirmed meanwhile, and the slot is free.
    #[arg(long, env = "LINGER_STOPPED", value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub linger_stopped: u64,
    /// Largest Kafka transaction, in bytes of outbox rows (65536 to 1073741824); bounds the relay's memory. A single larger row still goes.
    #[arg(long, env = "TRANSACTION_BYTES", default_value_t = 16 << 20, value_parser = clap::value_parser!(u64).range(65_536..=1 << 30))]
    pub transaction_bytes: u64,
    #[command(flatten)]
    pub poison: PoisonOptions,
    #[command(flatten)]
    pub maintenance: MaintenanceOptions,
}

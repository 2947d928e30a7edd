//! What `status` asks for.

use std::net::SocketAddr;

use clap::Args;
use service::status::watch::Every;

use super::Settings;

#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub settings: Settings,
    #[command(flatten)]
    pub options: StatusOptions,
}

#[derive(Clone, Debug, Args)]
pub struct StatusOptions {
    /// Print one line of JSON. docs/status.md says what is in it.
    #[arg(long)]
    pub json: bool,
    /// Look again after each pause of so many seconds (0.1 to 3600), until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    pub watch: Option<Every>,
    /// Address of the /readyz of this slot's relay. With it `status` also tells what the relay says of itself. A relay that does not answer there is
    /// no problem, since it may be elsewhere.
    #[arg(long, env = "ADMIN_LISTEN")]
    pub admin_listen: Option<SocketAddr>,
}

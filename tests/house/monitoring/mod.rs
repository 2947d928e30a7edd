//! Alerts, their tests, their pages and the dashboards agree with each other. promtool checks the rules themselves (`./test monitoring`).

mod alerts;
mod dashboards;
mod rules;
mod runbooks;
mod targets;

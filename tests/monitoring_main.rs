//! Prometheus' own tool reads all that deploy/monitoring gives to Prometheus and to Grafana.
mod promtool;

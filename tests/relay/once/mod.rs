//! What does not depend on PostgreSQL's version: run on the newest alone, so that the suite stays within its time.

mod another_slot;
mod destinations;
mod failed_commands;
mod former_cluster;
mod init_pieces;
mod kafka_versions;
mod lagging_broker;
mod lanes;
mod least_privileges;
mod moving_address;
mod outbox_table;
mod panics;
mod parking;
mod pause;
mod poison_rows;
mod recover_bugs;
mod recover_since;
mod refused_records;
mod replay;
mod rotation;
mod three_brokers;
mod topic_identity;
mod topic_settings;
mod ways_out;

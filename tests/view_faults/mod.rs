mod carried;
mod crash_matrix;
mod group_offsets;
mod lane;
mod load;
mod oracle;
mod paused_partitions;
mod planted_bugs;
mod positions;
mod rebalances;
mod rebuild_letters;
mod rebuild_positions;
mod rebuild_sql;
mod rebuild_topics;
mod rebuilds;
mod release_build;
mod rig_itself;
mod sampler;
mod servers;
mod site;
mod static_members;
mod topics_made_anew;
mod trouble;
mod verify_tails;
mod zombies;

#[path = "../../view-builder/tests/support/recomputed.rs"]
mod recomputed;

mod carried;
mod crash_matrix;
mod group_offsets;
mod lane;
mod load;
mod oracle;
mod planted_bugs;
mod positions;
mod rebalances;
mod rebuilds;
mod release_build;
mod rig_itself;
mod sampler;
mod servers;
mod site;
mod static_members;
mod trouble;
mod zombies;

#[path = "../../view-builder/tests/support/recomputed.rs"]
mod recomputed;

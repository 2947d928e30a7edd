mod at_least_once;
mod crash_matrix;
mod faulty;
mod late_end_txn;
mod planted_bugs;
mod publishing;
mod release_build;

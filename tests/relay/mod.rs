mod failover;
mod load;
mod publishing;
mod standby;
mod zombies;

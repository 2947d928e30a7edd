mod publishing;
mod accept;
mod adopt;
mod guard;
mod lineage;
mod tampering;

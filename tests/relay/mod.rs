mod accept;
mod adopt;
mod guard;
mod lineage;
mod publishing;
mod tampering;

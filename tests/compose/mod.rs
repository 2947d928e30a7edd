mod faults;
mod images;
mod monitoring;
mod operators;
mod project;
mod readme;
